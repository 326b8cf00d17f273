"""Files that are on disk when a call returns, and that a crash leaves as they were or as they shall be."""

import os
from pathlib import Path


def write_new(path: Path, data: bytes) -> None:
    """Makes a file (0600) with ``data`` and waits until the data is on disk; its name is not yet."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fdatasync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Waits until the names in ``folder`` are on disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, data: bytes) -> None:
    """The file has ``data`` from now on, whatever it was before; one process at a time."""
    fresh = path.with_name(f"{path.name}.new")
    write_new(fresh, data)
    os.rename(fresh, path)
    sync_folder(path.parent)
