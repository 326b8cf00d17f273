"""The lease: until when this mount may believe what the directory has told it without asking again.

As long as it runs, the directory tells this mount of every change of what it was told, and waits for its word
before the change is acknowledged (mount.feed). So what is believed under it is true. When it is over, the
directory waits no longer, and nothing is believed.

A *round* is what one feed has promised without a gap. What was believed in an earlier one is not believed.
"""

import threading
from collections.abc import Callable

from clients.session import now_awake_or_not

SAFE = 0.9
"""The part of a lease that is relied on: clocks do not run at the same pace."""


class Lease:
    """A ``cache.lifetimes.Lifetime``. The clock goes on while the machine sleeps, as the directory's does."""

    is_exact = True

    def __init__(self, clock: Callable[[], float] = now_awake_or_not) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._round = 0
        self._until = self._last = 0.0
        self.slack_seconds = float("inf")  # nothing is told before there is a lease

    def now(self) -> float:
        """To be noted before the question is sent whose answer will ``extend`` it."""
        return self._clock()

    def extend(self, asked_at: float, lease_seconds: float) -> None:
        """The directory has answered a question that was sent at ``asked_at``."""
        with self._guard:
            self._until = max(self._until, asked_at + SAFE * lease_seconds)
            self._last = max(self._last, self._until)
            self.slack_seconds = (1 - SAFE) / 2 * lease_seconds  # the rest is for the clocks

    def begin(self) -> None:
        """A new round. To be called before anything of it is asked."""
        with self._guard:
            self._round += 1

    def end(self) -> None:
        """Nothing is believed from now on."""
        with self._guard:
            self._round += 1
            self._until = 0.0

    @property
    def until(self) -> float:
        """By ``now``: whoever was told something before may believe it until then, though it was ended."""
        return self._last

    def mark(self) -> float:
        """See Lifetime: the round; 0 is none."""
        return self._round if self._clock() < self._until else 0

    def seconds(self, mark: float) -> float:
        """See Lifetime."""
        return max(0.0, self._until - self._clock()) if mark == self._round and mark else 0.0
