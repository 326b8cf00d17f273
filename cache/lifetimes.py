"""For how long an answer of the directory is believed."""

import time
from collections.abc import Callable
from typing import Protocol


class Lifetime(Protocol):
    """How long answers are believed. Thread-safe."""

    is_exact: bool
    """Whether what is believed is true: then nobody need ask to be sure."""

    slack_seconds: float
    """For so much longer may somebody believe what he was told to believe for ``seconds``."""

    def mark(self) -> float:
        """To be kept with the answer to a question that is asked now."""

    def seconds(self, mark: float) -> float:
        """For how much longer such an answer holds, 0 if it does no more."""


class ForSeconds:
    """Believed for some seconds, true or not."""

    is_exact = False
    slack_seconds = float("inf")

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock

    def mark(self) -> float:
        """See Lifetime: the end."""
        return self._clock() + self._seconds

    def seconds(self, mark: float) -> float:
        """See Lifetime."""
        return max(0.0, mark - self._clock())
