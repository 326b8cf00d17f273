"""Many small files, each thread's in a folder of its own; and documents that are saved as editors do."""

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dfs.benchmarks.figures import Sample, Unit
from dfs.benchmarks.timing import timed
from dfs.benchmarks.work import Load, Workload, write_all
from wire.errors import fail

SMALL = random.randbytes(4096)
DOCUMENT = random.randbytes(16 * 1024)
FILES_A_SAVE = 20
"""For every so many small files, a document is saved once: it waits for the disk each time."""


def small_file_workloads(threads: int) -> list[Workload]:
    """In the order in which they must run: create, list, stat, read, delete."""

    def folders(folder: Path, _: Load) -> list[Path]:
        return small_folders(folder, threads)

    def files(folder: Path, load: Load) -> list[Path]:
        return list(itertools.chain(*small_paths(folder, load.files, threads)))

    def each(operation: Callable[[Path], object]) -> Callable[[Path, Load], tuple[Sample, ...]]:
        return lambda folder, load: (timed(small_paths(folder, load.files, threads), operation),)

    def create(folder: Path, load: Load) -> tuple[Sample, ...]:
        for own in folders(folder, load):
            own.mkdir(exist_ok=True)
        return each(create_file)(folder, load)

    def list_cold(folder: Path, load: Load) -> tuple[Sample, ...]:
        return list_attributes(folders(folder, load), load.files)

    def list_warm(folder: Path, load: Load) -> tuple[Sample, ...]:
        return list_cold(folder, load)[:1]

    def row(name: str, unit: Unit = Unit.OPERATIONS) -> tuple[str, Unit]:
        return f"small files: {name}", unit

    whole = row("list all with attributes, cold", Unit.SECONDS)
    return [
        Workload((row("create"),), threads, create),
        Workload((row("list with attributes, cold"), whole), threads, list_cold, folders),
        Workload((row("list with attributes, warm"),), threads, list_warm),
        Workload((row("stat"),), threads, each(os.stat)),
        Workload((row("open, read, close, cold"),), threads, each(read_file), files),
        Workload((row("open, read, close, again"),), threads, each(read_file)),
        Workload((row("delete"),), threads, each(os.unlink)),
    ]


def save_workload(threads: int) -> Workload:
    """Each thread saves a document of its own, again and again."""

    def run(folder: Path, load: Load) -> tuple[Sample, ...]:
        times = max(load.files // FILES_A_SAVE // threads, 1)
        return (timed([[folder / f"document-{thread}"] * times for thread in range(threads)], save),)

    return Workload((("save as editors do", Unit.OPERATIONS),), threads, run)


def small_folders(folder: Path, threads: int) -> list[Path]:
    """One folder a thread."""
    return [folder / f"small-{threads}-{thread}" for thread in range(threads)]


def small_paths(folder: Path, files: int, threads: int) -> list[list[Path]]:
    """The files of each thread, as even as can be."""
    return [
        [own / f"file-{number:06}" for number in range(thread, files, threads)]
        for thread, own in enumerate(small_folders(folder, threads))
    ]


def create_file(path: Path) -> None:
    """Makes a new file of 4 KiB: open, write, close."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_all(fd, SMALL)
    finally:
        os.close(fd)


def read_file(path: Path) -> None:
    """Opens, reads and closes a small file. Raises EIO if something is missing."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if len(os.read(fd, len(SMALL))) != len(SMALL):
            raise fail(errno.EIO, f"{path.name} is too short")
    finally:
        os.close(fd)


def list_attributes(folders: Sequence[Path], files: int) -> tuple[Sample, ...]:
    """Every entry with its attributes, as ``ls -l`` does: the rate, and the seconds for all of them.

    Raises EIO if not all files are listed."""

    def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
        with os.scandir(folder) as found:
            yield from found

    sample = timed([entries(folder) for folder in folders], lambda entry: entry.stat(follow_symlinks=False))
    if sample.amount != files:
        raise fail(errno.EIO, f"{sample.amount:.0f} of {files} files were listed")
    return sample, Sample(sample.seconds, 1, [round(sample.seconds * 1e9)])


def save(path: Path) -> None:
    """Writes a new version beside the old one, waits for the disk, and renames it over the old one."""
    temporary = path.with_suffix(".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write_all(fd, DOCUMENT)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
