"""Options of the authentication server."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from servers.bounds import Period
from servers.keys import ServiceKeys
from wire.limits import TICKET_SECONDS
from wire.messages.auth import Iterations, MemoryKib


@dataclass(frozen=True)
class AuthConfig:
    """``database`` is an SQLAlchemy URL; the other URLs are what clients are told."""

    keys: ServiceKeys
    database: str
    directory_url: str
    lock_url: str
    ticket_seconds: Period = TICKET_SECONDS
    session_idle_seconds: Period = 30 * 86400.0
    """A session that is not renewed for so long has ended."""
    kdf_memory_kib: MemoryKib = 65536
    kdf_iterations: Iterations = 2
    """Both within what clients accept: else nobody could log in."""
    clock: Callable[[], float] = time.time
