"""The temporary folders that are measured in: room for what is to come, and gone at the end."""

import errno
import logging
import os
import shutil
import signal
import tempfile
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dfs.benchmarks.work import Load
from wire.errors import fail

log = logging.getLogger(__name__)

PREFIX = ".dfs-bench-"
BLOCK_BYTES = 4096


def check_room(directory: Path, load: Load) -> None:
    """Raises OSError with a sentence: ENOSPC if the workloads would not fit, or why it cannot be known."""
    try:
        room = os.statvfs(directory)
    except OSError as error:
        raise fail(error.errno or errno.EIO, f"cannot measure {directory}: {error.strerror}") from error
    free = room.f_bavail * room.f_frsize
    needed = load.size_bytes + load.files * 2 * BLOCK_BYTES  # a file, and what the file system needs for it
    if room.f_blocks and free < needed:
        sentence = f"{directory} has {free / 1e6:,.0f} MB free, and {needed / 1e6:,.0f} MB are needed"
        raise fail(errno.ENOSPC, sentence)


@contextmanager
def temporary_folders(directories: Sequence[Path]) -> Iterator[list[Path]]:
    """A new folder in each directory. They are removed at the end, also after Ctrl-C or SIGTERM.

    Raises OSError with a sentence if one cannot be made; one that cannot be removed is logged."""
    folders: list[Path] = []
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        for directory in directories:
            folders.append(_new_folder(directory))
        yield folders
    finally:
        # Whoever presses Ctrl-C twice shall not be left with what the first one was about to remove.
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for folder in folders:
            _remove(folder)
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, previous)


def _new_folder(directory: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=directory))
    except OSError as error:
        sentence = f"cannot make a folder in {directory}: {error.strerror}"
        raise fail(error.errno or errno.EIO, sentence) from error


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        log.warning("%s could not be removed: %s", folder, error.strerror)


def _terminate(number: int, _frame: types.FrameType | None) -> None:
    raise SystemExit(128 + number)
