"""A thread that does something when it is time: here, ending leases and places."""

import logging
import math
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

SLEEP_SECONDS_MAX = 3600.0
AGAIN_SECONDS = 1.0
"""How long after a failure it is tried again."""


class Alarm:
    """Calls ``ring`` at the earliest of the times that were set, by ``clock``. Thread-safe."""

    def __init__(self, clock: Callable[[], float], ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._changed = threading.Condition()
        self._due = math.inf
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="lock-alarm", daemon=True)

    def start(self) -> None:
        """From now on it rings."""
        self._thread.start()

    def close(self) -> None:
        """It rings no more, and does not ring now."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def set(self, at: float) -> None:
        """Rings at ``at`` at the latest."""
        with self._changed:
            if at < self._due:
                self._due = at
                self._changed.notify()

    def _run(self) -> None:
        while self._wait():
            try:
                self._ring()
            except Exception:  # whatever it was: without this thread no lease would ever end again
                log.exception("ending what is over failed, it is tried again")
                self.set(self._clock() + AGAIN_SECONDS)

    def _wait(self) -> bool:
        """Sleeps until it is time, or closed: False. What is set afterwards counts for the next ring."""
        with self._changed:
            while not self._closing and (left := self._due - self._clock()) > 0:
                self._changed.wait(min(left, SLEEP_SECONDS_MAX))
            self._due = math.inf
            return not self._closing
