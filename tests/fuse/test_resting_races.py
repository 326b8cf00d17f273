"""Handles that rest, when a worker dies and when several have to do with one: the slate, threads, the end."""

import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from mount.bindings.native import protocol
from mount.bindings.native.protocol import Opcode
from mount.nodes import Handle
from tests.support.kernel import Kernel
from tests.support.resting import NAME, READ, content, laid, make, node, noted, opened, shut
from tests.support.stack import Stack
from tests.support.times import wait_until


def test_what_others_write_down_of_it_meanwhile_is_not_on_the_slate(leased: Kernel, ino: int) -> None:
    """Another mount's program has locked the file."""
    laid(leased, ino)
    shared = node(leased, ino)
    leased.the.vfs.give_way(ino)
    assert noted(leased) == {}
    status, answer = leased.ask(Opcode.OPEN, protocol.OPEN_IN.pack(READ, 0), ino)
    found = protocol.OPEN_OUT.read(answer)
    assert (status, node(leased, ino) is shared) == (0, False)
    shut(leased, ino, found.fh)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_worker_that_dies_leaves_what_is_open(shared_stack: Stack, ino: int, is_open: bool) -> None:
    """An open and a close that were carried out, but not answered, come once more."""
    first = Kernel(shared_stack, promised=True)
    assert first.ask(Opcode.LOOKUP, NAME + b"\0")[0] == 0
    number = opened(first, ino)
    shut(first, ino, number)
    number = laid(first, ino)
    assert opened(first, ino) == number
    if not is_open:
        shut(first, ino, number)
    unanswered = first.last
    first.client.kill()
    second = Kernel(shared_stack, promised=True, before=first.client)
    try:
        assert list(noted(second)) == [number] * is_open
        assert second.the.inodes.is_open(ino) == is_open
        if is_open:
            status, answer = second.ask(Opcode.OPEN, protocol.OPEN_IN.pack(READ, 0), ino, again=unanswered)
            assert (status, protocol.OPEN_OUT.read(answer).fh) == (0, number)
            assert content(second, ino, number) == b"content"
        status, _ = second.ask(
            Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino, again=0 if is_open else unanswered
        )
        assert (status, second.the.vfs.handles(), second.the.inodes.is_open(ino)) == (0, [], False)
    finally:
        second.close()
        first.close()


def test_what_is_written_down_of_it_while_it_wakes_undoes_nothing(
    leased: Kernel, ino: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = laid(leased, ino)
    handle, table = leased.the.vfs._handle(number), leased.the.vfs._table
    note = table.note

    def late(noting: Handle, **what: bool) -> None:
        assert leased.the.vfs.resting.wake(handle, unique=77)
        note(noting, **what)

    with monkeypatch.context() as patched:
        patched.setattr(table, "note", late)
        table.note_shared(handle.node)
    assert noted(leased) == {number: 77}
    shut(leased, ino, number)


def test_for_the_kernel_what_rests_is_not_open(leased: Kernel, ino: int) -> None:
    """It forgets the inode, hears of it again, and opens it, while what has rested is being closed."""
    number, resting = laid(leased, ino), leased.the.vfs.resting
    assert not leased.the.inodes.is_open(ino)
    leased.ask(Opcode.FORGET, protocol.FORGET_IN.pack(100), ino)
    leased.ask(Opcode.LOOKUP, NAME + b"\0")
    handle = leased.the.vfs._handle(number)
    resting._take(ino)
    other = opened(leased, ino, READ | os.O_NOATIME)
    assert number != other
    resting.close_handle(handle)
    assert leased.the.inodes.is_open(ino), "the other one is"
    shut(leased, ino, other)
    assert not leased.the.inodes.is_open(ino)


def test_who_finds_that_it_has_just_ended_opens_it_once(
    leased: Kernel, ino: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid(leased, ino)
    resting = leased.the.vfs.resting
    wake = resting.wake

    def late(handle: Handle, unique: int) -> bool:
        resting.end_all()
        return wake(handle, unique)

    with monkeypatch.context() as patched:
        patched.setattr(resting, "wake", late)
        shut(leased, ino, opened(leased, ino))
    resting.end_all()
    assert not leased.the.inodes.is_open(ino)


def test_what_is_awake_is_written_down_as_anything_that_is_open(leased: Kernel, ino: int) -> None:
    number = laid(leased, ino)
    assert opened(leased, ino) == number
    leased.the.vfs.give_way(ino)
    assert [file.is_shared for _, file in leased.the.vfs.slate.handles.items()] == [True]
    handle = leased.the.vfs._handle(number)
    shut(leased, ino, number)
    leased.the.vfs._table.note(handle, outrun=True)
    assert noted(leased) == {}


def test_what_rests_is_not_laid_to_rest_once_more(leased: Kernel, ino: int) -> None:
    assert not leased.the.vfs.resting.lay(leased.the.vfs._handle(laid(leased, ino)))


def test_who_ends_a_rest_is_not_told_of_what_went_wrong(
    leased: Kernel, ino: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    laid(leased, ino)
    resting = leased.the.vfs.resting
    close_handle = resting.close_handle

    def fails(handle: Handle) -> None:
        close_handle(handle)
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(resting, "close_handle", fails)
        shut(leased, ino, opened(leased, ino, READ | os.O_NOATIME))
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    caplog.clear()


def test_a_thread_ends_what_nobody_wants(
    shared_stack: Stack, ino: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("mount.resting.REST_SECONDS", 0.05)
        kernel = Kernel(shared_stack, promised=True)
        assert kernel.ask(Opcode.LOOKUP, NAME + b"\0")[0] == 0
        for _ in range(3):
            shut(kernel, ino, opened(kernel, ino))
        wait_until(lambda: not kernel.the.vfs.handles())
        kernel.close()


def test_at_the_end_nothing_rests_nor_is_laid_to_rest(shared_stack: Stack, ino: int) -> None:
    kernel = Kernel(shared_stack, promised=True)
    assert kernel.ask(Opcode.LOOKUP, NAME + b"\0")[0] == 0
    laid(kernel, ino)
    number = opened(kernel, ino, READ)
    other = make(kernel, b"other", b"")
    laid(kernel, other)
    vfs = kernel.the.vfs
    handle = vfs._handle(number)
    vfs.resting.close()
    assert vfs.handles() == [handle]
    assert not vfs.resting.lay(handle)
    shut(kernel, ino, number)
    assert vfs.handles() == []
    kernel.ask(Opcode.UNLINK, b"other\0")
    kernel.close()


def test_what_rests_has_its_place_on_the_slate(leased: Kernel, ino: int) -> None:
    other = make(leased, b"other", b"")
    number = laid(leased, ino)
    beside = opened(leased, other)
    assert opened(leased, ino) == number
    assert noted(leased).keys() == {number, beside}
    for which, what in ((ino, number), (other, beside)):
        shut(leased, which, what)
    leased.ask(Opcode.UNLINK, b"other\0")


def found_meanwhile(kernel: Kernel, does: Callable[[], bool]) -> set[tuple[tuple[int, int], ...]]:
    """What the next worker would find open if this one died at any line of what is done."""
    found = set()

    def look(_frame: FrameType, _event: str, _argument: Any) -> Any:
        found.add(tuple(noted(kernel).items()))
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        assert does()
    finally:
        sys.settrace(before)
    return found


def test_a_worker_may_die_at_any_line(leased: Kernel, ino: int) -> None:
    """A close that is repeated finds the handle or does not; an open that is repeated finds its own."""
    number = laid(leased, ino)
    resting, handle = leased.the.vfs.resting, leased.the.vfs._handle(number)
    assert found_meanwhile(leased, lambda: resting.wake(handle, 77)) == {(), ((number, 77),)}
    assert found_meanwhile(leased, lambda: resting.lay(handle)) == {((number, 77),), ()}
