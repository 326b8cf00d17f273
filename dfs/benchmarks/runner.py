"""Runs the workloads in one directory, or in several by turns."""

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfs.benchmarks.big_file import big_file_workloads
from dfs.benchmarks.cold import Cold
from dfs.benchmarks.figures import Figure, Sample, summarise
from dfs.benchmarks.small_files import save_workload, small_file_workloads
from dfs.benchmarks.tree import tree_workloads
from dfs.benchmarks.work import Load, Workload
from wire.errors import fail

ROUNDS = 3
THREADS = (1, 4)
ONLY_PAGES = " (page cache dropped only)"
"""Said of cold figures when the first site is on no mount that was told to forget."""


@dataclass(frozen=True)
class Site:
    """Where it is measured: a folder of its own, and how to make it cold."""

    folder: Path
    cold: Cold


def all_workloads() -> list[Workload]:
    """Everything, in the order in which it must be run."""
    small = [workload for threads in THREADS for workload in small_file_workloads(threads)]
    return [
        *big_file_workloads(),
        *small,
        *tree_workloads(),
        *(save_workload(threads) for threads in THREADS),
    ]


def measure(sites: Sequence[Site], load: Load, progress: Callable[[str, int, int], None]) -> list[Figure]:
    """The figures of the first site, compared with each of the others.

    Each workload runs at one site after the other, then the next one begins; all of that in ``ROUNDS``
    rounds. So what else the machine does hits all alike. ``progress`` is told what begins, how many runs
    are done, and of how many. Raises the OSError of a workload, with a sentence that says which.
    """
    workloads = all_workloads()
    samples: list[list[list[tuple[Sample, ...]]]] = [[[] for _ in sites] for _ in workloads]
    total = ROUNDS * len(workloads) * len(sites)
    done = 0
    for _ in range(ROUNDS):
        for workload, at_sites in zip(workloads, samples, strict=True):
            for site, at_site in zip(sites, at_sites, strict=True):
                progress(workload.rows[0][0], done, total)
                at_site.append(_run(workload, site, load))
                done += 1
    cold_label = "" if sites[0].cold.complete else ONLY_PAGES
    return [
        figure
        for workload, at_sites in zip(workloads, samples, strict=True)
        for figure in _figures(workload, at_sites, cold_label)
    ]


def _run(workload: Workload, site: Site, load: Load) -> tuple[Sample, ...]:
    if workload.cools is not None:
        site.cold.forget(workload.cools(site.folder, load))
    try:
        return workload.run(site.folder, load)
    except OSError as error:
        sentence = f"{workload.rows[0][0]} failed in {site.folder.parent}: {error.strerror}"
        raise fail(error.errno or errno.EIO, sentence) from error


def _figures(
    workload: Workload, at_sites: Sequence[Sequence[tuple[Sample, ...]]], cold_label: str
) -> Iterator[Figure]:
    for row, (name, unit) in enumerate(workload.rows):
        columns = [[samples[row] for samples in at_site] for at_site in at_sites]
        label = cold_label if workload.cools is not None else ""
        yield summarise(name + label, workload.threads, unit, *columns)
