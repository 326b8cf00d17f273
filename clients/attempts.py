"""Attempts that threads make one after another, with one outcome for all who waited for the same.

Without it, when a service is away, each of the threads that wait for their turn would then serve a whole
deadline of its own.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from wire.errors import Problem, from_problem, to_problem


class Attempts:
    """Attempts at one thing. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._problem: Problem | None = None
        self._failed_at = 0.0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """This thread's turn, for a block that asks a service. Raises the OSError with which the last turn
        has failed, if that was while this thread waited; the block must look first whether there is still
        anything to do."""
        began = time.monotonic()
        with self._lock:
            if self._problem is not None and self._failed_at >= began:
                raise from_problem(self._problem)
            try:
                yield
            except OSError as error:
                self._problem, self._failed_at = to_problem(error), time.monotonic()
                raise
            self._problem = None
