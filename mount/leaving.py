"""Leaving a queue of the lock server when the program does not want to wait any longer.

Who waits has one long request under way, which the server answers as soon as the queue is left. Leaving may
overtake that request, which then takes the place anew: so the queue is left again and again until there is
an answer. Who waits leaves it once more after that, when nothing can take the place any more.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mount import interruption

log = logging.getLogger(__name__)

LEAVE_AGAIN_SECONDS = 0.05

Leave = Callable[[], None]
"""Asks the lock server to answer; what comes of it is the caller's."""


class Leaving:
    """Thread-safe. One thread asks, because who says that a program is interrupted must not wait; ``start``
    before use, ``close`` afterwards. ``_changed`` is never held during a call to the service."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._wanted: dict[object, Leave] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="leaving", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends it. Who waits still is answered when the time of his request is over."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    @contextmanager
    def when_interrupted(self, leave: Leave) -> Iterator[None]:
        """Around a request that waits: ``leave`` is called, over and over, if the program is interrupted in
        the block or was before."""
        waiting = object()

        def wake() -> None:
            with self._changed:
                self._wanted[waiting] = leave
                self._changed.notify_all()

        try:
            with interruption.waking(wake):
                yield
        finally:
            with self._changed:
                self._wanted.pop(waiting, None)
                self._changed.notify_all()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._stopping)
                if self._stopping:
                    return
                leaves = list(self._wanted.values())
            for leave in leaves:
                self._try(leave)
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or not self._wanted, LEAVE_AGAIN_SECONDS)

    def _try(self, leave: Leave) -> None:
        try:
            leave()
        except Exception:  # this thread must not end: no program could be interrupted any more
            log.exception("a place in a queue is left to expire")
