"""A realm in this process, without sockets and without FUSE: real services, real databases, real clients.

Time is in the test's hand: the directory's maintenance and the file servers' heartbeats run only when
``maintain`` is called, and leases end only when ``advance_locks`` says so.
"""

import errno
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from cache.copies import CopyStore
from clients.session import Answer, Keyring, Wire
from mount.feed import NobodyElse
from mount.proxy import Proxy
from mount.recovery import Recovery
from mount.slate import Slate, new_memory
from mount.vfs import Changes, Vfs
from servers.database import sqlite_url
from servers.directory.app import DirectoryServer
from servers.directory.app import make_server as make_directory
from servers.directory.config import DirectoryConfig
from servers.files.app import FileServer
from servers.files.config import FilesConfig
from servers.keys import new_realm_keys
from servers.lock.app import LockServer
from servers.lock.app import make_server as make_lock
from servers.lock.config import LockConfig
from tests.support.inprocess import InProcessWire, make_keyring
from tests.support.times import wait_until
from wire.errors import NeverReached, fail
from wire.limits import LEASE_SECONDS, LOCK_LEASE_SECONDS
from wire.messages.auth import Realm
from wire.messages.common import Caller
from wire.messages.directory import ROOT_INO, Attr
from wire.tickets import Role

DIRECTORY = "http://directory"
LOCK = "http://lock"
CACHE_BYTES = 2**30
FOREVER_SECONDS = 1e8
THREAD_END_SECONDS = 5.0


class SwitchWire:
    """A client's way to the realm; ``cut`` takes it away, also for what is under way and to come."""

    def __init__(self, inner: Wire) -> None:
        self._inner = inner
        self.is_cut = False

    def cut(self) -> None:
        """From now on every call fails, at once and for good."""
        self.is_cut = True

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
    ) -> Answer:
        """As clients.session.Wire; ENETDOWN is not tried again."""
        if self.is_cut:
            raise fail(errno.ENETDOWN)
        answer = self._inner.send(method, url, headers, body, silence_seconds)
        if self.is_cut:
            raise fail(errno.ENETDOWN)
        return answer


class Client:
    """One mount's worth of client: Proxy, CopyStore and Vfs, with paths over them as a binding has them."""

    def __init__(
        self, proxy: Proxy, wire: SwitchWire, cache: Path, lock_wait_seconds: float, slate: int
    ) -> None:
        self.proxy = proxy
        self._slate = slate
        self.cache = cache
        self._wire = wire
        self._lock_wait_seconds = lock_wait_seconds
        self._is_closed = False
        self.copies = CopyStore(cache, CACHE_BYTES)
        self.recovery = Recovery(proxy, self.copies)
        proxy.start()
        self._vfs: Vfs | None = None

    @property
    def vfs(self) -> Vfs:
        """There from ``start`` on."""
        assert self._vfs is not None, "the client is not started"
        return self._vfs

    def start(self) -> None:
        """The Vfs begins (after ``recovery.run``, if there is anything to be recovered)."""
        self._vfs = Vfs(self.proxy, self.copies, self._lock_wait_seconds, self.recovery.settle)
        self._vfs.start()
        self._vfs.listen(NobodyElse())
        self.recovery.start()

    def close(self) -> None:
        """Ends in order: what is dirty stays in the cache folder, all locks are given back."""
        if not self._is_closed:
            self._is_closed = True
            if self._vfs is not None:
                self.recovery.close()
                self._vfs.close()
            self.proxy.close()
            self.copies.close()

    def kill(self) -> None:
        """Ends without a word: nothing more reaches the realm, locks stay until their lease ends, and the
        cache folder is left as it was at this moment."""
        self._wire.cut()
        image = self.cache.with_name(f"{self.cache.name}.image")
        shutil.copytree(self.cache, image)
        slate = copied(self._slate)
        self.close()
        os.close(self._slate)
        self._slate = slate
        shutil.rmtree(self.cache)
        image.rename(self.cache)

    def cut(self) -> None:
        """From now on nothing reaches the realm."""
        self._wire.cut()

    @property
    def slate(self) -> int:
        """Its memory; after ``kill`` as it was then."""
        return self._slate

    @contextmanager
    def call(self, unique: int) -> Iterator[None]:
        """What is done in the block is one call of the kernel's, as a binding has it."""
        self.proxy.calls.begin(unique)
        try:
            yield
        finally:
            if not self._wire.is_cut:
                self.proxy.calls.end()

    # Paths

    def walk(self, path: str, who: Caller | None = None, *, fresh: bool = False) -> Attr:
        """The attributes of what ``path`` names."""
        return self.vfs.walk(split(path), who, fresh=fresh)

    def parent(self, path: str, who: Caller | None = None) -> tuple[int, bytes]:
        """The inode of the directory, walked afresh, and the last name."""
        names = split(path)
        return self.vfs.walk(names[:-1], who, fresh=True).ino, names[-1]

    def open(self, path: str, flags: int, mode: int = 0o644, who: Caller | None = None) -> int:
        """open(2); the number of the handle."""
        if flags & os.O_CREAT:
            parent, name = self.parent(path, who)
            try:
                return self.vfs.create(parent, name, mode, flags, who)[0].number
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
        return self.vfs.open_path(split(path), flags, who).number

    @contextmanager
    def opened(self, path: str, flags: int, mode: int = 0o644, who: Caller | None = None) -> Iterator[int]:
        """A handle for a block, closed as close(2) does it: flush, then release."""
        handle = self.open(path, flags, mode, who)
        try:
            yield handle
            self.vfs.flush(handle)
        finally:
            self.vfs.release(handle)

    def close_handle(self, handle: int) -> None:
        """close(2): released whatever the flush says."""
        try:
            self.vfs.flush(handle)
        finally:
            self.vfs.release(handle)

    def pread(self, handle: int, offset: int, size: int) -> bytes:
        """pread(2)."""
        buffer = bytearray(size)
        return bytes(buffer[: self.vfs.read_into(handle, offset, memoryview(buffer))])

    def write(self, path: str, data: bytes, offset: int = 0, who: Caller | None = None) -> None:
        """Opens (makes) a file, writes in it, closes it."""
        with self.opened(path, os.O_WRONLY | os.O_CREAT, who=who) as handle:
            self.vfs.write(handle, offset, data)

    def append(self, path: str, data: bytes) -> None:
        """Opens for appending, writes, closes."""
        with self.opened(path, os.O_WRONLY | os.O_APPEND) as handle:
            self.vfs.write(handle, 0, data)

    def read(self, path: str, who: Caller | None = None) -> bytes:
        """Everything, as of now."""
        with self.opened(path, os.O_RDONLY, who=who) as handle:
            return self.pread(handle, 0, self.vfs.handle_attr(handle).size)

    def names(self, path: str = "/", who: Caller | None = None) -> list[str]:
        """The names in a directory."""
        return [os.fsdecode(entry.name) for entry in self.vfs.readdir(self.walk(path, fresh=True).ino, who)]

    def mkdir(self, path: str, mode: int = 0o755, who: Caller | None = None) -> Attr:
        """mkdir(2)."""
        return self.vfs.mkdir(*self.parent(path, who), mode, who)

    def unlink(self, path: str, who: Caller | None = None) -> None:
        """unlink(2)."""
        self.vfs.unlink(*self.parent(path, who), who)

    def rmdir(self, path: str, who: Caller | None = None) -> None:
        """rmdir(2)."""
        self.vfs.rmdir(*self.parent(path, who), who)

    def rename(self, old: str, new: str, flags: int = 0, who: Caller | None = None) -> None:
        """renameat2(2)."""
        self.vfs.rename(*self.parent(old, who), *self.parent(new, who), flags, who)

    def link(self, old: str, new: str, who: Caller | None = None) -> Attr:
        """link(2)."""
        return self.vfs.link(self.walk(old, who, fresh=True).ino, *self.parent(new, who), who)

    def symlink(self, target: str, path: str, who: Caller | None = None) -> Attr:
        """symlink(2)."""
        parent, name = self.parent(path, who)
        return self.vfs.symlink(parent, name, os.fsencode(target), who)

    def set(self, path: str, changes: Changes, who: Caller | None = None) -> Attr:
        """chmod(2), chown(2), truncate(2), utimensat(2)."""
        return self.vfs.setattr(self.walk(path, who, fresh=True).ino, changes, who)

    def tree(self, path: str = "/") -> dict[str, bytes | None]:
        """Everything below: the content of files, None for directories."""
        found: dict[str, bytes | None] = {}
        for name in self.names(path):
            below = f"{path.rstrip('/')}/{name}"
            if stat.S_ISDIR(self.walk(below, fresh=True).mode):
                found[below] = None
                found.update(self.tree(below))
            else:
                found[below] = self.read(below)
        return found


class Stack:
    """The realm. A context manager: at its end everything is closed, and no thread may be left."""

    def __init__(
        self,
        folder: Path,
        files: int = 2,
        *,
        grace_seconds: float = 3600.0,
        retention_seconds: float = 86400.0,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._threads_before = set(threading.enumerate())
        self.folder = folder
        self.keys = new_realm_keys()
        self.wire = InProcessWire()
        self.clients: list[Client] = []
        self._caches = 0
        self._lock_offset = 0.0
        self._directory_config = DirectoryConfig(
            self.keys["directory"],
            sqlite_url(folder / "directory.db"),
            suspect_seconds=FOREVER_SECONDS,
            dead_seconds=2 * FOREVER_SECONDS,
            grace_seconds=grace_seconds,
            retention_seconds=retention_seconds,
            lease_seconds=lease_seconds,
        )
        self._lock_config = LockConfig(
            self.keys["lock"], sqlite_url(folder / "lock.db"), clock=lambda: time.time() + self._lock_offset
        )
        self.directory: DirectoryServer
        self.lock: LockServer
        self.start_directory()
        self.start_lock()
        self.files = [self._file_server(number) for number in range(1, files + 1)]
        for server in self.files:
            server.agent.beat()  # the first ones know of the others from now on

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start_directory(self) -> None:
        """The directory server begins (again)."""
        self.directory = make_directory(self._directory_config)
        self.wire.apps[DIRECTORY] = self.directory.app
        self.directory.feed.start()
        self.directory.feed._writer.submit(int).result()  # its thread is not to come later, in another's time
        self.wire.listens("directory", self.directory.feed.at().port)

    def start_lock(self) -> None:
        """The lock server begins (again)."""
        self.lock = make_lock(self._lock_config)
        self.wire.apps[LOCK] = self.lock.app

    def restart_lock(self, **changes: Any) -> None:
        """As after a crash, as far as the database is concerned; with these changes of its configuration."""
        self.lock.close()
        self._lock_config = replace(self._lock_config, **changes)
        self.start_lock()

    def _file_server(self, number: int) -> FileServer:
        url = f"http://files{number}"
        config = FilesConfig(self.keys["files"], self.folder / f"files{number}", url[7:], url, DIRECTORY)
        server = FileServer(config, self.wire)
        self.wire.apps[url] = server.app
        server.agent.register()
        return server

    def close(self) -> None:
        """Ends everything."""
        for client in self.clients:
            client.close()
            os.close(client.slate)
        for server in self.files:
            server.close()
        self.lock.close()
        self.directory.close()
        self.wire.close()
        last_moment = time.monotonic() + THREAD_END_SECONDS
        for thread in set(threading.enumerate()) - self._threads_before:
            thread.join(max(0.0, last_moment - time.monotonic()))
            assert not thread.is_alive(), f"{thread} is left"

    def away(self, url: str) -> None:
        """Nobody listens there any more, until ``back``."""
        self.wire.apps.pop(url)

    def back(self) -> None:
        """All services listen again."""
        self.wire.apps[DIRECTORY] = self.directory.app
        self.wire.apps[LOCK] = self.lock.app
        for number, server in enumerate(self.files, 1):
            self.wire.apps[f"http://files{number}"] = server.app

    def advance_locks(self, seconds: float = LOCK_LEASE_SECONDS + 1) -> None:
        """The lock server's clock goes on: leases that nobody renewed meanwhile have ended."""
        self._lock_offset += seconds
        self.lock.service.expire()

    def maintain(self) -> None:
        """A round of maintenance, and every file server does what it is told and reports it."""
        self.directory.storage.maintain()
        for server in self.files:
            server.agent.beat()
            while server.agent._work._under_way:
                time.sleep(0.001)
            server.agent.beat()

    def lock_holders(self) -> dict[int, int]:
        """Which session holds which inode's lock, fresh numbers of nobody's files included."""
        return {lock.ino: lock.session for lock in self.lock.service.locks().locks}

    def client(
        self,
        cache: Path | None = None,
        *,
        user: str = "alice",
        uid: int = 10001,
        gids: tuple[int, ...] = (10001,),
        admin: bool = False,
        trusted: bool = False,
        wrap: Callable[[Wire], Wire] = lambda wire: wire,
        deadline_seconds: float = 10.0,
        lock_wait_seconds: float = 5.0,
        started: bool = True,
        before: Client | None = None,
        promised: bool = False,
    ) -> Client:
        """A client of its own session; ``wrap`` puts something between it and the realm. An earlier cache
        folder may be given; one that is not ``started`` can be recovered first. A client ``before``, which
        was killed, is taken over: session, slate and cache. ``promised``: under a lease, which has begun."""
        ticket_keys = {
            Role.DIRECTORY: self.keys["directory"].tickets[Role.DIRECTORY],
            Role.LOCK: self.keys["lock"].tickets[Role.LOCK],
            Role.FILES: self.keys["files"].tickets[Role.FILES],
        }
        keyring = make_keyring(ticket_keys, user=user, uid=uid, gids=gids, admin=admin, trusted=trusted)
        wire = SwitchWire(wrap(self.wire))
        realm = Realm(self.keys["auth"].realm, b"", DIRECTORY, LOCK)
        slate = new_memory() if before is None else os.dup(before.slate)
        if before is not None:
            keyring, cache = Keyring(before.proxy.keyring.session), before.cache
        if cache is None:
            self._caches += 1
            cache = self.folder / f"cache{self._caches}"
        proxy = Proxy(realm, keyring, wire, deadline_seconds, Slate(slate), promised=promised)
        client = Client(proxy, wire, cache, lock_wait_seconds, slate)
        self.clients.append(client)
        if started:
            client.start()
        if started and promised:
            wait_until(lambda: bool(client.vfs._names.mark()))
        return client


def copied(memory: int) -> int:
    """A copy of a slate's memory, as it is at this moment."""
    copy, end = new_memory(), os.fstat(memory).st_size
    at = 0
    with suppress(OSError):  # ENXIO: nothing more is written
        while at < end:
            at = os.lseek(memory, at, os.SEEK_DATA)
            until = os.lseek(memory, at, os.SEEK_HOLE)
            os.pwrite(copy, os.pread(memory, until - at, at), at)
            at = until
    return copy


def split(path: str) -> list[bytes]:
    """The names of a path."""
    return [os.fsencode(name) for name in path.split("/") if name]


__all__ = ["DIRECTORY", "LOCK", "ROOT_INO", "Client", "NeverReached", "Stack", "split"]
