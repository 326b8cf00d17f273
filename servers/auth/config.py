"""Options of the authentication server."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from servers.keys import ServiceKeys
from wire.limits import TICKET_SECONDS


@dataclass(frozen=True)
class AuthConfig:
    """``database`` is an SQLAlchemy URL; the other URLs are what clients are told."""

    keys: ServiceKeys
    database: str
    directory_url: str
    lock_url: str
    ticket_seconds: float = TICKET_SECONDS
    session_idle_seconds: float = 30 * 86400.0
    """A session that is not renewed for so long has ended."""
    kdf_memory_kib: int = 65536
    kdf_iterations: int = 2
    clock: Callable[[], float] = time.time
