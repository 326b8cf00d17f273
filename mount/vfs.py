"""What every file operation means, in inodes and handles, with no FUSE and no HTTP.

A binding translates its protocol's calls into these and ``OSError`` back into errnos. ``who`` is for
whom a call is made: None for the session's own user, a ``Caller`` in a trusted mount.
"""

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cache.copies import CopyStore, NeedsManifest
from mount.committing import Committer
from mount.locks import WriteLock
from mount.names import Names
from mount.nodes import Handle, Node, NodeTable, PendingAttrs
from mount.proxy import Proxy
from mount.reading import Reader
from wire.errors import Busy, Conflict, fail
from wire.limits import CHUNK_BYTES, FILE_BYTES_MAX
from wire.messages.common import Caller
from wire.messages.directory import (
    Attr,
    Create,
    Drop,
    Entry,
    Link,
    Op,
    OpenWrite,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Statfs,
    Unlink,
)
from wire.names import check_name
from wire.permissions import READ, Identity, is_owner, may

log = logging.getLogger(__name__)

LET_GO_SECONDS = 1.0
"""Even a mount that does not wait for locks gives a holder this long: closing releases in the background."""

WAITERS_MAX = 40
"""Opens that wait for locks at the same time; a binding must have more threads than that."""

GATE_SECONDS = 0.2
"""Even who must not wait does so for a commit or a release that is under way here."""


NOT_CREATED = frozenset(
    {
        errno.EEXIST,
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENAMETOOLONG,
        errno.ENOSPC,
        errno.EDQUOT,
    }
)
"""What says for sure that a creation has not taken place, and its inode number is free."""


@dataclass(frozen=True)
class Changes:
    """What setattr shall set; None stays. Times in ns; the ``_now`` ones take the directory's clock."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    atime_now: bool = False
    mtime_now: bool = False


class Vfs:
    """A mounted realm. Thread-safe. ``start`` before use, ``close`` afterwards.

    ``lock_wait_seconds`` is how long opening for writing waits for another mount's writer.
    """

    def __init__(self, proxy: Proxy, copies: CopyStore, lock_wait_seconds: float = 30.0) -> None:
        session = proxy.keyring.session
        self._identity = Identity(session.uid, tuple(session.gids))
        self._proxy = proxy
        self._copies = copies
        self._lock_wait_seconds = lock_wait_seconds
        self._waiters = threading.BoundedSemaphore(WAITERS_MAX)
        self._names = Names(proxy.directory)
        self._table = NodeTable(copies)
        self._reader = Reader(proxy)
        self._committer = Committer(proxy, self._reader, self._on_settled, self._on_saved_late)
        proxy.on_lock_lost = self._on_lock_lost

    def start(self) -> None:
        """Starts the background write-back."""
        self._committer.start()

    def close(self) -> None:
        """Ends it. What cannot be written back now stays in the cache folder for the next mount."""
        self.write_back_all()
        self._committer.close()
        for node in self._table.nodes():
            if node.copy.dirty:
                log.warning("inode %d is not written back; the next mount will do it", node.ino)

    # Names

    def walk(self, names: Sequence[bytes], who: Caller | None, *, fresh: bool = False) -> Attr:
        """The attributes of what a path names. ``fresh`` asks the directory, in one call."""
        return self._shown(self._names.walk(names, who, fresh=fresh)[-1])

    def lookup(self, parent: int, name: bytes, who: Caller | None) -> Attr:
        """The attributes of a name in a directory."""
        return self._shown(self._names.child(parent, name, who))

    def readdir(self, ino: int, who: Caller | None) -> Iterator[Entry]:
        """The entries of a directory, in the order of their names, without "." and ".."."""
        return self._names.entries(ino, who)

    def mkdir(self, parent: int, name: bytes, mode: int, who: Caller | None) -> Attr:
        """A new directory."""
        return self._make(Create(parent, name, stat.S_IFDIR | stat.S_IMODE(mode)), who)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, who: Caller | None) -> Attr:
        """A new file of any type but directory and symlink; ``mode`` says which."""
        return self._make(Create(parent, name, mode, rdev), who)

    def symlink(self, parent: int, name: bytes, target: bytes, who: Caller | None) -> Attr:
        """A new symbolic link."""
        return self._make(Create(parent, name, stat.S_IFLNK | 0o777, target=target), who)

    def link(self, ino: int, parent: int, name: bytes, who: Caller | None) -> Attr:
        """Another name for an inode."""
        check_name(name)
        return self._made(parent, name, self._change(Link(ino, parent, name), who))

    def _make(self, op: Create, who: Caller | None) -> Attr:
        check_name(op.name)
        return self._made(op.parent, op.name, self._change(op, who))

    def _made(self, parent: int, name: bytes, outcome: tuple[Attr | None, list[Attr]]) -> Attr:
        attr, touched = outcome
        assert attr is not None, "a new name is answered with attributes"
        for folder in touched:
            if folder.ino == parent:
                self._names.add(folder, name, attr.ino)
        return self._shown(attr)

    def _change(self, op: Op, who: Caller | None) -> tuple[Attr | None, list[Attr]]:
        result = self._names.change([op], who)[0]
        for attr in (result.attr, *result.touched):
            node = None if attr is None else self._table.peek(attr.ino)
            if node is not None and attr is not None:
                node.accept(attr)
        return result.attr, result.touched

    def unlink(self, parent: int, name: bytes, who: Caller | None) -> None:
        """Takes a name away. An inode that is open here lives on until it is closed."""
        is_open = self._is_open(parent, name, who)
        attr, _ = self._change(Unlink(parent, name, hold=is_open), who)
        self._names.remove(parent, name)
        if attr is not None and attr.nlink == 0:
            self._forget(attr.ino)

    def rmdir(self, parent: int, name: bytes, who: Caller | None) -> None:
        """Removes an empty directory."""
        self._change(Rmdir(parent, name), who)
        self._names.remove(parent, name)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, who: Caller | None
    ) -> None:
        """rename(2) with the flags of renameat2(2), all at once."""
        check_name(new_name)
        hold = self._is_open(new_parent, new_name, who)
        attr, touched = self._change(Rename(parent, name, new_parent, new_name, flags, hold), who)
        self._names.remove(parent, name)
        self._names.remove(new_parent, new_name)
        for other in touched:
            if other.ino == new_parent and attr is not None:
                self._names.add(other, new_name, attr.ino)
            if other.nlink == 0:
                self._forget(other.ino)

    def readlink(self, ino: int, who: Caller | None) -> bytes:
        """Where a symlink points."""
        return self._names.target(ino, who)

    def _is_open(self, parent: int, name: bytes, who: Caller | None) -> bool:
        try:
            attr = self._names.child(parent, name, who)
            return attr.nlink == 1 and self._table.peek(attr.ino) is not None
        except OSError:
            return False  # the change itself will say what is wrong

    def _forget(self, ino: int) -> None:
        if self._table.peek(ino) is None:
            try:
                self._copies.drop(ino)
            except ValueError:
                log.warning("inode %d has content that was never committed; its copy is kept", ino)

    # Attributes

    def getattr(self, ino: int, who: Caller | None) -> Attr:
        """The attributes as this mount shows them."""
        node = self._table.peek(ino)
        if node is not None and node.is_ours:
            return node.shown_attr()
        return self._shown(self._names.attr(ino, who))

    def inode_of(self, number: int) -> int:
        """The inode of an open file."""
        return self._handle(number).node.ino

    def handle_attr(self, number: int) -> Attr:
        """The attributes of an open file, also when it has no name any more."""
        node = self._handle(number).node
        if node.is_ours:
            return node.shown_attr()
        return self._shown(self._names.attr(node.ino, node.caller))

    def setattr(self, ino: int, changes: Changes, who: Caller | None, handle: int | None = None) -> Attr:
        """Sets what ``changes`` names; a size is set as by truncate(2), or ftruncate(2) with a handle."""
        if changes.size is not None:
            self._set_size(ino, changes.size, who, handle)
        node = self._table.peek(ino)
        if node is not None and self._set_with_commit(node, changes, who):
            return node.shown_attr()
        op = SetAttr(
            ino,
            changes.mode,
            changes.uid,
            changes.gid,
            changes.atime,
            changes.mtime,
            changes.atime_now,
            changes.mtime_now,
        )
        if op == SetAttr(ino):
            return self.getattr(ino, who)
        attr, _ = self._change(op, who)
        assert attr is not None, "setattr is answered with attributes"
        return self._shown(attr)

    def _set_with_commit(self, node: Node, changes: Changes, who: Caller | None) -> bool:
        """Mode and times of dirty content go with its commit, which would overrule them otherwise, and
        cost no call of their own. An owner that does not change costs none either."""
        with node.guard:
            if node.lock is None or not (node.copy.dirty or node.pending) or who != node.caller:
                return False  # the commit is made in the name of who opened for writing
            if not is_owner(self._who(who), node.attr):
                return False
            if changes.mode is not None and node.attr.size:
                return False  # it holds at once; but in a file that is being made there is nothing yet
            if changes.uid not in (None, node.attr.uid) or changes.gid not in (None, node.attr.gid):
                return False
            now = time.time_ns()
            if changes.mode is not None:
                node.pending.mode = stat.S_IFMT(node.attr.mode) | stat.S_IMODE(changes.mode)
            if changes.atime is not None or changes.atime_now:
                node.pending.atime = now if changes.atime is None else changes.atime
            if changes.mtime is not None or changes.mtime_now:
                node.pending.mtime = now if changes.mtime is None else changes.mtime
            return True

    def target(self, names: Sequence[bytes], who: Caller | None) -> int:
        """The inode that a change of a path is for. What this mount has open for writing is believed to be
        what is meant (a descriptor's change comes as a path's); else the directory is asked."""
        believed = self._names.walk(names, who)[-1].ino
        node = self._table.peek(believed)
        if node is not None and node.is_ours:
            return believed
        return self._names.walk(names, who, fresh=True)[-1].ino

    def access(self, ino: int, wanted: int, who: Caller | None) -> None:
        """Raises EACCES unless ``who`` has all wanted bits (R 4, W 2, X 1)."""
        if not may(self._who(who), self.getattr(ino, who), wanted):
            raise fail(errno.EACCES)

    def _who(self, who: Caller | None) -> Identity:
        return self._identity if who is None else Identity(who.uid, tuple(who.gids))

    def _shown(self, attr: Attr) -> Attr:
        node = self._table.peek(attr.ino)
        if node is None:
            return attr
        node.accept(attr, may_move=False)
        return node.shown_attr()

    # Extended attributes

    def getxattr(self, ino: int, name: bytes, who: Caller | None) -> bytes:
        """The value. Raises ENODATA."""
        _check_xattr_name(name)
        values = self._xattrs(ino, who)
        if name not in values:
            raise fail(errno.ENODATA)
        return values[name]

    def listxattr(self, ino: int, who: Caller | None) -> list[bytes]:
        """The names."""
        return list(self._xattrs(ino, who))

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int, who: Caller | None) -> None:
        """setxattr(2)."""
        _check_xattr_name(name)
        self._change(SetXattr(ino, name, value, flags), who)

    def removexattr(self, ino: int, name: bytes, who: Caller | None) -> None:
        """removexattr(2)."""
        self._change(RemoveXattr(ino, name), who)

    def _xattrs(self, ino: int, who: Caller | None) -> dict[bytes, bytes]:
        # The kernel asks for security.capability before every write, and ls for ACLs of every file.
        if not self.getattr(ino, who).has_xattrs:
            return {}
        return self._proxy.directory.xattrs(ino, who)

    def statfs(self) -> Statfs:
        """Space and inodes of the realm."""
        return self._proxy.directory.statfs()

    # Opening and closing

    def open(
        self,
        ino: int,
        flags: int,
        who: Caller | None,
        *,
        attr: Attr | None = None,
        origin: tuple[int, bytes] | None = None,
    ) -> Handle:
        """Opens a file. ``attr`` are its attributes if the caller has just asked the directory for them;
        ``origin`` (parent, name) is where a conflict copy would go.

        Raises Busy if another mount's writer is not done in time (EWOULDBLOCK with O_NONBLOCK).
        """
        writes = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if attr is None:
            node = self._table.peek(ino)
            ours = node is not None and node.is_ours
            attr = node.attr if node and ours else self._names.attr(ino, who, fresh=True)
        _check_openable(attr)
        node = self._table.pin(attr)
        try:
            if writes:
                self._begin_writing(node, flags, who)
            else:
                self._begin_reading(node, attr, who)
        except BaseException:
            self._unpin(node)
            raise
        try:
            if origin is not None and writes:
                node.copy.set_origin(*origin)
            if flags & os.O_TRUNC:
                self._truncate(node, 0)
        except BaseException:
            if not (writes and self._stop_writing(node)):
                self._unpin(node)
            raise
        return self._table.add_handle(node, flags, who, is_writer=writes)

    def open_path(self, names: Sequence[bytes], flags: int, who: Caller | None) -> Handle:
        """Opens what a path names now: one call to the directory both walks it and tells the version."""
        attrs = self._names.walk(names, who, fresh=True)
        if len(attrs) == 1:
            raise fail(errno.EISDIR)
        return self.open(attrs[-1].ino, flags, who, attr=attrs[-1], origin=(attrs[-2].ino, names[-1]))

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, who: Caller | None
    ) -> tuple[Handle, Attr]:
        """Makes a file and opens it, in one call to the directory. Raises EEXIST also without O_EXCL: the
        binding then opens what is there."""
        check_name(name)
        lock = self._proxy.write_locks.take_fresh()
        op = Create(parent, name, stat.S_IFREG | stat.S_IMODE(mode), ino=lock.ino, grant=lock.grant)
        try:
            attr = self._made(parent, name, self._change(op, who))
        except OSError as error:
            if error.errno in NOT_CREATED:
                self._proxy.write_locks.give_back_fresh(lock)
            else:  # it may have been carried out: the number is used up
                self._proxy.write_locks.release(lock.ino)
            raise
        try:
            node = self._table.pin(attr)
        except BaseException:
            self._proxy.write_locks.release(lock.ino)
            raise
        with node.guard:
            node.copy.adopt(attr.version, 0)
            node.lock, node.caller = lock, who
        with node.gate:
            node.writers += 1
        try:
            node.copy.set_origin(parent, name)
        except BaseException:
            if not self._stop_writing(node):
                self._unpin(node)
            raise
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if not writes:
            self._stop_writing(node)
        return self._table.add_handle(node, flags, who, is_writer=writes), attr

    def _begin_reading(self, node: Node, attr: Attr, who: Caller | None) -> None:
        if not may(self._who(who), attr, READ):
            raise fail(errno.EACCES)
        with node.guard:
            if node.caller is None:
                node.caller = who
            node.accept(attr)

    def _begin_writing(self, node: Node, flags: int, who: Caller | None) -> None:
        reads = flags & os.O_ACCMODE != os.O_WRONLY
        wait_seconds = 0.0 if flags & os.O_NONBLOCK else max(self._lock_wait_seconds, LET_GO_SECONDS)
        try:
            with self._entered(node, wait_seconds) as left_seconds:
                self._queue_behind_others(node, left_seconds)
                if node.failure is not None and node.writers == 0:
                    node.failure = None
                self._lock_for_writing(node, left_seconds, reads, who)
                node.writers += 1
        except Busy as error:
            if flags & os.O_NONBLOCK:
                raise fail(errno.EWOULDBLOCK, error.detail) from error
            raise

    def _queue_behind_others(self, node: Node, wait_seconds: float) -> None:
        """Under gate: a lock that others wait for is not prolonged by new writers here."""
        if node.writers and self._proxy.write_locks.is_wanted(node.ino):
            done = node.gate.wait_for(lambda: node.writers == 0, wait_seconds)
            if not done:
                raise Busy("another mount waits for this file and it is still open here")

    def _lock_for_writing(self, node: Node, wait_seconds: float, reads: bool, who: Caller | None) -> None:
        """Under gate: takes the lock unless it is ours, and the directory's leave for this caller."""
        if node.lock is not None and node.lock_lost:
            self._committer.regain(node)
        if node.caller != who and (node.copy.dirty or node.pending):
            self._committer.commit(node)  # in the name of who wrote it
        lock = node.lock or self._wait_for_lock(node.ino, wait_seconds)
        try:
            attr, _ = self._change(OpenWrite(node.ino, lock.grant, reads), who)
        except BaseException:
            if node.lock is None:
                self._proxy.write_locks.release(node.ino)
            raise
        assert attr is not None, "opening is answered with attributes"
        with node.guard:
            if node.lock is None:
                # A commit that is still to be sent again was made under the lock that is ours once more.
                if not node.copy.dirty:
                    node.move_to(attr)
                node.lock, node.lock_lost = lock, False
            node.caller = who

    def _wait_for_lock(self, ino: int, wait_seconds: float) -> WriteLock:
        """The write lock. Those who wait never take the threads that their holders need to let go."""
        try:
            return self._proxy.write_locks.acquire(ino, 0.0)
        except Busy:
            if not wait_seconds:
                raise
        with self._waiting() as may_wait:
            return self._proxy.write_locks.acquire(ino, wait_seconds if may_wait else 0.0)

    @contextmanager
    def _waiting(self) -> Iterator[bool]:
        may_wait = self._waiters.acquire(blocking=False)
        try:
            yield may_wait
        finally:
            if may_wait:
                self._waiters.release()

    @contextmanager
    def _entered(self, node: Node, wait_seconds: float) -> Iterator[float]:
        """The node's gate, and what is left of the time: who waits for the lock holds the gate meanwhile,
        and who comes after him waits no longer than he himself may. Raises Busy."""
        last_moment = time.monotonic() + wait_seconds
        if not node.gate.acquire(timeout=GATE_SECONDS):
            with self._waiting() as may_wait:
                entered = may_wait and node.gate.acquire(timeout=wait_seconds)
            if not entered:
                raise Busy("another program of this mount is waiting for this file")
        try:
            yield max(0.0, last_moment - time.monotonic())
        finally:
            node.gate.release()

    def release(self, number: int) -> None:
        """Closes a handle. The last writer's leaves nothing dirty behind, or a node that is tried again."""
        handle = self._table.remove_handle(number)
        if handle.is_writer and self._stop_writing(handle.node):
            return
        self._unpin(handle.node)

    def _stop_writing(self, node: Node) -> bool:
        """One writer less. True if the node must stay pinned because it could not be written back."""
        with node.gate:
            node.writers -= 1
            if node.writers:
                return False
            try:
                self._committer.commit(node)
            except Conflict:
                pass  # said and kept as a conflict copy
            except OSError as error:
                log.warning("inode %d could not be written back, it is tried again: %s", node.ino, error)
                self._committer.retry_later(node)
                return True
            except Exception:
                log.exception("inode %d could not be written back, it is tried again", node.ino)
                self._committer.retry_later(node)
                return True
            self._let_go(node)
            return False

    def _let_go(self, node: Node) -> None:
        """Under gate: gives the write lock back, unless there is a writer again."""
        if node.writers == 0:
            with node.guard:
                node.lock = None
            self._proxy.write_locks.release(node.ino)
            node.gate.notify_all()

    def _unpin(self, node: Node) -> None:
        nameless = node.attr.nlink == 0
        if self._table.unpin(node) and nameless:
            self._copies.drop(node.ino, force=True)
            try:
                self._proxy.directory.mutate([Drop([node.ino])])
            except OSError as error:
                log.info("inode %d is left to the directory's own clearing: %s", node.ino, error)

    def _on_saved_late(self, node: Node) -> None:
        with node.gate:
            self._let_go(node)
        self._unpin(node)

    def _on_settled(self, node: Node) -> None:
        self._names.learn(node.attr)

    def _on_lock_lost(self, ino: int) -> None:
        node = self._table.peek(ino)
        if node is not None:
            node.lock_lost = True

    # Content

    def _handle(self, number: int) -> Handle:
        try:
            return self._table.handle(number)
        except KeyError:
            raise fail(errno.EBADF) from None

    def read_into(self, number: int, offset: int, buffer: memoryview) -> int:
        """Reads into ``buffer``; returns how many bytes, fewer only at the end of the file."""
        handle = self._handle(number)
        if not handle.readable:
            raise fail(errno.EBADF)
        return self._reader.read_into(handle, offset, buffer)

    def write(self, number: int, offset: int, data: bytes | memoryview) -> int:
        """Writes into the local copy; at the end, as it is under the lock, for an appending handle."""
        handle = self._handle(number)
        node = handle.node
        if not handle.writable:
            raise fail(errno.EBADF)
        self._check_writable(node)
        while True:
            with node.guard:
                _check_failure(node)
                at = node.copy.size if handle.appends else offset
                if at + len(data) > FILE_BYTES_MAX:
                    raise fail(errno.EFBIG)
                borders = _partly_covered(at, len(data), node.copy.size)
                if all(self._is_here(node, index) for index in borders):
                    try:
                        node.copy.write(at, data)
                    finally:  # of a write that failed a part may be in place
                        node.note_write(at, len(data))
                    self._upload_what_is_full(handle, at, len(data))
                    return len(data)
            for index in borders:
                self._reader.ensure(node, index * CHUNK_BYTES, CHUNK_BYTES, handle.caller)

    @staticmethod
    def _is_here(node: Node, index: int) -> bool:
        try:
            return not node.copy.missing(index * CHUNK_BYTES, CHUNK_BYTES)
        except NeedsManifest:
            return False

    def _upload_what_is_full(self, handle: Handle, offset: int, size: int) -> None:
        """Under guard: a sequential writer's finished chunks go out while he goes on."""
        end = offset + size
        if offset == handle.next_write:
            for index in range(offset // CHUNK_BYTES, end // CHUNK_BYTES):
                self._committer.upload_early(handle.node, index)
        handle.next_write = end

    def _check_writable(self, node: Node) -> None:
        _check_failure(node)
        if node.lock_lost:
            self._committer.regain(node)

    def flush(self, number: int) -> int:
        """What close(2) and fsync(2) promise: everything written is durable, or an error says that not.

        Returns the version that has it, 0 for a handle that cannot have written.
        """
        handle = self._handle(number)
        if not handle.is_writer:
            return 0
        self._write_back(handle.node)
        return handle.node.copy.version

    def _write_back(self, node: Node) -> None:
        _check_failure(node)
        try:
            self._committer.commit(node)
        except OSError as error:
            node.failure = error
            raise

    def fallocate_zeros(self, number: int, offset: int, size: int) -> None:
        """Makes a hole: the range reads as zeros."""
        handle = self._handle(number)
        node = handle.node
        if not handle.writable:
            raise fail(errno.EBADF)
        self._check_writable(node)
        borders = _partly_covered(offset, size, node.copy.size)
        while True:
            with node.guard:
                if all(self._is_here(node, index) for index in borders):
                    node.copy.punch(offset, size)
                    node.note_write(offset, size)
                    return
            for index in borders:
                self._reader.ensure(node, index * CHUNK_BYTES, CHUNK_BYTES, handle.caller)

    def _set_size(self, ino: int, size: int, who: Caller | None, number: int | None) -> None:
        if size > FILE_BYTES_MAX:
            raise fail(errno.EFBIG)
        if number is not None:
            handle = self._handle(number)
            if not handle.writable:
                raise fail(errno.EINVAL)
            self._check_writable(handle.node)
            self._truncate(handle.node, size)
            return
        handle = self.open(ino, os.O_WRONLY, who)
        try:
            self._truncate(handle.node, size)
            self.flush(handle.number)
        finally:
            self.release(handle.number)

    def _truncate(self, node: Node, size: int) -> None:
        """Cuts or extends the local copy. The chunk that is cut through must be here to be cut."""
        border = size // CHUNK_BYTES
        cuts = bool(size % CHUNK_BYTES)
        while True:
            with node.guard:
                old = node.copy.size
                if not cuts or size >= old or self._is_here(node, border):
                    _check_failure(node)
                    node.pending = PendingAttrs(node.pending.mode, node.pending.atime)
                    if size == old:
                        node.pending.mtime = time.time_ns()
                    else:
                        node.copy.truncate(size)
                        node.note_write(min(size, old), abs(size - old))
                    return
            self._reader.ensure(node, border * CHUNK_BYTES, 1, node.caller)

    # For umount, status and recovery

    def unsaved(self) -> list[int]:
        """Inodes with content that no commit has covered."""
        dirty = {node.ino for node in self._table.nodes() if node.copy.dirty}
        return sorted(dirty | {node.ino for node in self._committer.unsaved()})

    def write_back_all(self) -> None:
        """Commits everything that is dirty. Errors stay with the handles."""
        for node in self._table.nodes():
            if node.copy.dirty:
                try:
                    self._committer.commit(node)
                except OSError as error:
                    log.info("inode %d is not written back: %s", node.ino, error)

    def local_version(self, ino: int) -> tuple[int, bool]:
        """The version of the local copy (0: none), and whether it is dirty."""
        copy = self._copies.open(ino)
        try:
            return copy.version, copy.dirty
        finally:
            copy.close()

    def drop_clean_copies(self) -> None:
        """Forgets clean content that nobody has open, and all names (for measuring cold reads)."""
        self._copies.evict_all()
        self._names.drop_all()


def _check_failure(node: Node) -> None:
    """What could not be written back once is said again and again, until the file is closed."""
    if node.failure is not None:
        raise OSError(node.failure.errno, node.failure.strerror)


def _check_xattr_name(name: bytes) -> None:
    """cp asks and sets ``system.posix_acl_access`` for every file: what is never there costs no call."""
    if not name.startswith((b"user.", b"trusted.", b"security.")):
        raise fail(errno.EOPNOTSUPP)


def _check_openable(attr: Attr) -> None:
    if stat.S_ISDIR(attr.mode):
        raise fail(errno.EISDIR)
    if stat.S_ISLNK(attr.mode):
        raise fail(errno.ESTALE, "a symlink stands where a file was")
    if not stat.S_ISREG(attr.mode):
        raise fail(errno.ENXIO)


def _partly_covered(offset: int, size: int, file_size: int) -> list[int]:
    """The chunks that a write of this range changes in part only, and that have content to be kept."""
    end = offset + size
    borders = []
    first, last = offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES
    if offset % CHUNK_BYTES and first * CHUNK_BYTES < file_size:
        borders.append(first)
    ends_inside = end % CHUNK_BYTES and end < file_size
    if ends_inside and last not in borders:
        borders.append(last)
    return borders
