"""A file is written and read through the client proxy, with no mount and no FUSE.

How to run it, in the environment that DFS is installed in::

    dfs up --detach
    dfs signup && dfs login
    python examples/without_a_mount.py

With ``DFS_REALM`` set it uses another realm than the one on this machine.

What is to be seen: the five steps in which a file comes to be, the same that a mount takes: a lock, a name,
chunks on file servers, a commit, the lock given back. Then which servers have each chunk, and that another
session, which might be on another machine, reads the same bytes.
"""

import os
import stat

from dfs.logins import client
from dfs.places import DEFAULT_REALM
from mount.proxy import Proxy
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ROOT_INO, Attr, Commit, Create, Unlink

REALM = os.environ.get("DFS_REALM", DEFAULT_REALM)
NAME = b"without-a-mount.bin"


def write_new(proxy: Proxy, name: bytes, data: bytes) -> Attr:
    """Makes a file in the realm's root. Raises EEXIST if it is there."""
    lock = proxy.write_locks.take_fresh()
    print(f"1. inode {lock.ino} is ours to write; the fencing token is {lock.token}")

    create = Create(ROOT_INO, name, stat.S_IFREG | 0o644, ino=lock.ino, grant=lock.grant)
    made = proxy.directory.mutate([create])[0].attr
    assert made is not None, "a new file has attributes"
    print(f"2. it has the name {name.decode()}, and is empty")

    pieces = [data[begin : begin + CHUNK_BYTES] for begin in range(0, len(data), CHUNK_BYTES)]
    chunks = [proxy.upload(piece, index) for index, piece in enumerate(pieces)]
    print(f"3. {len(chunks)} chunks are on disk at their file servers; no reader sees them yet")

    commit = Commit(
        ino=lock.ino,
        grant=lock.grant,
        base=made.version,
        commit_id=os.urandom(16),
        size=len(data),
        keep_size=0,
        chunks=chunks,
    )
    attr = proxy.directory.mutate([commit])[0].attr
    assert attr is not None, "a commit is answered with attributes"
    print(f"4. they are version {attr.version} of the file, all at once")

    proxy.write_locks.release(lock.ino)
    print("5. the lock goes back: others may write it")
    return attr


def read(proxy: Proxy, name: bytes) -> bytes:
    """The whole content of a file in the realm's root; a hole reads as zeros."""
    attr = proxy.directory.resolve(ROOT_INO, [name]).attrs[-1]
    content = bytearray(attr.size)
    for chunk in proxy.manifest(attr.ino, attr.version, 0).chunks:
        urls = [server.url for server in proxy.addresses(chunk.servers)]
        print(f"   chunk {chunk.index}: {chunk.size} bytes, primary {urls[0]}, secondaries {urls[1:]}")
        begin = chunk.index * CHUNK_BYTES
        content[begin : begin + chunk.size] = proxy.download(chunk)
    return bytes(content)


def main() -> None:
    """Writes in one session, reads in another, and tidies up."""
    data = os.urandom(2 * CHUNK_BYTES + 12345)
    with client(REALM, "writer") as writer:
        write_new(writer, NAME, data)
        with client(REALM, "reader") as reader:
            print("another session reads it:")
            print("   the same bytes" if read(reader, NAME) == data else "   OTHER BYTES")
        writer.directory.mutate([Unlink(ROOT_INO, NAME)])


if __name__ == "__main__":
    main()
