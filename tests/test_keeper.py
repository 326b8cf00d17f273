"""The keeper of a mount and workers that do no work: when it starts another one, and when it gives up."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount import keeper
from mount.keeper import Given, Keeper

PREFACE = """
import os, signal, socket, sys, time
sys.path.insert(0, {code!r})
from mount.keeper import Failed, Given, Line, Ping, Ready, Replace, end_with_keeper
given = Given.parse(sys.argv[-1])
end_with_keeper(given)
line = Line(socket.socket(fileno=given.line))
turn = os.pread(given.memory, 100, 0).decode()
os.pwrite(given.memory, b"x", len(turn))
"""
"""Each worker notes in the memory that it was there."""


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[int]:
    """What workers share."""
    descriptor = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "PAUSE_SECONDS_MAX", 0.0)
    monkeypatch.setattr(keeper, "STACKS_SECONDS", 0.2)
    monkeypatch.setattr(keeper, "HURRIED_MAX", 4)


def program(script: str) -> list[str]:
    """The program of a worker that does this."""
    code = str(Path(__file__).resolve().parent.parent)
    return [sys.executable, "-c", PREFACE.format(code=code) + script]


def run(memory: int, script: str, hang_seconds: float = 30.0) -> int:
    """Keeps until it ends; returns how many workers there were."""
    ready: list[int] = []
    kept = Keeper(memory, memory, program(script), ["words"], dict(os.environ), hang_seconds)
    try:
        kept.run(lambda: ready.append(1))
    finally:
        assert len(ready) <= 1
    assert ready == [1]
    return len(os.pread(memory, 100, 0))


def test_a_worker_that_ends_in_order_was_the_last(memory: int) -> None:
    assert run(memory, "line.tell(Ready())") == 1


def test_one_that_dies_is_followed_by_another(memory: int) -> None:
    script = "line.tell(Ready())\nif len(turn) < 2: os.kill(os.getpid(), 9)"
    assert run(memory, script) == 3


def test_one_that_does_not_answer_is_ended(memory: int, capfd: pytest.CaptureFixture[str]) -> None:
    script = """
import faulthandler
faulthandler.register(signal.SIGUSR1)
line.tell(Ready())
while not turn: signal.pause()
while len(turn) == 1: os.kill(os.getpid(), signal.SIGSTOP)
"""
    assert run(memory, script, hang_seconds=1.0) == 3
    assert capfd.readouterr().err.count("most recent call first") == 2


def test_one_that_answers_may_take_its_time(memory: int) -> None:
    script = """
line.tell(Ready())
end = time.monotonic() + 2.5
while time.monotonic() < end:
    assert line.hear() == Ping()
    line.tell(Ping())
"""
    assert run(memory, script, hang_seconds=1.0) == 1


def test_the_first_one_says_why_it_cannot_begin(memory: int) -> None:
    script = """
from wire.errors import fail, to_problem
line.tell(Failed(to_problem(fail(13, "not here"))))
sys.exit(1)
"""
    with pytest.raises(PermissionError, match="not here"):
        Keeper(memory, memory, program(script), [], dict(os.environ)).run(lambda: None)


def test_the_first_one_that_dies_before_it_is_ready_is_the_last(memory: int) -> None:
    with pytest.raises(OSError, match="died before it was ready") as raised:
        Keeper(memory, memory, program("os.kill(os.getpid(), 9)"), [], dict(os.environ)).run(lambda: None)
    assert raised.value.errno == errno.EIO
    assert os.pread(memory, 100, 0) == b"x"


def test_workers_that_die_at_once_again_and_again_end_the_mount(memory: int) -> None:
    with pytest.raises(OSError, match="workers in a row"):
        run(memory, "line.tell(Ready())\nos.kill(os.getpid(), 9)")
    assert len(os.pread(memory, 100, 0)) == keeper.HURRIED_MAX


def test_a_program_that_takes_over_gets_the_words_of_the_first(memory: int) -> None:
    second = program("assert sys.argv[1:3] == ['words', '--worker']\nline.tell(Ready())")
    script = f"line.tell(Ready())\nline.tell(Replace({second!r}, dict(os.environ)))\nsignal.pause()"
    assert run(memory, script) == 2


def test_a_program_that_cannot_take_over_is_followed_by_the_old_one(memory: int) -> None:
    script = f"""
line.tell(Ready())
if not turn:
    line.tell(Replace({program("sys.exit(1)")!r}, dict(os.environ)))
    signal.pause()
"""
    assert run(memory, script) == 3


def test_a_signal_is_passed_on(memory: int) -> None:
    script = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
line.tell(Ready())
os.kill(given.keeper, signal.SIGTERM)
time.sleep(60)
"""
    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    assert run(memory, script) == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_given_is_a_word() -> None:
    given = Given(3, 4, 5, 6)
    assert Given.parse(str(given)) == given
    with pytest.raises(ValueError):
        Given.parse("3,x")
