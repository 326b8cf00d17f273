"""A lock server in this process, with sessions and a clock that stands."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from clients.lock import LockClient
from clients.session import Channel, Keyring, Wire
from servers.database import sqlite_url
from servers.keys import new_realm_keys
from servers.lock.app import make_server
from servers.lock.config import LockConfig
from servers.lock.range_queue import Place
from tests.support.inprocess import InProcessWire, make_keyring
from tests.support.times import Clock, wait_until
from wire.messages.lock import Acquired, LockInfo, Range, RangeAnswer
from wire.tickets import Role

URL = "http://lock"
LEASE, PLACE, ORDER = 15.0, 5.0, 10.0
WAIT = 20.0
"""Seconds that a request is held back at most: longer than any test waits for its answer."""

PATIENCE = 10.0
"""Seconds after which a test gives up."""


class LockRealm:
    """A lock server that can be restarted, and sessions that speak to it."""

    def __init__(self, folder: Path, waiting_requests_max: int = 48) -> None:
        self.clock = Clock()
        self.keys = new_realm_keys()["lock"]
        self.config = LockConfig(
            self.keys,
            sqlite_url(folder / "lock.db"),
            LEASE,
            PLACE,
            ORDER,
            waiting_requests_max,
            clock=self.clock,
        )
        self.wire = InProcessWire()
        self.server = make_server(self.config)
        self.wire.apps[URL] = self.server.app
        self._threads = ThreadPoolExecutor(8)

    def close(self) -> None:
        """Also ends what still waits."""
        self.server.close()
        self._threads.shutdown()

    def keyring(self, user: str, admin: bool = False) -> Keyring:
        return make_keyring(self.keys.tickets, user=user, admin=admin, client="there")

    def client(self, user: str, wire: Wire | None = None, admin: bool = False) -> LockClient:
        """A session of its own."""
        keyring = self.keyring(user, admin)
        return LockClient(Channel(wire or self.wire, URL, Role.LOCK, keyring, deadline_seconds=30))

    def waits(self, client: LockClient, *inos: int) -> "Future[Acquired]":
        """A request that is held back, in a thread of its own; returns when it is in the last queue."""
        length = len(self.queue(inos[-1]))
        future = self._threads.submit(client.acquire, inos, WAIT)
        wait_until(lambda: len(self.queue(inos[-1])) > length)
        return future

    def waits_for_range(self, client: LockClient, ino: int, wanted: Range) -> "Future[RangeAnswer]":
        """A request for a range that is held back, in a thread of its own; returns when it is queued."""
        length = len(self.range_queue(ino))
        future = self._threads.submit(client.set_range, ino, wanted, WAIT)
        wait_until(lambda: len(self.range_queue(ino)) > length)
        return future

    def range_queue(self, ino: int) -> list[Place]:
        """Who waits for ranges."""
        return self.server.service.range_queue.of_inode(ino)

    def pass_time(self, seconds: float) -> None:
        """Puts the clock forward and does what the alarm does then."""
        self.clock.now += seconds
        self.server.service.expire()

    def restart(self, **changes: Any) -> None:
        """As after a crash, as far as the database is concerned; with these changes of its configuration."""
        self.server.close()
        self.config = replace(self.config, **changes)
        self.server = make_server(self.config)
        self.wire.apps[URL] = self.server.app

    def lock(self, ino: int) -> LockInfo | None:
        """How people see it."""
        locks = self.server.service.locks().locks
        return next((lock for lock in locks if lock.ino == ino), None)

    def queue(self, ino: int) -> list[str]:
        """Who waits for a held lock."""
        lock = self.lock(ino)
        return [waiter.user for waiter in lock.queue] if lock else []
