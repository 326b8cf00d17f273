"""The locks that programs of this mount take for themselves: flock(2), and ranges by fcntl(2).

The lock server grants them, keeps the queues, and decides who is next; what it has granted is noted
(``program_notes``), because only a mount knows when a program has closed a file or ended.

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

from clients.lock import LockClient
from mount import interruption
from mount.leaving import Leaving
from mount.program_notes import Owner, ProgramNotes
from mount.slate import Slate
from wire.errors import fail
from wire.messages.lock import Range, RangeAnswer

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""One held-back request: a grant to a waiter that has died meanwhile costs the next one this and a lease."""

BUSY_SERVER_PAUSE_SECONDS = 0.25

DOUBT_SECONDS = 1.0
"""How long after a failure what is in doubt is stated again."""

_REFUSALS = frozenset({errno.EDEADLK, errno.ENOLCK, errno.EPERM, errno.EACCES, errno.EINVAL})
"""What the server says when it has changed nothing."""


class ProgramLocks:
    """Thread-safe. ``start`` before use, ``close`` afterwards. ``on_lost(ino)`` is told that an exclusive
    range is somebody else's now; it must not wait."""

    def __init__(self, client: LockClient, slate: Slate, leaving: Leaving) -> None:
        self._client = client
        self._leaving = leaving
        self._notes = ProgramNotes(slate)
        self.on_lost: Callable[[int], None] = lambda _ino: None
        self._guard = threading.Condition()
        self._asking: Counter[int] = Counter()
        self._freeing: Counter[int] = Counter()
        self._frees_begun = 0
        self._doubted = self._notes.inos()
        self._differed: set[int] = set()
        """Where the last renewal differed: perhaps an answer was on its way, and none has come since."""
        self._stated: int = 0
        """The inode that is being stated anew."""
        self._stopping = False
        self._thread = threading.Thread(target=self._doubt_loop, name="program-locks-doubt", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Frees everything, as far as the lock server can be reached: no program has a file open any more."""
        with self._guard:
            self._stopping = True
            self._guard.notify_all()
        self._thread.join()
        inos = self._notes.inos()
        try:
            for ino in inos:
                self._client.restate_ranges(ino, [])
        except OSError as error:
            log.info("the program locks of %d inodes are left to expire: %s", len(inos), error)

    def has_any(self) -> bool:
        """Whether there is anything to be renewed."""
        return bool(self._notes)

    def is_exclusive(self, ino: int, within: Range) -> bool:
        """Whether the owner has an exclusive lock of some of these bytes."""
        return any(one.is_exclusive for one in self._notes.within(ino, within))

    def has_some(self, ino: int, within: Range) -> bool:
        """Whether the owner has a lock of any of these bytes."""
        return any(True for _ in self._notes.within(ino, within))

    def owners_through(self, ino: int, handle: int) -> list[Owner]:
        """Those who have locked through this open file last."""
        return self._notes.owners_through(ino, handle)

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
                    self._notes.refuse(ino, wanted)
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
        if not self.has_some(ino, gone):
            return
        with self._freeing_of(ino), self._asked(ino):
            self._has_changed(ino)
            self._notes.remove(ino, gone)
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
            with self._leaving.when_interrupted(lambda: self._leave(owner)):
                return self._client.set_range(ino, wanted, wait_seconds)
        except OSError as error:
            if error.errno not in _REFUSALS:  # it may have been granted
                self.doubt([ino])
            raise

    def _note(self, ino: int, new: Range, handle: int) -> None:
        """Granted. Raises ENOLCK if no more can be remembered."""
        self._has_changed(ino)
        try:
            self._notes.add(ino, new, handle)
        except OSError as error:
            self.doubt([ino])
            raise fail(errno.ENOLCK, "this mount cannot remember more locks") from error

    def _has_changed(self, ino: int) -> None:
        """Why the last renewal differed."""
        with self._guard:
            self._differed.discard(ino)

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

    # Doubt

    def renewed(self, inos: Iterable[int]) -> None:
        """The server has just renewed our ranges, which are of these inodes."""
        with self._guard:
            differing = self._notes.inos() ^ set(inos)
            # An answer may be on its way. Not twice if none has come: who asks there waits, perhaps for this.
            self._doubted |= differing - self._asking.keys() | differing & self._differed
            self._differed = differing - self._doubted
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
        try:
            if not self._stopping:
                self._lose(ino, self._client.restate_ranges(ino, self._notes.of_inode(ino)))
        finally:
            with self._guard:
                self._stated = 0
                self._guard.notify_all()

    def _lose(self, ino: int, lost: list[Range]) -> None:
        for one in lost:
            self._notes.remove(ino, one)
        if lost:
            log.info("inode %d: %d locks of programs were lost", ino, len(lost))
        if any(one.is_exclusive for one in lost):
            self.on_lost(ino)

    def _leave(self, owner: Owner) -> None:
        """He waits no more, and the server answers a request that waits for him."""
        try:
            self._client.leave_range(owner.ino, owner.is_flock, owner.number)
        except OSError as error:
            log.info("the place in the queue of inode %d is left to expire: %s", owner.ino, error)
