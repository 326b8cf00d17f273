"""What a workload is, and what all of them need."""

import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfs.benchmarks.figures import Sample, Unit

MEGABYTE = 1e6


@dataclass(frozen=True)
class Load:
    """How much is done: bytes of the big file, number of small files, seconds of random access."""

    size_bytes: int
    files: int
    random_seconds: float


@dataclass(frozen=True)
class Workload:
    """Something to be done in one folder.

    ``run`` gives one sample a row. With ``cools`` it runs cold: what that names is forgotten first.
    """

    rows: tuple[tuple[str, Unit], ...]
    threads: int
    run: Callable[[Path, Load], tuple[Sample, ...]]
    cools: Callable[[Path, Load], Sequence[Path]] | None = None


def sync_file(path: Path) -> None:
    """Waits until the file or folder is on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """One write, as a rule; the kernel takes less when the disk is nearly full, and says why next time."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def together(first: Sample, second: Sample) -> Sample:
    """One after the other."""
    latencies = array("q", [*first.latencies_ns, *second.latencies_ns])
    return Sample(first.seconds + second.seconds, first.amount + second.amount, latencies)
