"""One big file: written, read, and changed at random places."""

import errno
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from dfs.benchmarks.figures import Sample, Unit
from dfs.benchmarks.timing import timed
from dfs.benchmarks.work import MEGABYTE, Load, Workload, sync_file, together, write_all
from wire.errors import fail

STREAM_BYTES = 1024 * 1024
BLOCK_BYTES = 4096
RANDOM_OFFSETS = 16384
"""So many are drawn beforehand for each thread, and used in turn."""


def big_file_workloads() -> list[Workload]:
    """In the order in which they must run: the file is written first."""
    rate, operations = Unit.MEGABYTES, Unit.OPERATIONS
    written = ("up to close", "with close", "with close and fsync")
    changed = ("random write 4 KiB", "random write 4 KiB, with close")
    return [
        Workload(tuple((f"sequential write, {which}", rate) for which in written), 1, sequential_write),
        Workload((("sequential read, cold", rate),), 1, sequential_read, lambda folder, _: [_big(folder)]),
        Workload((("sequential read, warm", rate),), 1, sequential_read),
        *(Workload((("random read 4 KiB", operations),), n, partial(random_read, n)) for n in (1, 4)),
        *(
            Workload(tuple((name, operations) for name in changed), n, partial(random_write, n))
            for n in (1, 4)
        ),
    ]


def sequential_write(folder: Path, load: Load) -> tuple[Sample, ...]:
    """A new file in 1 MiB writes: up to its close, with it, and until it is surely on disk."""
    path = _big(folder)
    path.unlink(missing_ok=True)
    block = bytearray(random.randbytes(STREAM_BYTES))

    def write(position: int) -> None:
        block[:8] = position.to_bytes(8, "big")  # no two blocks are the same
        write_all(fd, memoryview(block)[: load.size_bytes - position])

    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        writing = timed([range(0, load.size_bytes, STREAM_BYTES)], write)
    finally:
        closing = timed([[fd]], os.close)
    closed = together(writing, closing)
    durable = together(closed, timed([[path]], sync_file))
    return tuple(replace(sample, amount=load.size_bytes / MEGABYTE) for sample in (writing, closed, durable))


def sequential_read(folder: Path, load: Load) -> tuple[Sample, ...]:
    """The whole file in 1 MiB reads, open included. Raises EIO if something is missing."""
    buffer = bytearray(STREAM_BYTES)
    sizes: list[int] = []

    def reads() -> Iterator[int]:
        with open(_big(folder), "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                yield count

    sample = timed([reads()], sizes.append)
    if sum(sizes) != load.size_bytes:
        raise fail(errno.EIO, f"{sum(sizes)} of {load.size_bytes} bytes were read")
    return (replace(sample, amount=load.size_bytes / MEGABYTE),)


def random_read(threads: int, folder: Path, load: Load) -> tuple[Sample, ...]:
    """4 KiB reads anywhere in the file."""
    fd = os.open(_big(folder), os.O_RDONLY)

    def read(offset: int) -> None:
        os.pread(fd, BLOCK_BYTES, offset)

    try:
        return (timed(_random_offsets(threads, load), read, load.random_seconds),)
    finally:
        os.close(fd)


def random_write(threads: int, folder: Path, load: Load) -> tuple[Sample, ...]:
    """4 KiB writes anywhere in the file: without and with its close."""
    block = random.randbytes(BLOCK_BYTES)
    fd = os.open(_big(folder), os.O_WRONLY)

    def write(offset: int) -> None:
        os.pwrite(fd, block, offset)

    try:
        writing = timed(_random_offsets(threads, load), write, load.random_seconds)
    finally:
        closing = timed([[fd]], os.close)
    sync_file(_big(folder))  # what the kernel has still to write must not slow down the next workload
    return writing, replace(together(writing, closing), amount=writing.amount)


def _big(folder: Path) -> Path:
    return folder / "big"


def _random_offsets(threads: int, load: Load) -> list[Iterator[int]]:
    chance = random.Random(1)
    blocks = load.size_bytes // BLOCK_BYTES
    return [
        itertools.cycle([chance.randrange(blocks) * BLOCK_BYTES for _ in range(RANDOM_OFFSETS)])
        for _ in range(threads)
    ]
