"""Readers' handles that rest after their close wake without an open, and nobody notices them meanwhile."""

import errno
import os
from collections.abc import Callable

import pytest

from mount import resting
from mount.bindings.native import protocol
from mount.bindings.native.protocol import Opcode
from mount.nodes import Handle
from mount.slate import Call
from mount.tree import Changes
from tests.support.kernel import Kernel
from tests.support.resting import NAME, READ, content, laid, make, node, noted, opened, rests, shut
from tests.support.stack import Stack
from wire.messages.directory import ROOT_INO


def test_what_was_opened_twice_wakes_under_its_number(leased: Kernel, ino: int) -> None:
    first = opened(leased, ino)
    shut(leased, ino, first)
    assert not rests(leased, ino), "who reads a file once need not read it again"
    number = opened(leased, ino)
    shut(leased, ino, number)
    was = node(leased, ino)
    assert was is not None
    for _ in range(3):
        assert opened(leased, ino) == number
        assert (node(leased, ino), rests(leased, ino)) == (was, False)
        assert content(leased, ino, number) == b"content"
        shut(leased, ino, number)
        assert (node(leased, ino), rests(leased, ino)) == (was, True)


def test_the_next_worker_finds_what_is_open_and_only_that(leased: Kernel, ino: int) -> None:
    number = laid(leased, ino)
    assert noted(leased) == {}
    assert opened(leased, ino) == number
    assert noted(leased) == {number: leased.last}
    shut(leased, ino, number)
    assert noted(leased) == {}


def test_a_second_reader_gets_a_handle_of_his_own(leased: Kernel, ino: int) -> None:
    number = laid(leased, ino)
    assert opened(leased, ino) == number
    other = opened(leased, ino)
    assert other != number
    shut(leased, ino, number)
    assert not rests(leased, ino), "the file is open still, and in another's hands"
    assert content(leased, ino, other) == b"content"
    shut(leased, ino, other)
    assert opened(leased, ino) == other
    shut(leased, ino, other)


def opens_to_write(kernel: Kernel, ino: int) -> None:
    """Another kind of open, which may wait and may be lent to the kernel."""
    shut(kernel, ino, opened(kernel, ino, READ | os.O_RDWR))


def unlinks(kernel: Kernel, ino: int) -> None:
    """The last name goes, and the inode with it: nobody has it open."""
    assert kernel.ask(Opcode.UNLINK, NAME + b"\0")[0] == 0


def renames_over(kernel: Kernel, ino: int) -> None:
    """Another file gets the name."""
    make(kernel, b"other", b"")
    assert kernel.ask(Opcode.RENAME, protocol.RENAME_IN.pack(ROOT_INO) + b"other\0" + NAME + b"\0")[0] == 0


def drops_copies(kernel: Kernel, _ino: int) -> None:
    """As ``dfs bench`` does."""
    kernel.the.vfs.drop_clean_copies()


def waits(kernel: Kernel, _ino: int) -> None:
    """Nobody has come for so long."""
    kernel.the.vfs.resting._end_before(float("inf"))


@pytest.mark.parametrize("does", [opens_to_write, unlinks, renames_over, drops_copies, waits])
def test_it_ends_with(leased: Kernel, ino: int, does: Callable[[Kernel, int], None]) -> None:
    laid(leased, ino)
    does(leased, ino)
    assert (rests(leased, ino), node(leased, ino)) == (False, None)
    assert leased.the.passthrough._inodes == {}
    assert not leased.the.inodes.is_open(ino)


def test_who_opens_it_in_another_way_gets_another_handle(leased: Kernel, ino: int) -> None:
    number = laid(leased, ino)
    other = opened(leased, ino, READ | os.O_DIRECT)
    assert (other == number, rests(leased, ino)) == (False, False)
    shut(leased, ino, other)


def test_a_name_that_is_not_the_last_goes_without_harm(leased: Kernel, ino: int) -> None:
    leased.ask(Opcode.LINK, protocol.LINK_IN.pack(ino) + b"second\0")
    laid(leased, ino)
    assert leased.ask(Opcode.UNLINK, b"second\0")[0] == 0
    number = opened(leased, ino)
    assert content(leased, ino, number) == b"content"
    shut(leased, ino, number)


def test_what_rests_longer_is_left_when_what_rests_long_enough_goes(leased: Kernel, ino: int) -> None:
    other = make(leased, b"other", b"")
    laid(leased, ino)
    between = leased.the.vfs.resting._rests[ino].since
    laid(leased, other)
    leased.the.vfs.resting._end_before(between)
    assert (rests(leased, ino), rests(leased, other)) == (False, True)
    leased.ask(Opcode.UNLINK, b"other\0")


def test_nobody_sees_what_another_mount_has_written_over(
    leased: Kernel, shared_stack: Stack, ino: int
) -> None:
    laid(leased, ino)
    other = shared_stack.client()
    with other.opened("/file", os.O_WRONLY | os.O_TRUNC) as handle:
        other.vfs.write(handle, 0, b"something else")
    number = opened(leased, ino)
    assert content(leased, ino, number) == b"something else"
    shut(leased, ino, number)


def test_what_is_heard_of_other_files_does_not_matter(leased: Kernel, shared_stack: Stack, ino: int) -> None:
    folder = shared_stack.client().mkdir("/folder").ino
    assert leased.ask(Opcode.LOOKUP, b"folder\0")[0] == 0
    number = laid(leased, ino)
    before = leased.the.vfs._names.ask().heard
    shared_stack.client().write("/folder/other", b"data")
    assert leased.ask(Opcode.LOOKUP, b"other\0", folder)[0] == 0
    assert leased.the.vfs._names.ask().heard > before
    assert opened(leased, ino) == number
    shut(leased, ino, number)


def test_what_rests_hides_no_attributes_of_what_another_mount_has_written(
    leased: Kernel, shared_stack: Stack, ino: int
) -> None:
    """As large as before, but no hole any more: nothing but the room that it takes tells the kernel."""
    assert blocks(leased, ino) > 0
    other = shared_stack.client()
    other.set("/file", Changes(size=0))
    other.set("/file", Changes(size=7))
    assert blocks(leased, ino) == 0
    laid(leased, ino)
    other.write("/file", b"content")
    assert blocks(leased, ino) > 0


def blocks(kernel: Kernel, ino: int) -> int:
    """st_blocks."""
    _, answer = kernel.ask(Opcode.GETATTR, protocol.GETATTR_IN.pack(0, 0, 0), ino)
    return protocol.ATTR.read(answer, protocol.ATTR_OUT.size).blocks


def test_what_a_call_has_left_is_let_go_of_though_the_file_rests(leased: Kernel, ino: int) -> None:
    vfs = leased.the.vfs
    locks = vfs._proxy.write_locks
    locks.acquire(ino, 0.0)
    vfs.calls._left[1] = vfs.slate.calls.take(Call(1, ino=ino)), Call(1, ino=ino)
    laid(leased, ino)
    vfs._forget_left_calls()
    assert locks.held(ino) is None


def test_a_name_that_is_not_known_here_is_one_that_goes(leased: Kernel, ino: int) -> None:
    """It was looked up through another one."""
    laid(leased, ino)
    leased.the.vfs._names._cache.drop_entry(ROOT_INO, NAME)
    assert leased.ask(Opcode.UNLINK, NAME + b"\0")[0] == 0
    assert (rests(leased, ino), node(leased, ino)) == (False, None)


def test_who_may_not_read_any_more_does_not(leased: Kernel, ino: int) -> None:
    laid(leased, ino)
    asked = protocol.SETATTR_IN.pack(1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    status, _ = leased.ask(Opcode.SETATTR, asked, ino)
    assert status == 0
    assert leased.ask(Opcode.OPEN, protocol.OPEN_IN.pack(READ, 0), ino)[0] == errno.EACCES


def test_what_the_kernel_has_forgotten_is_opened_anew(leased: Kernel, ino: int) -> None:
    """It has no pages of it any more."""
    laid(leased, ino)
    leased.ask(Opcode.FORGET, protocol.FORGET_IN.pack(100), ino)
    status, answer = leased.ask(Opcode.LOOKUP, NAME + b"\0")
    assert (status, protocol.ENTRY_OUT.read(answer).nodeid) == (0, ino)
    was = node(leased, ino)
    number = opened(leased, ino)
    assert node(leased, ino) is not was
    shut(leased, ino, number)


def is_shared(kernel: Kernel, handle: Handle, patched: pytest.MonkeyPatch) -> None:
    """Programs lock the file: each close(2) may end a lock."""
    patched.setattr(handle.node, "is_shared", True)


def is_large(kernel: Kernel, handle: Handle, patched: pytest.MonkeyPatch) -> None:
    """More is read than opened."""
    patched.setattr(handle.node.copy, "size", resting.FILE_BYTES_MAX + 1)


def is_served_otherwise(kernel: Kernel, handle: Handle, patched: pytest.MonkeyPatch) -> None:
    """The kernel has another way to the content."""
    kernel.the.vfs.note_served(handle, 1, 0, 0, is_aside=False)


def has_no_place(kernel: Kernel, handle: Handle, patched: pytest.MonkeyPatch) -> None:
    """Others rest."""
    patched.setattr(kernel.the.vfs.resting, "_places", 0)


def has_no_room(kernel: Kernel, handle: Handle, patched: pytest.MonkeyPatch) -> None:
    """What rests has its part of the cache already."""
    patched.setattr(kernel.the.vfs.resting, "_bytes_left", handle.node.copy.size - 1)


def has_no_block(kernel: Kernel, handle: Handle, patched: pytest.MonkeyPatch) -> None:
    """Small files have more room on the disk than their size says."""
    room = handle.node.copy.allocated
    assert room > handle.node.copy.size
    patched.setattr(kernel.the.vfs.resting, "_bytes_left", room - 1)


def is_trusted(kernel: Kernel, handle: Handle, patched: pytest.MonkeyPatch) -> None:
    """Callers differ."""
    patched.setattr(kernel.the, "is_trusted", True)


def has_heard(kernel: Kernel, handle: Handle, patched: pytest.MonkeyPatch) -> None:
    """Something has happened on the way to it: who comes next may not come through."""
    kernel.the.vfs._names.doubt([ROOT_INO])


def is_all_noted(kernel: Kernel, handle: Handle, patched: pytest.MonkeyPatch) -> None:
    """The kernel does not repeat calls."""
    patched.setattr(kernel.the.vfs.calls, "note_all", True)


@pytest.mark.parametrize(
    "is_so",
    [
        is_shared,
        is_large,
        is_served_otherwise,
        has_no_place,
        has_no_room,
        has_no_block,
        is_trusted,
        has_heard,
        is_all_noted,
    ],
)
def test_nothing_rests_that(
    leased: Kernel,
    ino: int,
    monkeypatch: pytest.MonkeyPatch,
    is_so: Callable[[Kernel, Handle, pytest.MonkeyPatch], None],
) -> None:
    shut(leased, ino, opened(leased, ino))
    number = opened(leased, ino)
    with monkeypatch.context() as patched:
        is_so(leased, leased.the.vfs._handle(number), patched)
        shut(leased, ino, number)
    assert (rests(leased, ino), node(leased, ino)) == (False, None)
