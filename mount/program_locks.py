"""The locks that programs of this mount take for themselves: flock(2), and ranges by fcntl(2).

The lock server grants them, keeps the queues, and decides who is next; here is noted what it has granted,
because only a mount knows when a program has closed a file or ended. The slate has it too, so that programs
keep their locks when a worker follows another one.

What is noted and what the server has can differ: when an answer was lost, a lease has ended, or a worker was
killed between the two. Then the inode is *in doubt*, and what is noted is stated anew (Restate): the server
keeps that, as far as nobody else has it meanwhile, and frees the rest. What cannot be had any more is lost.
While that is being asked nothing else is asked about this inode, so no grant is freed that is on its way.

``_guard`` protects the tables and is never held during a call to the service.
"""

import errno
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from clients.lock import LockClient
from mount import interruption
from mount.slate import ProgramLock, Slate
from wire.errors import fail
from wire.messages.lock import Range, RangeAnswer
from wire.ranges import WHOLE, overlap, with_range, without

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""One held-back request: a grant to a waiter that has died meanwhile costs the next one this and a lease."""

BUSY_SERVER_PAUSE_SECONDS = 0.25

LEAVE_AGAIN_SECONDS = 0.05
"""After that a queue is left once more: the first time may have been before the place was taken."""

DOUBT_SECONDS = 1.0
"""How long after a failure what is in doubt is stated again."""

_REFUSALS = frozenset({errno.EDEADLK, errno.ENOLCK, errno.EPERM, errno.EACCES, errno.EINVAL})
"""What the server says when it has changed nothing."""


class Owner(NamedTuple):
    """Who locks, as the kernel knows him: a process, or an open file."""

    ino: int
    is_flock: bool
    number: int

    @classmethod
    def of(cls, ino: int, wanted: Range) -> "Owner":
        """Whose range that is."""
        return cls(ino, wanted.is_flock, wanted.owner)

    def everything(self) -> Range:
        """All that he can have."""
        return Range(self.is_flock, self.number, 0, WHOLE, False, 0)


class ProgramLocks:
    """Thread-safe. ``start`` before use, ``close`` afterwards. ``on_lost(ino)`` is told that an exclusive
    range is somebody else's now; it must not wait."""

    def __init__(self, client: LockClient, slate: Slate) -> None:
        self._client = client
        self._kept = slate.program_locks
        self.on_lost: Callable[[int], None] = lambda _ino: None
        self._guard = threading.Condition()
        self._slots: dict[Owner, dict[Range, int]] = {}
        self._handles: dict[Owner, int] = {}
        """Through which open file each has locked last."""
        self._asking: Counter[int] = Counter()
        self._freeing: Counter[int] = Counter()
        self._frees_begun = 0
        self._to_leave: set[Owner] = set()
        self._doubted: set[int] = set()
        self._stated: int = 0
        """The inode that is being stated anew."""
        self._stopping = False
        self._take_over()
        self._threads = [
            threading.Thread(target=target, name=f"program-locks-{target.__name__.strip('_')}", daemon=True)
            for target in (self._leave_loop, self._doubt_loop)
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Frees everything, as far as the lock server can be reached: no program has a file open any more."""
        with self._guard:
            self._stopping = True
            self._guard.notify_all()
            inos = self._inos()
        for thread in self._threads:
            thread.join()
        try:
            for ino in inos:
                self._client.restate_ranges(ino, [])
        except OSError as error:
            log.info("the program locks of %d inodes are left to expire: %s", len(inos), error)

    def has_any(self) -> bool:
        """Whether there is anything to be renewed."""
        return bool(self._slots)

    def is_exclusive(self, ino: int, within: Range) -> bool:
        """Whether the owner has an exclusive lock of some of these bytes."""
        with self._guard:
            ranges = self._slots.get(Owner.of(ino, within), {})
            return any(one.is_exclusive and overlap(one, within) for one in ranges)

    def has_some(self, ino: int, within: Range) -> bool:
        """Whether the owner has a lock of any of these bytes."""
        return any(overlap(one, within) for one in self._ranges(Owner.of(ino, within)))

    def owners_through(self, ino: int, handle: int) -> list[Owner]:
        """Those who have locked through this open file last."""
        if not self._slots:
            return []
        with self._guard:
            return [owner for owner, last in self._handles.items() if owner.ino == ino and last == handle]

    # Programs

    def take(self, ino: int, wanted: Range, handle: int, *, waits: bool) -> RangeAnswer:
        """Lets the owner have the range, or says what is in conflict with it; with ``waits`` as soon as that
        is possible. Raises EDEADLK, ENOLCK, InterruptedError, and Unavailable."""
        while True:
            began, frees = time.monotonic(), self._frees(ino)
            with self._asked(ino):
                answer = self._ask(ino, wanted, POLL_SECONDS if waits else 0.0)
                if answer.conflict is None:
                    self._note(ino, wanted, handle)
                else:
                    self._note_refused(Owner.of(ino, wanted), wanted)
            if answer.conflict is None:
                return answer
            if not waits:
                if answer.is_own and self._frees(ino) != frees:
                    continue
                return answer
            if interruption.is_interrupted():
                self._leave(Owner.of(ino, wanted))  # again, now that no request takes the place once more
                raise fail(errno.EINTR)
            if time.monotonic() - began < POLL_SECONDS / 2:  # the server holds back too many already
                time.sleep(BUSY_SERVER_PAUSE_SECONDS)

    def free(self, ino: int, gone: Range) -> None:
        """Lets go of what the owner has of these bytes. What the server does not hear now it hears later, or
        it ends with the lease."""
        owner = Owner.of(ino, gone)
        if not self.has_some(ino, gone):
            return
        with self._freeing_of(ino), self._asked(ino):
            self._note_without(owner, gone)
            try:
                self._client.free_range(ino, gone)
            except OSError as error:
                log.info("inode %d: what was unlocked is freed later: %s", ino, error)
                self.doubt([ino])

    @contextmanager
    def _freeing_of(self, ino: int) -> Iterator[None]:
        with self._guard:
            self._frees_begun += 1
            self._freeing[ino] += 1
            self._guard.notify_all()
        try:
            yield
        finally:
            with self._guard:
                self._freeing[ino] -= 1
                if not self._freeing[ino]:
                    del self._freeing[ino]
                    self._guard.notify_all()

    def _frees(self, ino: int) -> int:
        """How often something was freed, now that nothing is just being freed of this inode. The kernel tells
        of the last close(2) of an open file, which ends its flock(2), when that has returned already: the
        next program shall not find the lock of one that has ended."""
        with self._guard:
            self._guard.wait_for(lambda: not self._freeing[ino])
            return self._frees_begun

    def ask(self, ino: int, wanted: Range) -> RangeAnswer:
        """Whether the owner could have the range now. Raises Unavailable."""
        while True:
            frees = self._frees(ino)
            answer = self._client.ask_range(ino, wanted)
            if answer.conflict is None or not answer.is_own or self._frees(ino) == frees:
                return answer

    def _ask(self, ino: int, wanted: Range, wait_seconds: float) -> RangeAnswer:
        owner = Owner.of(ino, wanted)
        try:
            with self._left_early(owner):
                return self._client.set_range(ino, wanted, wait_seconds)
        except OSError as error:
            if error.errno not in _REFUSALS:  # it may have been granted
                self.doubt([ino])
            raise

    @contextmanager
    def _asked(self, ino: int) -> Iterator[None]:
        with self._guard:
            self._guard.wait_for(lambda: self._stated != ino)
            self._asking[ino] += 1
        try:
            yield
        finally:
            with self._guard:
                self._asking[ino] -= 1
                if not self._asking[ino]:
                    del self._asking[ino]
                    self._guard.notify_all()

    # What is noted

    def _take_over(self) -> None:
        """What an earlier worker has noted. If it was killed between two notes there are both: the stronger
        one counts, until the program's call is repeated."""
        found = sorted(self._kept.items(), key=lambda item: item[1].range.is_exclusive)
        for slot, lock in found:
            owner = Owner.of(lock.ino, lock.range)
            self._slots.setdefault(owner, {})[lock.range] = slot
            self._handles[owner] = lock.handle
        for _, lock in found:
            owner = Owner.of(lock.ino, lock.range)
            self._set(owner, with_range(self._ranges(owner), lock.range))
        self._doubted = self._inos()

    def _inos(self) -> set[int]:
        return {owner.ino for owner in self._slots}

    def _ranges(self, owner: Owner) -> list[Range]:
        with self._guard:
            return sorted(self._slots.get(owner, ()), key=lambda one: one.first)

    def _note(self, ino: int, new: Range, handle: int) -> None:
        """Granted. Raises ENOLCK if no more can be remembered."""
        owner = Owner.of(ino, new)
        try:
            with self._guard:  # other threads of the same program may be about other bytes
                self._handles[owner] = handle
                self._set(owner, with_range(self._ranges(owner), new))
        except OSError as error:
            self.doubt([ino])
            raise fail(errno.ENOLCK, "this mount cannot remember more locks") from error

    def _note_without(self, owner: Owner, gone: Range) -> None:
        with self._guard:
            self._set(owner, without(self._ranges(owner), gone))

    def _note_refused(self, owner: Owner, wanted: Range) -> None:
        """flock(2): "the existing lock is first removed, and then a new lock is established", or is not."""
        if wanted.is_flock:
            with self._guard:
                same = [one for one in self._ranges(owner) if one.is_exclusive == wanted.is_exclusive]
                self._set(owner, same)

    def _set(self, owner: Owner, ranges: Iterable[Range]) -> None:
        """The new ones are written down before the old ones go. Raises ENFILE; then nothing is changed."""
        with self._guard:
            old = self._slots.get(owner, {})
            now: dict[Range, int] = {}
            try:
                for one in ranges:
                    slot = old.get(one)
                    lock = ProgramLock(owner.ino, self._handles[owner], one)
                    now[one] = self._kept.take(lock) if slot is None else slot
            except OSError:
                self._free_slots(now, old)
                raise
            self._free_slots(old, now)
            if now:
                self._slots[owner] = now
            else:
                self._slots.pop(owner, None)
                self._handles.pop(owner, None)

    def _free_slots(self, gone: dict[Range, int], but: dict[Range, int]) -> None:
        for one, slot in gone.items():
            if one not in but:
                self._kept.free(slot)

    # Doubt

    def renewed(self, inos: Iterable[int]) -> None:
        """The server has just renewed our ranges, which are of these inodes."""
        with self._guard:
            differing = self._inos() ^ set(inos)
            self._doubted |= differing - self._asking.keys()
            self._guard.notify_all()

    def doubt(self, inos: Iterable[int]) -> None:
        """What the server has of these may be something else than is noted."""
        with self._guard:
            self._doubted.update(inos)
            self._guard.notify_all()

    def _doubt_loop(self) -> None:
        while True:
            with self._guard:
                self._guard.wait_for(lambda: self._doubted or self._stopping)
                if self._stopping:
                    return
                ino = self._stated = self._doubted.pop()
            try:
                self._state(ino)
            except Exception as error:
                if not isinstance(error, OSError):
                    log.exception("the program locks of inode %d are stated again", ino)
                log.info("the program locks of inode %d are stated again: %s", ino, error)
                with self._guard:
                    self._doubted.add(ino)
                    self._guard.wait_for(lambda: self._stopping, DOUBT_SECONDS)

    def _state(self, ino: int) -> None:
        """``_stated`` is the inode already."""
        with self._guard:
            # Who waits has his request held back for POLL_SECONDS at most.
            self._guard.wait_for(lambda: not self._asking[ino] or self._stopping)
            ranges = [one for owner in self._slots if owner.ino == ino for one in self._slots[owner]]
        try:
            if not self._stopping:
                self._lose(ino, self._client.restate_ranges(ino, ranges))
        finally:
            with self._guard:
                self._stated = 0
                self._guard.notify_all()

    def _lose(self, ino: int, lost: list[Range]) -> None:
        for one in lost:
            self._note_without(Owner.of(ino, one), one)
        if lost:
            log.info("inode %d: %d locks of programs were lost", ino, len(lost))
        if any(one.is_exclusive for one in lost):
            self.on_lost(ino)

    # Interruption

    @contextmanager
    def _left_early(self, owner: Owner) -> Iterator[None]:
        """Who is interrupted in the block leaves the queue, and the server answers the waiting request."""

        def leave() -> None:
            with self._guard:
                self._to_leave.add(owner)
                self._guard.notify_all()

        try:
            with interruption.waking(leave):
                yield
        finally:
            with self._guard:
                self._to_leave.discard(owner)
                self._guard.notify_all()

    def _leave_loop(self) -> None:
        while True:
            with self._guard:
                self._guard.wait_for(lambda: self._to_leave or self._stopping)
                if self._stopping:
                    return
                leaving = list(self._to_leave)
            for owner in leaving:
                self._leave(owner)
            with self._guard:
                self._guard.wait_for(lambda: self._stopping or not self._to_leave, LEAVE_AGAIN_SECONDS)

    def _leave(self, owner: Owner) -> None:
        try:
            self._client.leave_range(owner.ino, owner.is_flock, owner.number)
        except OSError as error:
            log.info("the place in the queue of inode %d is left to expire: %s", owner.ino, error)
