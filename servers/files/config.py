"""Options of a file server."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from servers.keys import ServiceKeys


@dataclass(frozen=True)
class FilesConfig:
    """``root`` is the folder of its chunks; ``url`` is where others reach it."""

    keys: ServiceKeys
    root: Path
    name: str
    url: str
    directory_url: str
    capacity_bytes: int = 0
    """At most this much is offered; 0: what the disk has."""
    inline_bytes_max: int = 64 * 1024
    """Chunks up to this size are database rows."""
    scrub_seconds: float = 7 * 86400.0
    """Every chunk is read and checked once in this time."""
    inventory_seconds: float = 6 * 3600.0
    clock: Callable[[], float] = time.time
