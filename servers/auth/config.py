"""Options of the authentication server."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from servers.bounds import Count, Period
from servers.keys import ServiceKeys
from wire.limits import TICKET_SECONDS


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
    kdf_memory_kib: Annotated[int, Meta(ge=32)] = 65536
    """RFC 9106, section 3.1: eight for each of four lanes at least."""
    kdf_iterations: Count = 2
    clock: Callable[[], float] = time.time
