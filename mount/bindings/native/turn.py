"""Whose turn it is to wait for the kernel's next request, and how.

Who answers what is done in a moment *keeps* the turn meanwhile (mount.turns says why). He can lose it to who
waits for it and finds that it takes too long.

Programs that open file after file ask every few ten microseconds. To wake a thread that sleeps takes as long
as to answer, and several times as long if its processor sleeps too (that of a virtual machine is given back
to the host). So as long as requests come quickly the next one is *watched for* first: not for long, and
giving way to whoever wants the processor. If nothing comes, or the processor was wanted, nobody watches for a
while: longer each time, until it is worth it once.
"""

import os
import select
import threading
import time
from collections.abc import Callable

KEPT_SECONDS = 0.05
"""Longer nobody keeps the turn, whatever he may wait for without having said so: a disk, or a lock of one who
waits for it. Nothing depends on it: who has lost the turn goes on, and two are at work."""

QUIET_SECONDS = 1.0
"""After so long without a request it is looked less often whether somebody keeps the turn: each time wakes
the processor."""

WATCHED_SECONDS = 0.0002
"""For so long an idle processor of a virtual machine watches before it sleeps, where it is let (Linux,
Documentation/virt/guest-halt-polling.rst: ``guest_halt_poll_ns``)."""

PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.001, 0.1
"""How long nobody watches after it was in vain; twice as long each time."""


class Turn:
    """The turn to read ``descriptor``. Threads are told apart by an object of their own."""

    def __init__(self, descriptor: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._descriptor = descriptor
        self._clock = clock
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._comes_soon = False  # of who has the turn, as what follows
        self._watches_from = 0.0
        self._pause_seconds = PAUSE_SECONDS
        self._read_at = clock()
        self._turn = threading.Lock()
        """Held by who reads, and by ``_keeper``."""
        self._guard = threading.Lock()
        self._keeper: object = None  # under guard
        self._kept_seconds = KEPT_SECONDS

    def take(self) -> None:
        """Waits for it, or takes it from who keeps it too long."""
        while not self._turn.acquire(timeout=self._look_seconds()):
            with self._guard:
                kept_seconds = self._clock() - self._read_at
                if self._keeper is not None and kept_seconds > self._kept_seconds:
                    self._keeper = None
                    return

    def _look_seconds(self) -> float:
        """When who waits for the turn looks next whether it is kept too long."""
        is_quiet = self._clock() - self._read_at > QUIET_SECONDS
        return max(self._kept_seconds, QUIET_SECONDS) if is_quiet else self._kept_seconds

    def read(self, buffer: memoryview, *, may_watch: bool) -> int:
        """The next request, for who has the turn: how many bytes. Nobody should watch while other threads are
        at work: one thread of Python is carried out at a time. Raises OSError."""
        began = self._clock()
        if may_watch and self._comes_soon and began >= self._watches_from:
            self._watch(began)
        count = os.readv(self._descriptor, [buffer])
        self._read_at = self._clock()
        self._comes_soon = self._read_at - began < WATCHED_SECONDS
        return count

    def _watch(self, began: float) -> None:
        if self._poll.poll(0):
            return
        while self._clock() - began < WATCHED_SECONDS:
            os.sched_yield()
            if self._poll.poll(0):
                self._pause_seconds = PAUSE_SECONDS
                return
        self._watches_from = self._clock() + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, PAUSE_SECONDS_MAX)

    def keep(self, thread: object) -> None:
        """Who has the turn goes on having it while he answers what he has just read, unless it is taken."""
        with self._guard:
            self._keeper = thread

    def goes_on(self, thread: object) -> bool:
        """Whether who has kept the turn has it still; nobody takes it any more."""
        with self._guard:
            if self._keeper is not thread:
                return False
            self._keeper = None
            return True

    def pass_on(self, thread: object) -> None:
        """Somebody else shall read, if the turn is still kept by this one."""
        if self.goes_on(thread):
            self._turn.release()

    def give_up(self) -> None:
        """Who has the turn, and keeps nothing, has it no more."""
        self._turn.release()
