"""Options of the lock server."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from servers.bounds import Count, Period, Seconds
from servers.keys import ServiceKeys
from wire.limits import LOCK_LEASE_SECONDS


@dataclass(frozen=True)
class LockConfig:
    """``database`` is an SQLAlchemy URL."""

    keys: ServiceKeys
    database: str
    lease_seconds: Annotated[float, Meta(ge=0.5, le=60.0)] = LOCK_LEASE_SECONDS
    """How long a lock or range is kept without a renewal. Clients are told, and renew three times in it; a
    mount that is to go on after a dead one waits for the end of each of its locks."""
    place_seconds: Period = 5.0
    """How long a waiter that is not asking at the moment keeps its place in a queue."""
    order_seconds: Seconds = 10.0
    """How long somebody waits for a range only because others came before him."""
    waiting_requests_max: Count = 48
    """Held-back requests; more are answered at once, so that renewals always find a thread."""
    user_locks_max: Count = 20_000
    """Locks, ranges and places in queues of all sessions of one user together."""
    clock: Callable[[], float] = time.time
