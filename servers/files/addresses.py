"""Where the other file servers are: the directory's word, never a client's.

A client names secondaries by their ids. An address of its choosing would let it send this server anywhere,
also to where it cannot go itself.
"""

import threading
from collections.abc import Callable, Iterable, Sequence

from wire.messages.common import ServerAddress

ASK_SECONDS = 1.0
"""How long a request waits for the address of a server that has only just joined."""


class Addresses:
    """Thread-safe. ``ask`` has the directory asked soon (by a heartbeat); ``learn`` is told the answer."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._learned = threading.Condition()
        self._servers: dict[int, ServerAddress] = {}

    def learn(self, servers: Iterable[ServerAddress]) -> None:
        """These are all servers, and where they are now."""
        with self._learned:
            self._servers = {server.id: server for server in servers}
            self._learned.notify_all()

    def find(self, ids: Sequence[int]) -> list[ServerAddress]:
        """Where these servers are, in order; one that the directory does not know either is left out."""
        if not self._knows(ids):
            self._ask()
            with self._learned:
                self._learned.wait_for(lambda: self._knows(ids), ASK_SECONDS)
        servers = self._servers  # replaced as a whole, never changed
        return [servers[server] for server in ids if server in servers]

    def _knows(self, ids: Iterable[int]) -> bool:
        return all(server in self._servers for server in ids)
