"""Options of a file server."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from servers.bounds import Bytes, Count, Period
from servers.keys import ServiceKeys


@dataclass(frozen=True)
class FilesConfig:
    """``root`` is the folder of its chunks; ``url`` is where others reach it."""

    keys: ServiceKeys
    root: Path
    name: str
    url: str
    directory_url: str
    capacity_bytes: Bytes = 0
    """At most this much is offered; 0: what the disk has."""
    reserve_bytes: Bytes = 64 * 1024 * 1024
    """Kept free on the disk: a full server must still be able to delete."""
    inline_bytes_max: Bytes = 64 * 1024
    """Chunks up to this size are database rows."""
    scrub_seconds: Period = 7 * 86400.0
    """Every chunk is read and checked once in this time."""
    inventory_seconds: Period = 6 * 3600.0
    forward_silence_seconds: Period = 3.0
    """A secondary that is silent for so long is left out of the receipt."""
    forwarding_requests_max: Count = 48
    """Requests that may wait for secondaries; more are sent to another server, so that servers that
    forward to each other never wait in a circle with all their threads."""
    clock: Callable[[], float] = time.time
