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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from cache.copies import CopyStore
from mount.locks import WriteLock
from mount.nodes import Handle, Node
from mount.proxy import Proxy
from mount.ranges import Ranges
from mount.takeover import take_over
from mount.tree import Changes
from wire.errors import Busy, Conflict, Unavailable, fail
from wire.limits import FILE_BYTES_MAX, OPS_MAX, RESOLVED_CHUNKS_MAX
from wire.messages.common import Caller
from wire.messages.directory import (
    ROOT_INO,
    Attr,
    Create,
    Drop,
    Hold,
    Manifest,
    OpenWrite,
)
from wire.names import check_name
from wire.permissions import READ, may

__all__ = ["Changes", "Vfs"]

log = logging.getLogger(__name__)

LET_GO_SECONDS = 1.0
"""Even a mount that does not wait for locks gives a holder this long: closing releases in the background."""

WAITERS_MAX = 40
"""Opens that wait for locks at the same time; a binding must have more threads than that."""

GATE_SECONDS = 0.2
"""Even who must not wait does so for a commit or a release that is under way here."""

LEFTOVER_SECONDS = 60.0
"""The kernel repeats calls at once or never: after this, what an earlier worker has begun is forgotten."""

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


class Vfs(Ranges):
    """A mounted realm: its tree, the content of open files, and here how they are opened and closed.
    Thread-safe. ``start`` before use, ``close`` afterwards.

    ``lock_wait_seconds`` is how long opening for writing waits for another mount's writer. ``settle`` is
    called before an inode is opened: it sees to what an earlier mount has left dirty of it, says whether
    there was anything, and raises what stands in the way.
    """

    def __init__(
        self,
        proxy: Proxy,
        copies: CopyStore,
        lock_wait_seconds: float = 30.0,
        settle: Callable[[int], bool] = lambda _ino: False,
    ) -> None:
        super().__init__(proxy, copies, self._on_saved_late)
        self._settle = settle
        self._lock_wait_seconds = lock_wait_seconds
        self._waiters = threading.BoundedSemaphore(WAITERS_MAX)
        self._leftovers = threading.Timer(LEFTOVER_SECONDS, self._forget_left_calls)
        self._leftovers.daemon = True
        self.calls = proxy.calls
        self.slate = proxy.slate
        self.checks: list[Callable[[], bool]] = []
        """What ``is_able`` asks besides; a binding adds its own."""
        proxy.on_lock_lost = self._on_lock_lost
        proxy.on_renewal = self._renew_holds

    def start(self) -> None:
        """Opens again what an earlier worker had open (mount.takeover), and starts the background write-back.
        Raises Unavailable if a service that must be asked is away."""
        take_over(self._proxy, self._table, self._committer)
        self._committer.start()
        if self.calls.left():
            self._leftovers.start()

    def close(self) -> None:
        """Ends it. What cannot be written back now stays in the cache folder for the next mount."""
        self._leftovers.cancel()
        self.write_back_all()
        self._committer.close()
        for node in self._table.nodes():
            if node.copy.dirty:
                log.warning("inode %d is not written back; the next mount will do it", node.ino)

    def is_able(self) -> bool:
        """Whether it can work. Takes the locks that all share: does not return if one of them is stuck."""
        self._table.nodes()
        self._copies.dirty_inos()
        self._proxy.write_locks.held(0)
        return all(check() for check in self.checks)

    def handles(self) -> list[Handle]:
        """All open files, as of now."""
        return self._table.handles()

    @property
    def first_number(self) -> int:
        """Numbers that a binding gives out begin here: above all that an earlier worker's can have given."""
        return self.slate.first_number

    def give_up_calls(self) -> list[int]:
        """For a kernel that does not repeat calls: the unique numbers of those that an earlier worker has not
        answered, and that must fail. For the kernel, what they opened is not open, nor what they closed."""
        left = self.calls.left()
        for call in left:
            opened, closed = self._table.opened_before(call.unique), call.closes
            for number in {handle.number for handle in self.handles()} & {
                closed,
                opened.number if opened else 0,
            }:
                self.release(number)
        self._forget_left_calls()
        return [call.unique for call in left]

    def _forget_left_calls(self) -> None:
        for ino in self.calls.forget_left():
            if self._table.peek(ino) is None:
                self._proxy.write_locks.release(ino)

    # Opening and closing

    def open(
        self,
        ino: int,
        flags: int,
        who: Caller | None,
        *,
        attr: Attr | None = None,
        manifest: Manifest | None = None,
        origin: tuple[int, bytes] | None = None,
    ) -> Handle:
        """Opens a file. ``attr`` and ``manifest`` are what the directory has just told the caller; ``origin``
        (parent, name) is where a conflict copy would go.

        Raises Busy if another mount's writer is not done in time (EWOULDBLOCK with O_NONBLOCK).
        """
        if handle := self._table.opened_before():
            return self._opened_again(handle, flags)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if self._settle(ino):
            attr = None  # it was asked for before
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
        handle = self._add_handle(node, flags, who, is_writer=writes)
        try:
            if manifest is not None:
                self._reader.take(node, manifest, 0, RESOLVED_CHUNKS_MAX)
            if origin is not None and writes:
                node.copy.set_origin(*origin)
            if flags & os.O_TRUNC:  # with a handle: the next worker would find dirty content of nobody's
                self._truncate(node, 0)
        except BaseException:
            self.release(handle.number)
            raise
        return handle

    def _opened_again(self, handle: Handle, flags: int) -> Handle:
        """The call that has opened it was not answered: it may not have come to cutting the file."""
        if flags & os.O_TRUNC:
            self._truncate(handle.node, 0)
        return handle

    def _add_handle(self, node: Node, flags: int, who: Caller | None, *, is_writer: bool) -> Handle:
        """For a node that is pinned, and has one more writer if ``is_writer``; if it fails, no longer."""
        try:
            return self._table.add_handle(node, flags, who, is_writer=is_writer)
        except BaseException:
            if not (is_writer and self._stop_writing(node)):
                self._unpin(node)
            raise

    def open_path(self, names: Sequence[bytes], flags: int, who: Caller | None) -> Handle:
        """Opens what a path names now: one call to the directory walks it, tells the version and, unless
        there is a local copy, where the content is."""
        return self._open_from(ROOT_INO, names, self._names.believed(names), flags, who)

    def open_known(
        self, ino: int, start: int, names: Sequence[bytes], flags: int, who: Caller | None
    ) -> Handle:
        """As ``open_path``, of the path ``names`` below the inode ``start``, which should lead to ``ino``.
        Raises ESTALE if it does not any more. No names: the inode itself, whatever it is called."""
        try:
            return self._open_from(start, names, ino, flags, who, must_be=ino)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise fail(errno.ESTALE, "the path leads elsewhere now") from error
            raise

    def _open_from(
        self,
        start: int,
        names: Sequence[bytes],
        believed: int,
        flags: int,
        who: Caller | None,
        must_be: int = 0,
    ) -> Handle:
        if handle := self._table.opened_before():
            return self._opened_again(handle, flags)
        content = not flags & os.O_TRUNC and not self._copies.has(believed)
        resolved = self._names.walk_now(names, who, content=content, start=start)
        attr = resolved.attrs[-1]
        if must_be and attr.ino != must_be:
            raise fail(errno.ESTALE, "the path leads elsewhere now")
        _check_openable(attr)
        origin = (resolved.attrs[-2].ino, names[-1]) if names else None
        return self.open(attr.ino, flags, who, attr=attr, manifest=resolved.manifest, origin=origin)

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, who: Caller | None
    ) -> tuple[Handle, Attr]:
        """Makes a file and opens it, in one call to the directory. Raises EEXIST also without O_EXCL: the
        binding then opens what is there."""
        check_name(name)
        if handle := self._table.opened_before():
            return handle, self.handle_attr(handle.number)
        lock = self._fresh_lock()
        op = Create(parent, name, stat.S_IFREG | stat.S_IMODE(mode), ino=lock.ino, grant=lock.grant)
        try:
            attr = self._made(parent, name, self._change(op, who))
        except OSError as error:
            if error.errno in NOT_CREATED:
                self._calls.forget_ino()
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
        return self._add_handle(node, flags, who, is_writer=writes), attr

    def _fresh_lock(self) -> WriteLock:
        """The lock of an inode that is to be made; of the one that this call has begun to make, if it has."""
        locks = self._proxy.write_locks
        begun = self._calls.fresh_ino()
        if not begun:
            return locks.take_fresh()
        return locks.held(begun) or locks.acquire(begun, 0.0)

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
                if node.failure is not None and node.writers == 0:
                    node.failure = None
                self._lock_for_writing(node, left_seconds, reads, who)
                node.writers += 1
        except Busy as error:
            if flags & os.O_NONBLOCK:
                raise fail(errno.EWOULDBLOCK, error.detail) from error
            raise

    def _lock_for_writing(self, node: Node, wait_seconds: float, reads: bool, who: Caller | None) -> None:
        """Under gate: takes the lock unless it is ours, and the directory's leave for this caller."""
        if node.lock is not None and node.lock_lost:
            self._committer.regain(node)
        node.rescan()
        if node.caller != who and (node.copy.dirty or node.pending):
            self._committer.commit(node)  # in the name of who wrote it
        lock = node.lock or self._wait_for_lock(node.ino, wait_seconds)
        try:
            attr = self._open_write(node, lock, reads, who)
        except Conflict:  # it was lost while it waited to be given back, and taken back from there
            if node.lock is not None:
                raise
            lock = self._wait_for_lock(node.ino, wait_seconds)
            attr = self._open_write(node, lock, reads, who)
        with node.guard:
            if node.lock is None:
                # A commit that is still to be sent again was made under the lock that is ours once more.
                if not node.copy.dirty:
                    node.move_to(attr)
                node.lock, node.lock_lost = lock, False
            node.caller = who

    def _open_write(self, node: Node, lock: WriteLock, reads: bool, who: Caller | None) -> Attr:
        try:
            attr, _ = self._change(OpenWrite(node.ino, lock.grant, reads), who)
        except BaseException as error:
            if node.lock is None:
                self._proxy.write_locks.release(node.ino, is_void=isinstance(error, Conflict))
            raise
        assert attr is not None, "opening is answered with attributes"
        return attr

    def _wait_for_lock(self, ino: int, wait_seconds: float) -> WriteLock:
        """The write lock. Those who wait never take the threads that their holders need to let go. Raises
        InterruptedError."""
        try:
            return self._proxy.write_locks.acquire(ino, 0.0)
        except Busy:
            if not wait_seconds:
                raise
        with self._waiting() as may_wait:
            return self._proxy.write_locks.acquire(
                ino, wait_seconds if may_wait else 0.0, is_interruptible=True
            )

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
        and who comes after him waits no longer than he himself may. A lock that others wait for is not
        prolonged by new writers here. Raises Busy and InterruptedError."""

        def may_write() -> bool:
            return node.writers == 0 or not self._proxy.write_locks.is_wanted(node.ino)

        last_moment = time.monotonic() + wait_seconds
        if not node.gate.enter(GATE_SECONDS, may_write):
            with self._waiting() as may_wait:
                has_entered = may_wait and node.gate.enter(wait_seconds, may_write)
            if not has_entered:
                raise Busy(
                    "another program of this mount is waiting for this file"
                    if may_write()
                    else "another mount waits for this file and it is still open here"
                )
        try:
            yield max(0.0, last_moment - time.monotonic())
        finally:
            node.gate.leave()

    def fsync(self, number: int) -> int:
        """What fsync(2) promises, which is about the file, whatever the handle: everything that was written
        here is durable, or an error says that not. Returns as ``flush``."""
        handle = self._handle(number)
        if handle.is_writer:
            return self.flush(number)
        handle.node.rescan()
        if handle.node.copy.must_stay or handle.node.pending:
            self._committer.flush(handle.node)
        return 0

    def release(self, number: int) -> None:
        """Closes a handle. The last writer's leaves nothing dirty behind, or a node that is tried again."""
        self._calls.closing(number)
        handle = self._table.remove_handle(number)
        if not (handle.is_writer and self._stop_writing(handle.node)):
            self._unpin(handle.node)
        self._table.forget(handle)

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

    def _unpin(self, node: Node) -> None:
        nameless = node.attr.nlink == 0
        if self._table.unpin(node) and nameless:
            self._copies.drop(node.ino, force=True)
            try:
                self._proxy.directory.mutate([Drop([node.ino])])
            except OSError as error:
                log.info("inode %d is left to the directory's own clearing: %s", node.ino, error)

    def _renew_holds(self) -> None:
        """Tells the directory what is open here and has no name: what it does not hear of for days goes."""
        nameless = [node.ino for node in self._table.nodes() if node.attr.nlink == 0]
        for first in range(0, len(nameless), OPS_MAX):
            self._proxy.directory.mutate([Hold(nameless[first : first + OPS_MAX])])

    def _on_saved_late(self, node: Node) -> None:
        with node.gate:
            self._let_go(node)
        self._unpin(node)

    def _on_lock_lost(self, ino: int) -> None:
        node = self._table.peek(ino)
        if node is not None:
            node.lock_lost = True

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

    def setattr(self, ino: int, changes: Changes, who: Caller | None, handle: int | None = None) -> Attr:
        """Sets what ``changes`` names; a size is set as by truncate(2), or ftruncate(2) with a handle."""
        if changes.size is not None:
            self._set_size(ino, changes.size, who, handle)
        return self._set_attributes(ino, changes, who)

    def lend(self, number: int, *, at_any_size: bool = False) -> int | None:
        """A descriptor of the local copy's file, for the kernel to serve this handle from; the caller closes
        it. None if that cannot be; see ``LocalCopy.lend``. Raises OSError."""
        handle = self._handle(number)
        if handle.flags & os.O_DIRECT:
            return None
        with handle.node.guard:
            lent = handle.node.copy.lend(handle.flags, at_any_size=at_any_size)
        if lent is not None and handle.writable:
            self._committer.uploads.watch(handle.node)
        return lent

    def note_served(
        self, handle: Handle, served: int, backing: int, file_number: int, *, is_aside: bool
    ) -> None:
        """Writes down, for the next worker, how the kernel serves a handle."""
        record = msgspec.structs.replace(
            handle.record, served=served, backing=backing, file_number=file_number, is_aside=is_aside
        )
        if record != handle.record:
            self._table.note(handle, record)

    # For umount, status and recovery

    def unsaved(self) -> list[int]:
        """Inodes with content that no commit has covered, those that recovery had to leave included."""
        return sorted({*self._copies.dirty_inos(), *(node.ino for node in self._committer.unsaved())})

    def write_back_all(self) -> None:
        """Commits everything that is dirty. Errors stay with the handles; when a service is away that is the
        end, because each further inode would wait a whole deadline for it."""
        for node in self._table.nodes():
            try:
                node.rescan()
                if node.copy.dirty:
                    self._committer.commit(node)
            except Unavailable as error:
                log.info("inode %d and what else is dirty is not written back: %s", node.ino, error)
                return
            except OSError as error:
                log.info("inode %d is not written back: %s", node.ino, error)
            except Exception:
                log.exception("inode %d is not written back", node.ino)

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


def _check_openable(attr: Attr) -> None:
    if stat.S_ISDIR(attr.mode):
        raise fail(errno.EISDIR)
    if stat.S_ISLNK(attr.mode):
        raise fail(errno.ESTALE, "a symlink stands where a file was")
    if not stat.S_ISREG(attr.mode):
        raise fail(errno.ENXIO)
