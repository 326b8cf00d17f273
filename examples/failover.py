"""A file server is stopped while a file is read again and again; then the file gets its copies back.

How to run it, on the machine where the realm runs, in the environment that DFS is installed in::

    dfs up --set directory.repair-delay-seconds=5 --detach
    dfs signup && dfs login
    python examples/failover.py

With ``DFS_REALM`` and ``DFS_ROOT`` set it uses another realm and its folder. It reads through the client
proxy and not through a mount: a mount would answer from its local copy and never ask a server.

What is to be seen: a line every two seconds says how long it took to read all chunks, whether the bytes are
the right ones, and how many chunks lack a copy. After three lines the server that is primary for most
chunks is stopped. Every line still says "right": the other copies answer. After ten seconds of silence
the directory takes the server for dead, and chunks lack copies; five seconds later they are being copied to
another server, until none lacks one. Then the server is started again, and the file removed.
"""

import os
import stat
import subprocess
import sys
import time
from collections import Counter

from dfs.logins import client
from dfs.places import DEFAULT_REALM, default_root
from mount.proxy import Proxy
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ROOT_INO, ChunkAt, Commit, Create, Unlink

REALM = os.environ.get("DFS_REALM", DEFAULT_REALM)
NAME = b"failover.bin"
CHUNKS = 8
LINES_BEFORE = 3
LINES_MAX = 60
LINE_SECONDS = 2.0


def write_new(proxy: Proxy, name: bytes, data: bytes) -> int:
    """Makes a file in the realm's root; see without_a_mount.py for what is done here."""
    lock = proxy.write_locks.take_fresh()
    create = Create(ROOT_INO, name, stat.S_IFREG | 0o644, ino=lock.ino, grant=lock.grant)
    made = proxy.directory.mutate([create])[0].attr
    assert made is not None, "a new file has attributes"
    chunks = [
        proxy.upload(data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES], index) for index in range(CHUNKS)
    ]
    commit = Commit(lock.ino, lock.grant, made.version, os.urandom(16), len(data), 0, chunks)
    proxy.directory.mutate([commit])
    proxy.write_locks.release(lock.ino)
    return lock.ino


def chunks_of(proxy: Proxy, ino: int) -> list[ChunkAt]:
    """Where the chunks are now, as the directory says."""
    return proxy.manifest(ino, 0, 0).chunks


def show_line(proxy: Proxy, ino: int, data: bytes) -> None:
    """Reads everything and says how it went."""
    begin = time.monotonic()
    right = b"".join(map(proxy.download, chunks_of(proxy, ino))) == data
    seconds = time.monotonic() - begin
    known = proxy.directory.servers()
    states = ", ".join(sorted(f"{server.name} {server.state}" for server in known.servers))
    word = "right" if right else "WRONG"
    print(f"  {seconds:6.3f} s  {word}  {known.lacking} of {known.chunks} chunks lack a copy  ({states})")


def service(verb: str, name: str) -> None:
    """``dfs stop NAME`` or ``dfs start NAME``."""
    root = os.environ.get("DFS_ROOT", str(default_root()))
    subprocess.run([sys.executable, "-m", "dfs", verb, name, "--root", root], check=True)


def main() -> None:
    """Reads before, while and after a file server is away."""
    data = os.urandom(CHUNKS * CHUNK_BYTES)
    with client(REALM, "failover") as proxy:
        ino = write_new(proxy, NAME, data)
        names = {server.id: server.name for server in proxy.directory.servers().servers}
        primaries = Counter(chunk.servers[0] for chunk in chunks_of(proxy, ino))
        victim = names[primaries.most_common(1)[0][0]]
        try:
            for _ in range(LINES_BEFORE):
                show_line(proxy, ino, data)
                time.sleep(LINE_SECONDS)
            service("stop", victim)
            watch_repair(proxy, ino, data, victim)
        finally:
            service("start", victim)
            proxy.directory.mutate([Unlink(ROOT_INO, NAME)])


def watch_repair(proxy: Proxy, ino: int, data: bytes, victim: str) -> None:
    """Line after line, until the victim is given up and every chunk has its copies elsewhere."""
    for _ in range(LINES_MAX):
        show_line(proxy, ino, data)
        if is_repaired(proxy, ino, victim):
            print("every chunk has its copies again")
            return
        time.sleep(LINE_SECONDS)


def is_repaired(proxy: Proxy, ino: int, victim: str) -> bool:
    """Whether the victim is dead and each chunk has enough copies on servers that are alive.

    A count of what lacks copies would not tell: between two lines it may have risen and fallen again.
    """
    known = proxy.directory.servers()
    states = {server.name: server.state for server in known.servers}
    alive = {server.id for server in known.servers if server.state == "alive"}
    copies = [len(alive.intersection(chunk.servers)) for chunk in chunks_of(proxy, ino)]
    return states[victim] == "dead" and min(copies) >= known.replicas


if __name__ == "__main__":
    main()
