"""The requests that are held back until a lock is free: whom to wake, and who is there to be given one.

All of this is in memory: after a restart nobody is held back, and the clients ask again. The lock here is
the last that a thread takes: nothing else is called with it held.
"""

import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field


@dataclass(eq=False)
class HeldBack:
    """A request of ``session`` for ``inos``; ``done`` is set when none of them is missing any more."""

    session: int
    inos: frozenset[int]
    missing: set[int]
    done: threading.Event = field(default_factory=threading.Event)


class Waiting:
    """Thread-safe. At most ``requests_max`` requests are held back at a time."""

    def __init__(self, requests_max: int) -> None:
        self._requests_max = requests_max
        self._changed = threading.Condition()
        self._by_session: dict[int, list[HeldBack]] = {}
        self._count = 0
        self._closed = False

    def enter(self, session: int, inos: Collection[int]) -> HeldBack | None:
        """A place to wait for all of ``inos``, to be left by ``leave``; None if there is no room."""
        with self._changed:
            if self._closed or self._count >= self._requests_max:
                return None
            request = HeldBack(session, frozenset(inos), set(inos))
            self._by_session.setdefault(session, []).append(request)
            self._count += 1
            return request

    def leave(self, request: HeldBack) -> None:
        """The request is held back no more; a second time it does nothing."""
        with self._changed:
            requests = self._by_session.get(request.session, [])
            if request in requests:
                requests.remove(request)
                self._count -= 1
                if not requests:
                    del self._by_session[request.session]
                self._changed.notify_all()

    def asks(self, session: int, ino: int) -> bool:
        """Whether a request of ``session`` for ``ino`` is held back at this moment, so that its answer can
        bring the lock. ``missing`` does not say it: a late ``settle`` may be about an earlier request."""
        with self._changed:
            return any(ino in request.inos for request in self._by_session.get(session, ()))

    def settle(self, settled: Iterable[tuple[int, int]]) -> None:
        """These pairs of session and inode are waited for no more: granted, or out of the queue."""
        with self._changed:
            for session, ino in settled:
                for request in self._by_session.get(session, ()):
                    request.missing.discard(ino)
                    if not request.missing:
                        request.done.set()

    def close(self, patience_seconds: float) -> None:
        """Ends every wait, and waits until the requests have left; later ones are not held back."""
        with self._changed:
            self._closed = True
            for requests in self._by_session.values():
                for request in requests:
                    request.done.set()
            self._changed.wait_for(lambda: not self._count, patience_seconds)
