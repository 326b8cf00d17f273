"""Options of the directory server."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from servers.keys import ServiceKeys
from wire.limits import DEAD_SECONDS, HEARTBEAT_SECONDS, SUSPECT_SECONDS


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
    clock_ns: Callable[[], int] = time.time_ns
