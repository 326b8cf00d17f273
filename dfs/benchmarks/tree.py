"""A tree of directories that programs walk through again and again, as find(1), git and make do."""

import errno
import os
from pathlib import Path

from dfs.benchmarks.figures import Sample, Unit
from dfs.benchmarks.timing import timed
from dfs.benchmarks.work import Load, Workload
from wire.errors import fail

FILES_A_DIRECTORY = 16


def tree_workloads() -> list[Workload]:
    """In the order in which they must run: create, walk, delete."""

    def create(folder: Path, load: Load) -> tuple[Sample, ...]:
        (folder / "tree").mkdir()
        return (timed([_directories(folder, load)], _make),)

    def walk(folder: Path, load: Load) -> tuple[Sample, ...]:
        return (timed([_directories(folder, load)], _list),)

    def delete(folder: Path, load: Load) -> tuple[Sample, ...]:
        sample = timed([_directories(folder, load)], _remove)
        (folder / "tree").rmdir()
        return (sample,)

    def row(name: str) -> tuple[tuple[str, Unit], ...]:
        return ((f"tree: {name}", Unit.OPERATIONS),)

    return [
        Workload(row("create directories with files"), 1, create),
        Workload(row("list directories, cold"), 1, walk, _directories),
        Workload(row("list directories, again"), 1, walk),
        Workload(row("delete directories with files"), 1, delete),
    ]


def _directories(folder: Path, load: Load) -> list[Path]:
    return [
        folder / "tree" / f"directory-{number:05}" for number in range(-(-load.files // FILES_A_DIRECTORY))
    ]


def _files(directory: Path) -> list[Path]:
    return [directory / f"file-{number:02}" for number in range(FILES_A_DIRECTORY)]


def _make(directory: Path) -> None:
    directory.mkdir()
    for path in _files(directory):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _list(directory: Path) -> None:
    found = len(os.listdir(directory))
    if found != FILES_A_DIRECTORY:
        raise fail(errno.EIO, f"{found} of {FILES_A_DIRECTORY} files were listed")


def _remove(directory: Path) -> None:
    for path in _files(directory):
        path.unlink()
    directory.rmdir()
