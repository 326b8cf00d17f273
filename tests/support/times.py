"""Time in tests: a clock that stands, and waiting for what cannot be awaited."""

import time
from collections.abc import Callable

NOON = 1_700_000_000.0
POLL_SECONDS_MAX = 0.03


class Clock:
    """Stands still until ``now``, the seconds since the epoch, is moved."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now

    def ns(self) -> int:
        """The same in nanoseconds."""
        return round(self.now * 1e9)


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Returns when ``condition`` is true; for what another thread or process does and does not announce."""
    deadline = time.monotonic() + seconds
    pause = 0.001
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        time.sleep(pause)
        pause = min(2 * pause, POLL_SECONDS_MAX)
