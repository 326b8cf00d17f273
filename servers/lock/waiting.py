"""The requests that are held back until a lock is free: whom to wake, and who is there to be given one.

All of this is in memory: after a restart nobody is held back, and the clients ask again. The lock here is
the last that a thread takes: nothing else is called with it held.
"""

import threading
from collections import defaultdict
from collections.abc import Hashable, Iterable, Set
from dataclasses import dataclass, field

Key = Hashable
"""What is waited for, and by whom. Equal keys are waited for together."""


@dataclass(eq=False)
class HeldBack:
    """A request for ``keys``; ``done`` is set when none of them is missing any more. One that is sent twice
    has the same ``name``."""

    name: Hashable
    keys: frozenset[Key]
    missing: set[Key]
    done: threading.Event = field(default_factory=threading.Event)


class Waiting:
    """Thread-safe. At most ``requests_max`` requests are held back at a time."""

    def __init__(self, requests_max: int) -> None:
        self._requests_max = requests_max
        self._changed = threading.Condition()
        self._requests: set[HeldBack] = set()
        self._by_key: defaultdict[Key, set[HeldBack]] = defaultdict(set)
        self._closed = False

    def enter(self, name: Hashable, keys: Iterable[Key]) -> HeldBack | None:
        """A place to wait for all of ``keys``, to be left by ``leave``; None if there is no room."""
        with self._changed:
            if self._closed or len(self._requests) >= self._requests_max:
                return None
            request = HeldBack(name, frozenset(keys), set(keys))
            self._requests.add(request)
            for key in request.keys:
                self._by_key[key].add(request)
            return request

    def leave(self, request: HeldBack) -> None:
        """The request is held back no more, nor is what was sent again under its name: there is one answer,
        and if that is a refusal nobody would hear of a grant. A second time it does nothing."""
        with self._changed:
            self._send_away({other for other in self._requests if other.name == request.name})

    def send_away(self, keys: Iterable[Key]) -> None:
        """Ends the wait of all requests for any of these: they are held back no more."""
        with self._changed:
            self._send_away({request for key in keys for request in self._by_key.get(key, ())})

    def _send_away(self, requests: Set[HeldBack]) -> None:
        self._requests -= requests
        for request in requests:
            request.done.set()
            for key in request.keys:
                self._by_key[key].remove(request)
                if not self._by_key[key]:
                    del self._by_key[key]
        self._changed.notify_all()

    def asks(self, key: Key) -> bool:
        """Whether a request for ``key`` is held back at this moment, so that its answer can bring it.
        ``missing`` does not say it: a late ``settle`` may be about an earlier request."""
        with self._changed:
            return key in self._by_key

    def settle(self, settled: Iterable[Key]) -> None:
        """These are waited for no more: granted, or out of the queue."""
        with self._changed:
            for key in settled:
                for request in self._by_key.get(key, ()):
                    request.missing.discard(key)
                    if not request.missing:
                        request.done.set()

    def close(self, patience_seconds: float) -> None:
        """Ends every wait, and waits until the requests have left; later ones are not held back."""
        with self._changed:
            self._closed = True
            for request in self._requests:
                request.done.set()
            self._changed.wait_for(lambda: not self._requests, patience_seconds)
