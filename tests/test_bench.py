"""``dfs bench``: the figures are computed rightly, the command says what it should and leaves nothing behind.

No test here says how fast anything must be.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs import exits
from dfs.benchmarks.cold import Cold, ask_to_forget, control_socket
from dfs.benchmarks.figures import Figure, Sample, Unit, percentile, summarise
from dfs.benchmarks.report import digits
from dfs.benchmarks.runner import ONLY_PAGES, Site, all_workloads, measure
from dfs.benchmarks.small_files import small_paths
from dfs.benchmarks.timing import sample_of, timed
from dfs.benchmarks.work import Load
from mount import registry
from mount.registry import MountRecord

TINY = Load(size_bytes=3 * 1024 * 1024 + 4096, files=9, random_seconds=0.01)

COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where it is ignored
from dfs.main import main
main()
"""


def start(*arguments: object) -> "subprocess.Popen[str]":
    """The real command."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "bench", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )


@dataclass(frozen=True)
class Result:
    status: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Result:
    """The command to its end."""
    with start(*arguments) as process:
        stdout, stderr = process.communicate(timeout=100)
    return Result(process.returncode, stdout, stderr)


# Figures ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(), min_size=1), st.floats(0.1, 100))
def test_a_percentile_is_the_smallest_value_that_is_high_enough(values: list[int], percent: float) -> None:
    found = percentile(sorted(values), percent)
    reached = [one for one in values if sum(other <= one for other in values) * 100 >= percent * len(values)]
    assert found == min(reached)


def test_percentiles_of_a_hundred_and_of_none() -> None:
    assert [percentile(range(1, 101), percent) for percent in (50, 99, 100)] == [50, 99, 100]
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_figure_is_the_median_of_the_rounds_and_has_the_percentiles_of_all() -> None:
    rounds = [
        Sample(2.0, 10, [1_000_000] * 50),
        Sample(1.0, 10, [3_000_000] * 49),
        Sample(4.0, 10, [9_000_000]),
    ]
    figure = summarise("x", 4, Unit.OPERATIONS, rounds)
    assert figure == Figure("x", 4, Unit.OPERATIONS, 5.0, 1.0, 3.0)


def ratio(unit: Unit, ours: list[Sample], theirs: list[Sample]) -> float:
    return summarise("x", 1, unit, ours, theirs).against[0].ratio


def test_the_ratio_says_how_many_times_as_fast_whatever_the_unit() -> None:
    fast, slow = [Sample(1.0, 8, [1])], [Sample(4.0, 8, [1])]
    for unit in Unit:
        assert ratio(unit, fast, slow) == 4.0
        assert ratio(unit, slow, fast) == 0.25
    assert summarise("x", 1, Unit.SECONDS, fast, slow).against[0].value == 4.0
    both = summarise("x", 1, Unit.SECONDS, fast, slow, fast).against
    assert [other.ratio for other in both] == [4.0, 1.0]


def test_the_ratio_pairs_the_runs_of_a_round() -> None:
    """The machine is busy in the last two rounds; each round says: twice as fast."""
    ours = [Sample(1.0, amount, [1]) for amount in (80, 8, 6)]
    theirs = [Sample(1.0, amount, [1]) for amount in (40, 4, 3)]
    assert ratio(Unit.MEGABYTES, ours, theirs) == 2.0
    with pytest.raises(ValueError, match="shorter"):
        summarise("x", 1, Unit.MEGABYTES, ours, theirs[:2])


def test_numbers_have_three_digits_that_matter() -> None:
    assert [digits(value) for value in (0.005123, 1.234, 45.67, 789.4, 12345.6)] == [
        "0.00512",
        "1.23",
        "45.7",
        "789",
        "12,346",
    ]


# Timing -----------------------------------------------------------------------------------------------------


def test_the_clock_runs_from_the_first_start_to_the_last_end() -> None:
    sample = sample_of([[1000, 1500, 2500], [1200, 4000], [1300]])
    assert (sample.seconds, sample.amount, list(sample.latencies_ns)) == (3e-6, 3, [500, 1000, 2800])


def test_every_item_is_done_once_by_the_thread_whose_share_it_is() -> None:
    seen: dict[int, int] = {}
    sample = timed([range(10), range(10, 15)], lambda item: seen.setdefault(item, threading.get_ident()))
    assert sorted(seen) == list(range(15))
    assert sample.amount == len(sample.latencies_ns) == 15
    assert len({seen[item] for item in range(10)}) == 1
    assert seen[0] != seen[10]


def test_it_ends_when_the_time_is_over_or_one_thread_fails() -> None:
    assert timed([count(), count()], lambda _: None, seconds_max=0.01).amount > 0

    def fail_at(item: int) -> None:
        if item == -1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        timed([count(), iter([1, 2, -1])], fail_at)


def test_small_files_are_shared_out_evenly(tmp_path: Path) -> None:
    shares = small_paths(tmp_path, 10, 4)
    assert [len(share) for share in shares] == [3, 3, 2, 2]
    assert len({path for share in shares for path in share}) == 10
    assert all(len({path.parent for path in share}) == 1 for share in shares)


# Cold -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mount(tmp_path: Path) -> Iterator["ControlSocket"]:
    with ControlSocket(tmp_path / "control") as control:
        yield control


class ControlSocket:
    """Answers as a mount does, or as it should not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer = b"{}\n"
        self.asked: list[dict[str, object]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> "ControlSocket":
        self._socket.bind(str(self.path))
        self._socket.listen()
        self._pool.submit(self._serve)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._pool.shutdown()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                self.asked.append(json.loads(lines.readline()))
                connection.sendall(self.answer)


def test_the_mount_is_asked_to_forget(mount: ControlSocket) -> None:
    assert ask_to_forget(mount.path)
    assert [question["verb"] for question in mount.asked] == ["drop-cache"]


REFUSED = b'{"problem":{"title":"I/O error","status":500,"errno":"EIO"}}\n'


@pytest.mark.parametrize("answer", [REFUSED, b"[]\n", b"", b"what?\n"])
def test_a_mount_that_does_not_forget_is_not_believed(mount: ControlSocket, answer: bytes) -> None:
    mount.answer = answer
    assert not ask_to_forget(mount.path)
    assert not ask_to_forget(mount.path.with_name("nobody"))


def test_the_mount_that_a_directory_is_on_is_found(
    mount: ControlSocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFS_STATE", str(tmp_path))
    assert control_socket(tmp_path) is None
    mountpoint = str(next(folder for folder in (tmp_path, *tmp_path.parents) if folder.is_mount()))
    record = MountRecord(mountpoint, "native", os.getpid(), "", "alice", "", str(mount.path), 0.0)
    registry.register(record)
    assert control_socket(tmp_path) == mount.path
    assert control_socket(Path("/proc/self")) is None  # another mount, on a folder of that one
    registry.register(msgspec.structs.replace(record, pid=2**30))  # it is dead
    assert control_socket(tmp_path) is None


def test_cold_figures_are_labelled_unless_the_mount_forgot_every_time(
    mount: ControlSocket, tmp_path: Path
) -> None:
    forgetful, other = Cold(mount.path), Cold(None)
    complete = measure([Site(tmp_path, forgetful)], TINY, lambda *_: None)
    assert forgetful.complete
    assert len(mount.asked) == 3 * sum(workload.cools is not None for workload in all_workloads())
    assert not [figure.name for figure in complete if ONLY_PAGES in figure.name]
    (tmp_path / "there").mkdir()
    partial = measure([Site(tmp_path / "there", other)], TINY, lambda *_: None)
    assert [figure.name.removesuffix(ONLY_PAGES) for figure in partial] == [
        figure.name for figure in complete
    ]
    assert all(figure.name.endswith(ONLY_PAGES) == ("cold" in figure.name) for figure in partial)


# The command ------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


def rows(names: Sequence[str], *threads: int) -> set[tuple[str, int]]:
    return {(name, number) for name in names for number in threads}


def test_json_has_every_figure_of_all_directories(here: Path, there: Path, tmp_path: Path) -> None:
    result = run(here, "--against", there, "--against", tmp_path, "--quick", "--files", 20, "--json")
    assert result.status == 0, result.stderr
    figures = msgspec.json.decode(result.stdout, type=list[Figure])
    assert {(figure.name.removesuffix(ONLY_PAGES), figure.threads) for figure in figures} == (
        rows(["sequential write, up to close", "sequential write, with close"], 1)
        | rows(["sequential write, with close and fsync"], 1)
        | rows(["sequential read, cold", "sequential read, warm"], 1)
        | rows(["random read 4 KiB", "random write 4 KiB", "random write 4 KiB, with close"], 1, 4)
        | rows([f"small files: {name}" for name in ("create", "stat", "delete")], 1, 4)
        | rows([f"small files: open, read, close, {name}" for name in ("cold", "again")], 1, 4)
        | rows([f"small files: list with attributes, {name}" for name in ("cold", "warm")], 1, 4)
        | rows(["small files: list all with attributes, cold", "save as editors do"], 1, 4)
        | rows([f"tree: {verb} directories with files" for verb in ("create", "delete")], 1)
        | rows(["tree: list directories, cold", "tree: list directories, again"], 1)
    )
    for figure in figures:
        assert figure.value > 0
        assert 0 < figure.p50_ms <= figure.p99_ms
        assert len(figure.against) == 2
        assert all(other.value > 0 and other.ratio > 0 for other in figure.against)
    assert not [*here.iterdir(), *there.iterdir()]


def test_the_table_alone(here: Path) -> None:
    result = run(here, "--quick", "--size", 8192, "--files", 1)
    assert result.status == 0, result.stderr
    assert "sequential write, with close" in result.stdout
    assert "Ratio" not in result.stdout
    assert result.stderr == ""
    assert not list(here.iterdir())


def test_what_cannot_be_measured_is_said_in_one_sentence(here: Path) -> None:
    nowhere = f"cannot measure {here}/missing: No such file or directory"
    for arguments, status, sentence in (
        ((here / "missing",), exits.NOT_FOUND, nowhere),
        ((here, "--against", here / "missing"), exits.NOT_FOUND, nowhere),
        ((__file__,), exits.NOT_FOUND, f"cannot make a folder in {__file__}: Not a directory"),
        (("/proc",), exits.NOT_FOUND, "cannot make a folder in /proc: "),  # where root may not write, either
        ((here, "--size", 2**60), exits.GENERAL, f"{here} has "),
    ):
        result = run(*arguments, "--quick")
        assert result.status == status
        assert result.stderr.startswith(f"dfs: {sentence}")
        assert result.stderr.count("\n") == 1
        assert not list(here.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(here: Path, there: Path, number: signal.Signals) -> None:
    with start(here, "--against", there) as process:
        while not list(there.glob("*/big")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        output, errors = process.communicate(timeout=100)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert output == ""
    assert not [*here.iterdir(), *there.iterdir()]


def test_a_disk_that_fills_up_on_the_way_is_said_in_one_sentence(here: Path) -> None:
    with start(here, "--quick") as process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**20 + 5, 2**20 + 5))
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert errors == f"dfs: sequential write, up to close failed in {here}: File too large\n"
    assert not list(here.iterdir())
