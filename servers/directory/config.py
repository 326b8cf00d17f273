"""Options of the directory server."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from servers.keys import ServiceKeys
from wire.limits import DEAD_SECONDS, HEARTBEAT_SECONDS, LEASE_SECONDS, SUSPECT_SECONDS


@dataclass(frozen=True)
class DirectoryConfig:
    """``database`` is an SQLAlchemy URL."""

    keys: ServiceKeys
    database: str
    replicas: int = 2
    """Wanted copies of each chunk."""
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    suspect_seconds: float = SUSPECT_SECONDS
    dead_seconds: float = DEAD_SECONDS
    repair_delay_seconds: float = 60.0
    """How long a dead server's chunks are waited for before they are copied elsewhere."""
    retention_seconds: float = 86400.0
    """How long replaced versions and removed files are kept."""
    grace_seconds: float = 3600.0
    """How long a condemned chunk is kept, and how long a receipt is believed."""
    maintenance_seconds: float = 1.0
    """Between two rounds of repair and collection."""
    lease_seconds: float = LEASE_SECONDS
    """How long a promise holds after a session's last poll of its feed."""
    promises_max: int = 1_000_000
    """Promises that are kept (70 to 80 bytes each); beyond, the oldest are broken."""
    feed_port: int = 0
    """Where feeds are polled; 0: any free port."""
    feed_host: str = "127.0.0.1"
    clock_ns: Callable[[], int] = time.time_ns
