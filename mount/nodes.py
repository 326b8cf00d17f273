"""What an open inode is, and an open file.

A ``Node`` is an inode that this mount has open: one local copy, at most one write lock, one version,
whatever the number of handles.

Order of the locks (take them only from left to right; everything may be skipped):

    Node.gate  →  Node.committing | Node.following  →  NodeTable._guard | Node.guard  →  the local copy's own

``gate`` serialises becoming and ceasing to be a writer, ``committing`` the commits of one inode,
``following`` bringing a newer version of it; they are held while a service is asked. ``guard`` protects
the fields and makes "nothing is missing, so read" one step; it is never held while a service is asked.
"""

import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import msgspec

from cache.copies import LocalCopy
from cache.metadata import Asked
from cache.succession import Successor
from clients.attempts import Attempts
from mount.gate import Gate
from mount.locks import WriteLock
from mount.pending import NOTHING_PENDING, PendingAttrs
from mount.slate import OpenFile
from wire.chunking import chunk_count, fits
from wire.errors import Conflict
from wire.limits import CHUNK_BYTES
from wire.messages.common import Caller
from wire.messages.directory import Attr, ChunkChange, Commit
from wire.permissions import Identity, mode_after_write

_moves = itertools.count(1)

_NOBODY = Identity(2**32 - 2, (2**32 - 2,))

TICK_NS = 10_000_000
"""By so much at most is the clock late by which kernels stamp files (a tick; of 100 Hz at the slowest)."""


@dataclass
class Way:
    """``who`` has a way to a file of these attributes, as long as nothing is heard of ``inos`` after what was
    ``asked``: the file, and the directories that lead to it."""

    asked: Asked
    inos: tuple[int, ...]
    who: Caller | None
    attr: Attr


class Node:
    """See the module. ``pins`` is the table's; everything else is under ``guard`` unless said. For
    the next worker ``keep`` writes down what was set explicitly and is not committed, ``on_outrun`` that the
    writers must not go on."""

    def __init__(
        self,
        copy: LocalCopy,
        attr: Attr,
        keep: Callable[[int, PendingAttrs], None] = lambda _ino, _attrs: None,
        on_outrun: "Callable[[Node], None]" = lambda _node: None,
        identity: Callable[[Caller | None], Identity] = lambda _caller: _NOBODY,
    ) -> None:
        self.ino = attr.ino
        self.copy = copy
        self.pins = 0
        self._gate: Gate | None = None
        self.committing = threading.Lock()
        self.guard = threading.RLock()
        self.attr = attr
        self.writers = 0  # under gate
        self.seen_chunks = 0  # filled ones that were there when last looked for what is written past us
        self.lock: WriteLock | None = None
        self.lock_lost = False
        self.is_shared = False  # programs lock it for themselves: the lock is held for commits only
        self.caller: Caller | None = None  # who opened for writing: the identity of the commits
        self.failure: OSError | None = None  # the first failed write-back
        self._keep = keep
        self.on_outrun = on_outrun
        self._identity = identity
        self._pending = NOTHING_PENDING
        self.sent = NOTHING_PENDING  # under committing; what was pending and goes with the commit under way
        self.written_at = 0  # ns; the last write that no commit has covered
        self.set_at = 0  # ns; when the last of what was pending since then was set
        self._past_us = (0, 0)  # the last write past us, by the kernel's clock and as ``_in_order`` has it
        self.uploaded: dict[int, Future[ChunkChange]] = {}  # of chunks that were not written to since
        self.fetching: dict[tuple[int, bytes], Future[bool]] = {}  # by index and id of the chunk
        self.moves = next(_moves)  # another number whenever the content becomes what no program here wrote
        self.unsent: Commit | None = None  # under committing; begun, and sent as it is until it is answered
        self.following = Attempts()  # at bringing a newer version to who reads past us
        self.not_followed = 0  # the version of which that has failed

    @property
    def gate(self) -> Gate:
        """See the module. Made when it is first used: who only reads has no use for it, and to make one takes
        longer than to make the rest of a node."""
        if self._gate is None:
            with self.guard:
                self._gate = self._gate or Gate()
        return self._gate

    @property
    def pending(self) -> PendingAttrs:
        """What goes with the next commit."""
        return self._pending

    @pending.setter
    def pending(self, attrs: PendingAttrs) -> None:
        self._pending = attrs
        self._keep(self.ino, self.sent.overruled(attrs))

    @property
    def is_ours(self) -> bool:
        """Whether the content shown here is this mount's own: locked for writing, dirty, or being sent. A
        writer that has lost his lock and has nothing to commit keeps nobody from a newer version."""
        is_locked = self.lock is not None and not self.lock_lost
        return is_locked or self.copy.dirty or self.unsent is not None

    @property
    def sends_mode(self) -> bool:
        """Whether a mode that was set goes with a commit."""
        with self.guard:
            unsent = None if self.unsent is None else self.unsent.mode
            return (self.pending.mode, self.sent.mode, unsent) != (None, None, None)

    @property
    def shown(self) -> tuple[int, int]:
        """Which version the content is of (or was, before it was written to), and ``moves``. The latter is
        unique among all nodes: as long as it stays, only this mount's programs have changed the content."""
        with self.guard:
            return self.copy.version, self.moves

    def check(self) -> None:
        """What could not be written back once is said again and again, until the file is closed."""
        if self.failure is not None:
            raise OSError(self.failure.errno, self.failure.strerror)

    def shown_attr(self) -> Attr:
        """The attributes as this mount shows them: of the version shown, with what is dirty."""
        with self.guard:
            past_us = self._in_order(self.copy.look())
            explicit = self.sent.overruled(self._pending)
            if not self.copy.dirty and not explicit and not past_us:
                return self.attr
            mode = self.attr.mode
            written_at = max(past_us, self.written_at)
            if written_at:
                mode = mode_after_write(self._identity(self.caller), self.attr)
            if explicit.mode is not None:
                mode = explicit.mode
            written = max(written_at, self.attr.version) if written_at else self.attr.mtime
            return msgspec.structs.replace(
                self.attr,
                size=self.copy.size,
                holes=self._holes(),
                mode=mode,
                atime=self.attr.atime if explicit.atime is None else explicit.atime,
                mtime=written if past_us or explicit.mtime is None else explicit.mtime,
                ctime=max(self.attr.ctime, written_at, self.set_at),
            )

    def _in_order(self, stamped: int) -> int:
        """Under guard: when the last write past us was, behind all that was shown before it. The kernel's
        stamp may be of before what was changed through us or by the directory within the same tick, and then
        nothing would seem to have been written. The same until there is another write."""
        if stamped and stamped != self._past_us[0]:
            last = max(self._past_us[1], self.written_at, self.set_at, self.attr.version, self.attr.ctime)
            is_late = 0 <= last - stamped < TICK_NS
            self._past_us = (stamped, last + 1 if is_late else stamped)
        return self._past_us[1] if stamped else 0

    def _holes(self) -> int:
        """With what is dirty, as a commit would count them, or fewer: a chunk is taken to be where it was."""
        stored = chunk_count(self.attr.size) - self.attr.holes
        return max(0, chunk_count(self.copy.size) - max(stored, chunk_count(self.copy.allocated)))

    def accept(self, attr: Attr, *, may_move: bool = True, leaves: bool = False) -> bool:
        """Takes newer attributes of the directory. A newer version is moved to unless the content is ours.

        With ``may_move`` false only a version of another size is moved to: the kernel drops its pages by
        itself when it sees another size, and keeps them otherwise.

        False if the version is to be brought to programs that read the old one past us, first (``follow``);
        with ``leaves`` they are left with the old one.
        """
        must_follow = was_past_us = False
        with self.guard:
            if attr.version > self.copy.version and not self.is_ours:
                was_past_us = self.is_shared and leaves and self.copy.is_past_us
                self.rescan(home=leaves or not self.is_shared)
            if attr.version != self.copy.version:
                if attr.version < self.copy.version and not self.is_ours:
                    return True
                stays = self.is_ours or (not may_move and attr.size == self.copy.size)
                must_follow = not stays and not leaves and self.copy.is_used_past_us(self.is_shared)
                if must_follow:
                    attr = self._with_content(attr, self.copy.size, self.copy.version)
                elif stays:
                    attr = self._with_content(attr, self.attr.size, self.attr.version)
                else:
                    self.copy.adopt(attr.version, attr.size)
                    self._moved()
                    if was_past_us:  # what is written past us goes to nobody any more
                        self.outrun()
            if attr.change >= self.attr.change:
                self.attr = attr
        return not must_follow

    def _with_content(self, attr: Attr, size: int, version: int) -> Attr:
        """Newer attributes, of the content that is shown."""
        return msgspec.structs.replace(attr, size=size, version=version, holes=self.attr.holes)

    def follow(self, successor: Successor) -> None:
        """Moves to a version that was brought together, with all who read the copy past us; if it is still
        the next one. Raises OSError."""
        with self.guard:
            self.rescan()
            if not self.is_ours and self.copy.follow(successor, with_writers=self.is_shared):
                self._moved()

    def _moved(self) -> None:
        """Who shares a file with others' programs knows by his own locks what may change under him."""
        self.moves = next(_moves)
        if self.lock is not None:
            self.outrun()

    def move_to(self, attr: Attr) -> None:
        """To another version, though the lock is ours: nothing here is dirty."""
        with self.guard:
            if attr.version != self.copy.version:
                self.copy.adopt(attr.version, attr.size)
                self.moves = next(_moves)
            self.attr = attr

    def may_have_name(self) -> None:
        """Nobody knows whether it was linked: until the directory says, it is not treated as what goes with
        its last handle."""
        with self.guard:
            self.attr = msgspec.structs.replace(self.attr, nlink=1)

    def outrun(self) -> Conflict:
        """Under guard: who has the file open for writing may have read what is not true any more, and must
        not write over what he has not read. Returns what he is told."""
        self.forget_attributes()
        self.failure = Conflict("the write lock was lost, and somebody else has written meanwhile")
        self.on_outrun(self)
        return self.failure

    def discard(self) -> None:
        """Under committing and guard: gives up what is dirty and what was being sent."""
        self.unsent = None
        self.copy.discard()
        self.moves = next(_moves)
        self.forget_attributes()
        self.written_at = 0

    def commit_ended(self) -> None:
        """Under guard: what went with it is the directory's now, or is in ``pending`` again."""
        self.sent = PendingAttrs()
        self._keep(self.ino, self._pending)

    def forget_attributes(self) -> None:
        """Under guard: what was set explicitly will not be committed."""
        self.sent = PendingAttrs()
        self.pending = PendingAttrs()

    def rescan(self, *, home: bool = False) -> None:
        """Takes notice of what the kernel has written into the copy past this process: to be called before
        ``copy.dirty`` is asked for by who acts on it, and before a time is set. With ``home`` it is the last
        time: what is still written goes to nobody, so the handles must be told, and nothing moves away."""
        with self.guard:
            if not self.copy.is_past_us:
                return
            written_at = self._in_order(self.copy.take_home() if home else self.copy.rescan())
            self._past_us = (0, 0)  # the next one may bear the same stamp
            self._forget_outdated_uploads()  # also of chunks that were dirty already
            if written_at:
                self.written_at = max(self.written_at, written_at)
                self.pending = replace(self.pending, mtime=None if self.copy.dirty else self.written_at)

    def _forget_outdated_uploads(self) -> None:
        """Under guard: of what was uploaded, only what the file has now is of any use."""
        for index, upload in list(self.uploaded.items()):
            is_stored = upload.done() and not upload.cancelled() and upload.exception() is None
            if not is_stored or not self._is_as_uploaded(upload.result()):
                del self.uploaded[index]

    def _is_as_uploaded(self, change: ChunkChange) -> bool:
        data = self.copy.chunk_bytes(change.index)
        return not data if change.id is None else len(data) == change.size and fits(change.id, data)

    def touch(self) -> None:
        """Under guard, after what counts as a write, whether it has changed anything or not."""
        self.written_at = time.time_ns()
        is_dirty = self.copy.dirty
        if not is_dirty or self.pending.mtime is not None:
            self.pending = replace(self.pending, mtime=None if is_dirty else self.written_at)

    def note_write(self, offset: int, size: int) -> None:
        """Under guard, after content changed: what was uploaded of these chunks is of the past."""
        self.touch()
        touched = range(offset // CHUNK_BYTES, -(-(offset + max(size, 1)) // CHUNK_BYTES))
        few = len(touched) <= len(self.uploaded)  # a truncation may touch millions
        for index in touched if few else [index for index in self.uploaded if index in touched]:
            self.uploaded.pop(index, None)


@dataclass
class Handle:
    """An open file. ``next_read`` and ``ahead`` follow sequential reading, ``next_write`` writing."""

    number: int
    node: Node
    flags: int
    caller: Caller | None
    """For whom it was opened."""
    is_writer: bool
    """Counted in ``Node.writers``: opened for writing, or with O_TRUNC."""
    slot: int
    """Where it is written down (mount.slate)."""
    record: OpenFile
    """What is written there."""
    next_read: int = 0
    ahead: int = 1
    next_write: int = 0
    is_incomplete: bool = False
    """The kernel would serve it, were the local copy complete."""
    way: Way | None = None
    """By which he had opened it before who has opened it; None if he had not."""
    is_noted: bool = True
    """The next worker knows of it, and the kernel; else it rests, or is closed. Under ``NodeTable._noting``,
    as ``record``."""

    @property
    def readable(self) -> bool:
        """Opened for reading."""
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        """Opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def may_map_for_writing(self) -> bool:
        """mmap(2): a shared map that is written to needs both."""
        return self.readable and self.writable

    @property
    def appends(self) -> bool:
        """Every write goes to the end."""
        return bool(self.flags & os.O_APPEND)
