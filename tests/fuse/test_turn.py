"""Whose turn it is to read, and how the next request is waited for."""

import os
import time
from collections.abc import Callable, Iterator

import pytest

from mount.bindings.native import turn
from mount.bindings.native.turn import KEPT_SECONDS, QUIET_SECONDS, Turn


class Pipe:
    """What there is to read."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.pipe()
        self.turn = Turn(self.ours)

    def ask(self) -> None:
        """A request of one byte."""
        os.write(self.theirs, b"?")

    def read(self) -> int:
        """The next request."""
        return self.turn.read(memoryview(bytearray(1)))

    def ask_and_read(self) -> None:
        """A request that need not be waited for."""
        self.ask()
        assert self.read() == 1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.ours)
    os.close(pipe.theirs)


@pytest.fixture
def on_watching(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[None]]:
    """What is to happen each time that a request was watched for in vain. Returns a list that grows then."""

    def set_up(then: Callable[[], None]) -> list[None]:
        watched: list[None] = []

        def give_way() -> None:
            watched.append(None)
            then()

        monkeypatch.setattr(os, "sched_yield", give_way)
        return watched

    return set_up


def test_a_request_is_watched_for_while_they_come_quickly(
    pipe: Pipe,
    monkeypatch: pytest.MonkeyPatch,
    on_watching: Callable[[Callable[[], None]], list[None]],
) -> None:
    monkeypatch.setattr(turn, "WATCHED_SECONDS", 1000.0)
    pipe.ask_and_read()
    watched = on_watching(pipe.ask)
    assert pipe.read() == 1
    assert len(watched) == 1


@pytest.fixture
def late(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests come when they are waited for, not before."""
    readv = os.readv

    def comes_late(descriptor: int, buffers: list[memoryview]) -> int:
        pipe.ask()
        return readv(descriptor, buffers)

    monkeypatch.setattr(os, "readv", comes_late)


def test_nobody_watches_for_long_nor_for_what_comes_slowly(
    pipe: Pipe, late: None, on_watching: Callable[[Callable[[], None]], list[None]]
) -> None:
    watched = on_watching(lambda: None)
    pipe.turn._comes_soon = True
    assert pipe.read() == 1
    assert watched
    watched.clear()
    assert pipe.read() == 1
    assert not watched


def test_who_has_waited_for_the_turn_does_not_watch(
    pipe: Pipe, late: None, on_watching: Callable[[Callable[[], None]], list[None]]
) -> None:
    watched = on_watching(lambda: None)
    pipe.turn._comes_soon = True
    pipe.turn.take()
    assert pipe.read() == 1
    assert not watched


def test_in_a_quiet_mount_it_is_looked_less_often_who_keeps_the_turn(pipe: Pipe) -> None:
    pipe.turn._read_at = time.monotonic() + 60.0
    assert pipe.turn._look_seconds() == KEPT_SECONDS < QUIET_SECONDS
    pipe.turn._read_at -= 120.0
    assert pipe.turn._look_seconds() == QUIET_SECONDS
