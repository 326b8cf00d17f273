"""Changes that wait until others have heard of them.

A ``Waiting`` is one change's wait: for some whose word is awaited (``Awaited``), each up to the number of a
message or until it is awaited no more. All but ``Waiting.event`` belongs to the lock of who has them.
"""

import threading


class Waiting:
    """What a change waits for; ``event`` is set when nothing is left."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.left: set[Awaited] = set()

    def await_all(self, numbers: "dict[Awaited, int]") -> "Waiting":
        """Waits for each, up to its number. Returns itself."""
        for awaited, number in numbers.items():
            awaited.waiting.append((number, self))
            self.left.add(awaited)
        self._look()
        return self

    def heard(self, awaited: "Awaited") -> None:
        """Its word has come, or is not wanted any more."""
        self.left.discard(awaited)
        self._look()

    def replace(self, awaited: "Awaited", other: "Awaited") -> None:
        """It is the other that is waited for from now on, to its end."""
        self.left.discard(awaited)
        self.left.add(other)

    def _look(self) -> None:
        if not self.left:
            self.event.set()


class Awaited:
    """Somebody whose word changes wait for, at most until ``expires`` (seconds of the owner's clock)."""

    def __init__(self, session: int, expires: float) -> None:
        self.session = session
        self.expires = expires
        self.waiting: list[tuple[int, Waiting]] = []

    def release(self, seen: int | None = None) -> None:
        """Those need wait no longer that wait for a message up to ``seen``; None: all."""
        kept = []
        for number, waiting in self.waiting:
            if seen is None or number <= seen:
                waiting.heard(self)
            else:
                kept.append((number, waiting))
        self.waiting = kept

    def hand_over(self, other: "Awaited") -> None:
        """All who wait for this one wait for the other one's end."""
        for _, waiting in self.waiting:
            waiting.replace(self, other)
            other.waiting.append((0, waiting))
        self.waiting = []
