"""Whose turn it is to read, and how the next request is waited for."""

import os
from collections.abc import Iterator

import pytest

from mount.bindings.native.turn import (
    KEPT_SECONDS,
    PAUSE_SECONDS,
    PAUSE_SECONDS_MAX,
    QUIET_SECONDS,
    WATCHED_SECONDS,
    Turn,
)

LOOK_SECONDS = 0.6 * WATCHED_SECONDS
"""Between two looks: the second one is the last."""


class Pipe:
    """What there is to read. The clock goes on by ``LOOK_SECONDS`` with each look in vain."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.pipe()
        self.now = 1000.0
        self.turn = Turn(self.ours, lambda: self.now)
        self.looks = 0
        self.comes_at: int | None = None
        """At which look in vain something comes at last."""

    def ask(self) -> None:
        """A request of one byte."""
        os.write(self.theirs, b"?")

    def give_way(self) -> None:
        """In place of sched_yield(2)."""
        self.now += LOOK_SECONDS
        self.looks += 1
        if self.looks == self.comes_at:
            self.ask()

    def read(self, *, may_watch: bool = True) -> int:
        """The next request: how often it was looked for in vain."""
        self.looks = 0
        assert self.turn.read(memoryview(bytearray(1)), may_watch=may_watch) == 1
        return self.looks


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    """Something comes as soon as nobody watches any more, if not before."""
    pipe, readv = Pipe(), os.readv

    def comes_at_last(descriptor: int, buffers: list[memoryview]) -> int:
        if not pipe.turn._poll.poll(0):
            pipe.ask()
        return readv(descriptor, buffers)

    monkeypatch.setattr(os, "readv", comes_at_last)
    monkeypatch.setattr(os, "sched_yield", pipe.give_way)
    pipe.read()
    yield pipe
    os.close(pipe.ours)
    os.close(pipe.theirs)


def test_a_request_is_watched_for_while_they_come_quickly(pipe: Pipe) -> None:
    pipe.comes_at = 1
    assert [pipe.read() for _ in range(3)] == [1, 1, 1]
    pipe.comes_at = None
    assert pipe.read() == 2, "not for long"
    assert pipe.read() == 0, "nor for what comes slowly"


def test_whoever_must_not_watch_sleeps(pipe: Pipe) -> None:
    assert pipe.read(may_watch=False) == 0
    pipe.ask()
    assert pipe.read() == 0, "it is there"


def test_nobody_watches_for_a_while_when_it_was_in_vain(pipe: Pipe) -> None:
    pause = PAUSE_SECONDS
    for _ in range(10):
        assert pipe.read() == 2
        pipe.now += 0.9 * pause
        assert [pipe.read() for _ in range(2)] == [0, 0]
        pipe.now += 0.2 * pause
        pause = min(2 * pause, PAUSE_SECONDS_MAX)
    pipe.comes_at = 1
    assert pipe.read() == 1
    pipe.comes_at = None
    assert pipe.read() == 2
    pipe.now += 1.1 * PAUSE_SECONDS
    assert [pipe.read() for _ in range(2)] == [0, 2], "it was worth it once"


def test_who_has_lost_the_turn_has_nothing_to_pass_on(pipe: Pipe) -> None:
    turn, me = pipe.turn, object()
    turn.take()
    turn.keep(me)
    pipe.now += 1.0
    turn.take()  # another thread, which waits for too long
    turn.pass_on(me)
    assert (turn._turn.locked(), turn.goes_on(me)) == (True, False)


def test_the_turn_is_passed_on_once(pipe: Pipe) -> None:
    turn, me = pipe.turn, object()
    turn.take()
    turn.keep(me)
    turn.pass_on(me)
    turn.take()  # another thread
    turn.pass_on(me)
    assert (turn._turn.locked(), turn.goes_on(me)) == (True, False)


def test_the_turn_is_not_taken_from_who_has_just_read(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    turn, me, looked = pipe.turn, object(), list[None]()

    def looks_at_once(_: Turn) -> float:
        looked.append(None)
        if len(looked) == 3:
            turn.pass_on(me)
        return 0.0

    turn.take()
    monkeypatch.setattr(Turn, "_look_seconds", looks_at_once)
    pipe.now += 1.0
    pipe.read()
    turn.keep(me)
    turn.take()  # another thread
    assert len(looked) == 3


def test_in_a_quiet_mount_it_is_looked_less_often_who_keeps_the_turn(pipe: Pipe) -> None:
    assert pipe.turn._look_seconds() == KEPT_SECONDS < QUIET_SECONDS
    pipe.now += 60.0
    assert pipe.turn._look_seconds() == QUIET_SECONDS
