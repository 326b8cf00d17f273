"""What a mount is asked to be."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MountOptions:
    """The options of ``dfs mount``. ``mountpoint`` is as ``registry.real_place`` says it; paths absolute."""

    mountpoint: Path
    realm_url: str
    cache_dir: Path
    cache_bytes_max: int
    lock_wait_seconds: float
    deadline_seconds: float
    read_only: bool = False
    allow_other: bool = False
    trusted: bool = False
    binding: str = "auto"
    """See ``bindings.choose``."""
    passthrough: bool = True
    """The kernel may serve open files itself, where it can (native binding)."""
    consistency: str = "lease"
    """"lease": what is believed is true, because the directory tells what changes. "open": every open asks,
    and what is believed besides may be a second old."""
    hang_seconds: float = 30.0
    device: int | None = None
    """The descriptor of /dev/fuse, if another process has mounted it (mount.keeper)."""
