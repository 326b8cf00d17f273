"""A lock that may be held for long: who waits says for how long and for what else, and can be interrupted."""

import threading
from collections.abc import Callable

from mount import interruption


class Gate:
    """One thread at a time is inside; not one that is inside already. As a context manager it is entered
    whatever it takes, also by who is interrupted."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._is_taken = False

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_taken)
            self._is_taken = True

    def __exit__(self, *_: object) -> None:
        self.leave()

    def enter(self, seconds: float, when: Callable[[], bool]) -> bool:
        """Enters when nobody is inside and ``when()`` is true, which may change only by who is inside. False
        if that takes longer. Raises InterruptedError."""

        def is_open() -> bool:
            return not self._is_taken and when()

        with interruption.waking(self._wake), self._changed:
            self._changed.wait_for(lambda: is_open() or interruption.is_interrupted(), seconds)
            if not is_open():
                interruption.check()
                return False
            self._is_taken = True
            return True

    def leave(self) -> None:
        """Lets the next one in."""
        with self._changed:
            self._is_taken = False
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
