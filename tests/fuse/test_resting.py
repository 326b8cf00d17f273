"""Readers' handles that rest after their close wake without an open, and nobody notices them meanwhile."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from mount import resting
from mount.bindings.native import protocol
from mount.bindings.native.files import KEEP_CACHE, NOFLUSH
from mount.bindings.native.protocol import Opcode
from mount.nodes import Handle, Node
from mount.slate import Call
from mount.tree import Changes
from tests.support.kernel import Kernel
from tests.support.stack import Stack
from tests.support.times import wait_until
from wire.messages.directory import ROOT_INO

READ = 0o100000
"""How the kernel passes on O_RDONLY."""

NAME = b"file"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A realm."""
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture(scope="module")
def leased(stack: Stack) -> Iterator[Kernel]:
    """A mount under a lease."""
    found = Kernel(stack, promised=True)
    yield found
    found.close()


@pytest.fixture
def ino(leased: Kernel) -> Iterator[int]:
    """A file in the root, and nothing rests."""
    yield make(leased, NAME, b"content")
    leased.ask(Opcode.UNLINK, NAME + b"\0")
    before_any = leased.client.copies.limit_bytes // resting.CACHE_SHARE
    leased.the.vfs.resting.end_all()
    assert (leased.the.vfs.handles(), leased.the.vfs.resting._bytes_left) == ([], before_any)


def make(kernel: Kernel, name: bytes, data: bytes) -> int:
    """A file in the root; its inode."""
    ino, number = kernel.create(name)
    head = protocol.WRITE_IN.pack(number, 0, len(data), 0, 0, 0, 0)
    assert kernel.ask(Opcode.WRITE, head + data, ino)[0] == 0
    assert kernel.ask(Opcode.FLUSH, protocol.FLUSH_IN.pack(number, 0, 0, 0), ino)[0] == 0
    shut(kernel, ino, number)
    return ino


def opened(kernel: Kernel, ino: int, flags: int = READ) -> int:
    """open(2): the handle."""
    status, answer = kernel.ask(Opcode.OPEN, protocol.OPEN_IN.pack(flags, 0), ino)
    assert status == 0, os.strerror(status)
    found = protocol.OPEN_OUT.read(answer)
    if flags == READ:
        assert found.open_flags == KEEP_CACHE | NOFLUSH
    return found.fh


def shut(kernel: Kernel, ino: int, number: int) -> None:
    """The last close(2) of an open file."""
    assert kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)[0] == 0


def content(kernel: Kernel, ino: int, number: int) -> bytes:
    """pread(2) of all."""
    status, answer = kernel.ask(Opcode.READ, protocol.READ_IN.pack(number, 0, 4096, 0, 0, 0, 0), ino)
    assert status == 0, os.strerror(status)
    return answer


def laid(kernel: Kernel, ino: int) -> int:
    """Opened, and closed, until it rests: the handle. The directory may have to be asked first."""
    for _ in range(3):
        number = opened(kernel, ino)
        shut(kernel, ino, number)
        if rests(kernel, ino):
            return number
    raise AssertionError("it does not rest")


def rests(kernel: Kernel, ino: int) -> bool:
    """Whether a handle of the inode does."""
    return kernel.the.vfs.resting.peek(ino) is not None


def noted(kernel: Kernel) -> dict[int, int]:
    """What the next worker would find open: handles, and by which calls they were opened."""
    return {file.number: file.opened_by for _, file in kernel.the.vfs.slate.handles.items()}


def node(kernel: Kernel, ino: int) -> Node | None:
    """What is open in this process."""
    return kernel.the.vfs._table.peek(ino)


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


def test_nobody_sees_what_another_mount_has_written_over(leased: Kernel, stack: Stack, ino: int) -> None:
    laid(leased, ino)
    other = stack.client()
    with other.opened("/file", os.O_WRONLY | os.O_TRUNC) as handle:
        other.vfs.write(handle, 0, b"something else")
    number = opened(leased, ino)
    assert content(leased, ino, number) == b"something else"
    shut(leased, ino, number)


def test_what_is_heard_of_other_files_does_not_matter(leased: Kernel, stack: Stack, ino: int) -> None:
    folder = stack.client().mkdir("/folder").ino
    assert leased.ask(Opcode.LOOKUP, b"folder\0")[0] == 0
    number = laid(leased, ino)
    before = leased.the.vfs._names.ask().heard
    stack.client().write("/folder/other", b"data")
    assert leased.ask(Opcode.LOOKUP, b"other\0", folder)[0] == 0
    assert leased.the.vfs._names.ask().heard > before
    assert opened(leased, ino) == number
    shut(leased, ino, number)


def test_what_rests_hides_no_attributes_of_what_another_mount_has_written(
    leased: Kernel, stack: Stack, ino: int
) -> None:
    """As large as before, but no hole any more: nothing but the room that it takes tells the kernel."""
    assert blocks(leased, ino) > 0
    other = stack.client()
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
def test_a_worker_that_dies_leaves_what_is_open(stack: Stack, ino: int, is_open: bool) -> None:
    """An open and a close that were carried out, but not answered, come once more."""
    first = Kernel(stack, promised=True)
    assert first.ask(Opcode.LOOKUP, NAME + b"\0")[0] == 0
    number = opened(first, ino)
    shut(first, ino, number)
    number = laid(first, ino)
    assert opened(first, ino) == number
    if not is_open:
        shut(first, ino, number)
    unanswered = first.last
    first.client.kill()
    second = Kernel(stack, promised=True, before=first.client)
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


def test_a_thread_ends_what_nobody_wants(stack: Stack, ino: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("mount.resting.REST_SECONDS", 0.05)
        kernel = Kernel(stack, promised=True)
        assert kernel.ask(Opcode.LOOKUP, NAME + b"\0")[0] == 0
        for _ in range(3):
            shut(kernel, ino, opened(kernel, ino))
        wait_until(lambda: not kernel.the.vfs.handles())
        kernel.close()


def test_at_the_end_nothing_rests_nor_is_laid_to_rest(stack: Stack, ino: int) -> None:
    kernel = Kernel(stack, promised=True)
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
