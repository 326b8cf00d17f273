"""Directories whose listing the kernel has are opened and closed at once, with no more than a look."""

import errno
from collections.abc import Callable, Iterator

import pytest

from mount.bindings.native import protocol
from mount.bindings.native.directories import DOTS
from mount.bindings.native.listings import KEEPS
from mount.bindings.native.protocol import Opcode
from tests.support.kernel import Kernel
from wire.messages.directory import ROOT_INO


def open_root(kernel: Kernel) -> int:
    """opendir(3): the handle, which may keep the kernel's listing."""
    status, answer = kernel.ask(Opcode.OPENDIR, protocol.OPEN_IN.pack(0, 0))
    opened = protocol.OPEN_OUT.read(answer)
    assert (status, opened.open_flags) == (0, KEEPS)
    return opened.fh


def read_root(kernel: Kernel, number: int, offset: int = 0) -> bytes:
    """READDIR once."""
    status, answer = kernel.ask(Opcode.READDIR, protocol.READ_IN.pack(number, offset, 4096, 0, 0, 0, 0))
    assert status == 0
    return answer


def close_root(kernel: Kernel, number: int) -> None:
    """closedir(3)."""
    assert kernel.ask(Opcode.RELEASEDIR, protocol.RELEASE_IN.pack(number, 0, 0, 0))[0] == 0


@pytest.fixture
def streams(leased: Kernel, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The kernel has the root's listing. Grows with each directory that is opened to be read, not at once."""
    leased.ask(Opcode.MKNOD, protocol.MKNOD_IN.pack(0o100644, 0, 0, 0) + b"name\0")
    _, answer = leased.ask(Opcode.OPENDIR, protocol.OPEN_IN.pack(0, 0))
    number = protocol.OPEN_OUT.read(answer).fh
    read_root(leased, number)
    close_root(leased, number)
    vfs, made = leased.the.vfs, list[int]()
    stream = vfs.stream

    def noted(ino: int, who: object) -> object:
        made.append(ino)
        return stream(ino, None)

    monkeypatch.setattr(vfs, "stream", noted)
    yield made
    leased.ask(Opcode.UNLINK, b"name\0")


def test_a_listing_that_the_kernel_has_is_opened_at_once(leased: Kernel, streams: list[int]) -> None:
    listings = leased.the.listings
    for _ in range(3):
        number = open_root(leased)
        assert listings._listings[ROOT_INO].open == 1
        close_root(leased, number)
    assert (streams, listings._listings[ROOT_INO].open) == ([], 0)


def test_what_the_kernel_has_lost_it_is_told_again(leased: Kernel, streams: list[int]) -> None:
    number = open_root(leased)
    assert b"name" in read_root(leased, number)
    assert streams == [ROOT_INO]
    assert read_root(leased, number) == read_root(leased, number)
    close_root(leased, number)
    assert (streams, leased.the.listings._listings[ROOT_INO].open) == ([ROOT_INO], 0)


def test_whoever_goes_on_is_told_of_no_name_that_was_made_since(leased: Kernel, streams: list[int]) -> None:
    number = open_root(leased)
    leased.ask(Opcode.MKNOD, protocol.MKNOD_IN.pack(0o100644, 0, 0, 0) + b"newer\0")
    answer = read_root(leased, number, DOTS)
    assert (b"name" in answer, b"newer" in answer) == (True, False)
    close_root(leased, number)


def is_trusted(kernel: Kernel, patched: pytest.MonkeyPatch) -> None:
    """Callers differ, so that the opener's right must be looked at."""
    patched.setattr(kernel.the, "is_trusted", True)


def is_all_noted(kernel: Kernel, patched: pytest.MonkeyPatch) -> None:
    """The next worker must know of each call."""
    patched.setattr(kernel.the.vfs.calls, "note_all", True)


def is_repeated(kernel: Kernel, patched: pytest.MonkeyPatch) -> None:
    """An earlier worker may have begun the call."""
    patched.setattr(kernel, "_unique", kernel._unique | protocol.UNIQUE_RESEND)


def has_changed(kernel: Kernel, patched: pytest.MonkeyPatch) -> None:
    """The label is of another state: the label of the state before, that is."""
    patched.setattr(kernel.the.listings, "label", lambda _: 1)


@pytest.mark.parametrize("is_so", [is_trusted, is_all_noted, is_repeated, has_changed])
def test_what_needs_more_than_a_look_is_carried_out(
    leased: Kernel,
    streams: list[int],
    monkeypatch: pytest.MonkeyPatch,
    is_so: Callable[[Kernel, pytest.MonkeyPatch], None],
) -> None:
    with monkeypatch.context() as patched:
        is_so(leased, patched)
        close_root(leased, open_root(leased))
    assert streams == [ROOT_INO]


def test_nothing_is_answered_at_once_when_the_mount_stops(
    leased: Kernel, streams: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(leased.loop, "_stopping", True)
        assert leased.ask(Opcode.OPENDIR, protocol.OPEN_IN.pack(0, 0)) == (errno.ENOTCONN, b"")


def test_what_fails_unforeseen_is_carried_out_and_fails_there(
    leased: Kernel, streams: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_unique: int, _ino: int, _body: memoryview) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setitem(leased.loop._at_once, int(Opcode.OPENDIR), fails)
        close_root(leased, open_root(leased))
    assert streams == [ROOT_INO]


def test_what_is_too_short_is_refused(leased: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    assert leased.ask(Opcode.RELEASEDIR, b"short")[0] != 0
    assert [record.levelname for record in caplog.records] == ["ERROR"]
