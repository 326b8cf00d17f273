"""Options of the directory server."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from servers.bounds import Count, Period, Seconds
from servers.keys import ServiceKeys
from wire.limits import DEAD_SECONDS, HEARTBEAT_SECONDS, LEASE_SECONDS, SUSPECT_SECONDS


@dataclass(frozen=True)
class DirectoryConfig:
    """``database`` is an SQLAlchemy URL."""

    keys: ServiceKeys
    database: str
    replicas: Annotated[int, Meta(ge=1, le=8)] = 2
    """Wanted copies of each chunk: with more, PutChunk could not name all who get it."""
    heartbeat_seconds: Period = HEARTBEAT_SECONDS
    suspect_seconds: Period = SUSPECT_SECONDS
    dead_seconds: Period = DEAD_SECONDS
    repair_delay_seconds: Seconds = 60.0
    """How long a dead server's chunks are waited for before they are copied elsewhere."""
    retention_seconds: Seconds = 86400.0
    """How long replaced versions and removed files are kept."""
    grace_seconds: Seconds = 3600.0
    """How long a condemned chunk is kept, and how long a receipt is believed."""
    maintenance_seconds: Period = 1.0
    """Between two rounds of repair and collection."""
    lease_seconds: Annotated[float, Meta(ge=0.1, le=LEASE_SECONDS)] = LEASE_SECONDS
    """How long a promise holds after a session's last poll of its feed. Clients count on it that a change
    waits no longer than twice LEASE_SECONDS until others know of it."""
    promises_max: Count = 1_000_000
    """Promises that are kept (70 to 80 bytes each); beyond, the oldest are broken."""
    feed_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Where feeds are polled; 0: any free port."""
    feed_host: str = "127.0.0.1"
    clock_ns: Callable[[], int] = time.time_ns
