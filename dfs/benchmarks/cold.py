"""Makes a directory cold, as far as a user program can.

The kernel drops a file's clean pages on request. A DFS mount drops its clean copies and what it knows about
names when it is told so through its control socket. Whether it did is remembered, because without that a
"cold" figure says much less.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from mount import registry


class Cold:
    """How one directory is made cold. ``control`` is the socket of the mount that it is on, or None."""

    def __init__(self, control: Path | None) -> None:
        self._control = control
        self.complete = control is not None
        """Whether the mount forgot, every time that it was asked."""

    def forget(self, paths: Iterable[Path]) -> None:
        """Drops the content of files, and the listings of folders; on a mount, everything clean."""
        for path in paths:
            drop_pages(path)
        if self._control is not None and not ask_to_forget(self._control):
            self.complete = False


def drop_pages(path: Path) -> None:
    """Asks the kernel to drop the pages of a file or folder. What cannot be dropped stays: it is no error."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)  # dirty pages are not dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def ask_to_forget(control: Path) -> bool:
    """Whether the mount says that it has dropped its clean copies."""
    from mount.control import Request, ask

    try:
        ask(str(control), Request("drop-cache"))
    except (OSError, msgspec.DecodeError):
        return False
    return True


def control_socket(directory: Path) -> Path | None:
    """The control socket of the live DFS mount that ``directory`` is on; None if it is on something else."""
    real = directory.resolve()
    mounted = registry.mountpoints()
    nearest = next((str(folder) for folder in (real, *real.parents) if str(folder) in mounted), "/")
    for record in registry.records():
        if record.mountpoint == nearest and record.is_alive:
            return Path(record.control)
    return None
