"""What a mount is asked to be."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MountOptions:
    """The options of ``dfs mount``. Sizes in bytes, times in seconds, paths absolute."""

    mountpoint: Path
    realm_url: str
    cache_dir: Path
    cache_size: int
    lock_wait: float
    deadline: float
    read_only: bool = False
    allow_other: bool = False
    trusted: bool = False
