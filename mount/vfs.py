"""What every file operation means, in inodes and handles, with no FUSE and no HTTP.

A binding translates its protocol's calls into these and ``OSError`` back into errnos. ``who`` is for
whom a call is made: None for the session's own user, a ``Caller`` in a trusted mount.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable

from cache.copies import CopyStore
from mount.feed import Believer
from mount.locking import Locking
from mount.nodes import Handle
from mount.proxy import Proxy
from mount.takeover import take_over
from mount.tree import Changes
from mount.yielding import Yielder
from wire.errors import Unavailable, fail
from wire.limits import FILE_BYTES_MAX, OPS_MAX
from wire.messages.common import Caller
from wire.messages.directory import Attr, Hold
from wire.permissions import SET_IDS

__all__ = ["Changes", "Vfs"]

log = logging.getLogger(__name__)

LEFTOVER_SECONDS = 60.0
"""The kernel repeats calls at once or never: after this, what an earlier worker has begun is forgotten."""


class Vfs(Locking):
    """A mounted realm: its tree, the content of open files, and here its life, and what bindings and commands
    ask besides. Thread-safe. ``start`` before use, ``close`` afterwards."""

    def __init__(
        self,
        proxy: Proxy,
        copies: CopyStore,
        lock_wait_seconds: float = 30.0,
        settle: Callable[[int], bool] = lambda _ino: False,
    ) -> None:
        super().__init__(proxy, copies, lock_wait_seconds, settle)
        self._leftovers = threading.Timer(LEFTOVER_SECONDS, self._forget_left_calls)
        self._leftovers.daemon = True
        self.calls = proxy.calls
        self.slate = proxy.slate
        self.checks: list[Callable[[], bool]] = []
        """What ``is_able`` asks besides; a binding adds its own."""
        proxy.on_renewal = self._renew_holds
        proxy.program_locks.on_lost = self._on_program_lock_lost
        self._yielder = Yielder(self.give_way)
        proxy.on_lock_shared = self._yielder.ask

    def start(self) -> None:
        """Opens again what an earlier worker had open (mount.takeover), and starts the background write-back.
        Raises Unavailable if a service that must be asked is away."""
        take_over(self._proxy, self._table, self._later)
        self._later.start()
        self._committer.uploads.start()
        self._completer.start()
        self.resting.start()
        self._yielder.start()
        if self.calls.left():
            self._leftovers.start()

    def close(self) -> None:
        """Ends it. What cannot be written back now stays in the cache folder for the next mount."""
        self._leftovers.cancel()
        self._yielder.close()
        self.resting.close()
        self._completer.close()
        self.write_back_all()
        self._committer.uploads.close()
        self._later.close()
        for node in self._table.nodes():
            if node.copy.dirty:
                log.warning("inode %d is not written back; the next mount will do it", node.ino)

    def listen(self, believer: Believer, *, takes_over: bool = False) -> None:
        """From now on the directory's promises may be relied on, if this mount has any: ``believer`` hears
        what is true no more. ``takes_over``: it may believe what an earlier worker has told."""
        if self._proxy.feed is not None:
            self._proxy.feed.start(believer, takes_over=takes_over)

    @property
    def is_exact(self) -> bool:
        """Whether what this mount believes is true, so that it may be told for as long."""
        return self._names.is_exact

    @property
    def slack_seconds(self) -> float:
        """What a binding tells must have arrived so many seconds after it was asked for how long it may be
        believed."""
        return self._names.slack_seconds

    @property
    def is_leased(self) -> bool | None:
        """Whether what is known may be believed now; None if this mount asks at every open instead."""
        return self._names.mark() > 0 if self._names.is_exact else None

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
            if not self._has_open(ino):
                self._proxy.write_locks.release(ino)

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

    def _renew_holds(self) -> None:
        """Tells the directory what is open here and has no name: what it does not hear of for days goes."""
        nameless = [node.ino for node in self._table.nodes() if node.attr.nlink == 0]
        for first in range(0, len(nameless), OPS_MAX):
            self._proxy.directory.mutate([Hold(nameless[first : first + OPS_MAX])])

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
        if changes.mode is not None and changes.mode & SET_IDS:
            self._commit_before(ino)
        return self._set_attributes(ino, changes, who)

    def lend(self, number: int, *, at_any_size: bool = False) -> int | None:
        """A descriptor of the local copy's file, for the kernel to serve this handle from; the caller closes
        it. None if that cannot be; see ``LocalCopy.lend``. Raises OSError."""
        handle = self._handle(number)
        with handle.node.guard:
            lent = handle.node.copy.lend(handle.flags, at_any_size=at_any_size)
            handle.is_incomplete = lent is None and not handle.is_writer and handle.node.copy.lacking > 0
        if lent is not None and handle.writable:
            self._committer.uploads.watch(handle.node)
        return lent

    def note_served(
        self, handle: Handle, served: int, backing: int, file_number: int, *, is_aside: bool
    ) -> None:
        """Writes down, for the next worker, how the kernel serves a handle."""
        was = handle.record
        if (was.served, was.backing, was.file_number, was.is_aside) != (
            served,
            backing,
            file_number,
            is_aside,
        ):
            what = {"served": served, "backing": backing, "file_number": file_number, "is_aside": is_aside}
            self._table.note(handle, **what)

    def unsaved(self) -> list[int]:
        """Inodes with content that no commit has covered, those that recovery had to leave included."""
        return sorted({*self._copies.dirty_inos(), *(node.ino for node in self._later.unsaved())})

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

    def local_state(self, ino: int) -> tuple[int, bool, int]:
        """The version of the local copy (0: none), whether it is dirty, how many chunks it lacks."""
        copy = self._copies.open(ino)
        try:
            return copy.version, copy.dirty, copy.lacking
        finally:
            copy.close()

    def forget(self, inos: Iterable[int], names: Iterable[tuple[int, bytes]]) -> None:
        """A binding says that nobody has these inodes any more, nor these names in directories: neither
        programs nor the kernel. Nothing is lost; what is needed again is asked for again."""
        self._names.forget(inos, names)

    def drop_clean_copies(self) -> None:
        """Forgets clean content that nobody has open, and all names (for measuring cold reads)."""
        self._completer.give_up()
        self.resting.end_all()
        self._copies.evict_all()
        self._names.drop_all()
