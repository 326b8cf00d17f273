"""``dfs bench``: how fast a directory is, alone or beside others."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dfs.benchmarks.cold import Cold, control_socket
from dfs.benchmarks.figures import Figure
from dfs.benchmarks.folders import check_room, temporary_folders
from dfs.benchmarks.report import WIDTH, as_json, as_table
from dfs.benchmarks.runner import ROUNDS, Site, measure
from dfs.benchmarks.work import Load

FULL = Load(size_bytes=256 * 1024 * 1024, files=2000, random_seconds=1.0)
QUICK = Load(size_bytes=4 * 1024 * 1024, files=100, random_seconds=0.05)


@click.command()
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="DIR",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Another directory to compare with; may be given several times.",
)
@click.option("--json", "json_wanted", is_flag=True, help="Print a list of objects instead of a table.")
@click.option(
    "--size", metavar="BYTES", type=click.IntRange(min=4096), help="Of the big file; 256 MiB by default."
)
@click.option(
    "--files", metavar="N", type=click.IntRange(min=1), help="Number of small files; 2000 by default."
)
@click.option("--quick", is_flag=True, help="A few seconds with little data: a look, not a measurement.")
def bench(
    mountpoint: Path,
    against: tuple[Path, ...],
    json_wanted: bool,
    size: int | None,
    files: int | None,
    quick: bool,
) -> None:
    """Measure how fast the directory MOUNTPOINT is.

    Works in any directory, mounted or not, in a temporary folder that is removed at the end. With --against
    the directories are measured by turns, and the ratios say how many times as fast MOUNTPOINT is.
    """
    load = QUICK if quick else FULL
    load = replace(load, size_bytes=size or load.size_bytes, files=files or load.files)
    figures = _measure([mountpoint, *against], load)
    if json_wanted:
        click.echo(as_json(figures))
    else:
        console = Console(width=None if sys.stdout.isatty() else WIDTH)
        console.print(as_table(figures, ROUNDS, [str(path) for path in against]))


def _measure(directories: list[Path], load: Load) -> list[Figure]:
    for directory in directories:
        check_room(directory, load)
    with temporary_folders(directories) as folders, _progress() as progress:
        sites = [Site(folder, Cold(control_socket(folder))) for folder in folders]
        return measure(sites, load, progress)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Shows what is under way on standard error, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:50}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)
