"""Directories over /dev/fuse: what a listing tells, where it goes on, and when the kernel may keep it."""

from collections.abc import Iterator

import pytest

from mount import stream
from mount.bindings.native import listings, protocol
from mount.bindings.native.context import Context
from mount.bindings.native.listings import Listings
from mount.bindings.native.protocol import Dirent, Fopen, Opcode
from tests.support.kernel import ENTRY_BYTES, Kernel


@pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])
def test_a_listing_is_cut_into_what_fits_and_goes_on(kernel: Kernel, opcode: Opcode) -> None:
    folder = b"folder-%d" % opcode
    _, answer = kernel.ask(Opcode.MKDIR, protocol.MKDIR_IN.pack(0o755, 0) + folder + b"\0")
    ino = protocol.ENTRY_OUT.read(answer).nodeid
    expected = [b".", b".."]
    for index in range(20):
        name = b"n" * index + b"-%02d" % index
        kernel.ask(Opcode.MKNOD, protocol.MKNOD_IN.pack(0o100644, 0, 0, 0) + name + b"\0", ino)
        expected.append(name)
    _, answer = kernel.ask(Opcode.OPENDIR, protocol.OPEN_IN.pack(0, 0), ino)
    number = protocol.OPEN_OUT.read(answer).fh
    names: dict[int, bytes] = {}
    offset, head = 0, ENTRY_BYTES if opcode == Opcode.READDIRPLUS else 0
    while True:
        status, answer = kernel.ask(opcode, protocol.READ_IN.pack(number, offset, 450, 0, 0, 0, 0), ino)
        assert status == 0
        assert len(answer) <= 450
        if not answer:
            break
        while answer:
            entry = protocol.DIRENT.read(answer, head)
            first = head + protocol.DIRENT.size
            names[entry.off] = answer[first : first + entry.namelen]
            answer, offset = answer[-(-(first + entry.namelen) // 8) * 8 :], entry.off
    assert sorted(names.values()) == sorted(expected)
    offsets = list(names)
    for place, offset in enumerate(offsets[:-1]):  # seekdir(3)
        again = protocol.READ_IN.pack(number, offset, 450, 0, 0, 0, 0)
        _, answer = kernel.ask(opcode, again, ino)
        assert protocol.DIRENT.read(answer, head).off == offsets[place + 1]
    assert kernel.ask(Opcode.RELEASEDIR, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)[0] == 0


def listed(answer: bytes) -> Iterator[tuple[bytes, int]]:
    """The names of a READDIRPLUS, and the inodes that they are told to be; 0: for another time."""
    head = ENTRY_BYTES
    while answer:
        entry, first = protocol.DIRENT.read(answer, head), head + protocol.DIRENT.size
        yield answer[first : first + entry.namelen], protocol.ENTRY_OUT.read(answer).nodeid
        answer = answer[-(-(first + entry.namelen) // 8) * 8 :]


@pytest.fixture
def folder(kernel: Kernel, request: pytest.FixtureRequest) -> int:
    """A directory of four files."""
    name = request.node.name.encode()
    _, answer = kernel.ask(Opcode.MKDIR, protocol.MKDIR_IN.pack(0o755, 0) + name + b"\0")
    ino = protocol.ENTRY_OUT.read(answer).nodeid
    for name in (b"a", b"b", b"c", b"d"):
        kernel.ask(Opcode.MKNOD, protocol.MKNOD_IN.pack(0o100644, 0, 0, 0) + name + b"\0", ino)
    return ino


def test_what_has_changed_since_the_listing_was_begun_is_no_more_than_a_name(
    kernel: Kernel, folder: int
) -> None:
    _, answer = kernel.ask(Opcode.OPENDIR, protocol.OPEN_IN.pack(0, 0), folder)
    number = protocol.OPEN_OUT.read(answer).fh
    ask = protocol.READ_IN.pack(number, 0, 3 * (ENTRY_BYTES + protocol.DIRENT.size) + 24, 0, 0, 0, 0)
    answer = kernel.ask(Opcode.READDIRPLUS, ask, folder)[1]
    assert [name for name, _ in listed(answer)] == [b".", b"..", b"a"]
    last = len(answer) - (ENTRY_BYTES + protocol.DIRENT.size) - 8
    place = protocol.DIRENT.read(answer, last + ENTRY_BYTES).off
    assert kernel.ask(Opcode.UNLINK, b"b\0", folder)[0] == 0
    assert kernel.ask(Opcode.UNLINK, b"c\0", folder)[0] == 0
    assert kernel.ask(Opcode.MKNOD, protocol.MKNOD_IN.pack(0o100644, 0, 0, 0) + b"e\0", folder)[0] == 0
    ask = protocol.READ_IN.pack(number, place, 4096, 0, 0, 0, 0)
    told = dict(listed(kernel.ask(Opcode.READDIRPLUS, ask, folder)[1]))
    assert told == {b"b": 0, b"c": 0, b"d": told[b"d"]}
    assert told[b"d"]
    ask = protocol.READ_IN.pack(number, 0, 4096, 0, 0, 0, 0)  # rewinddir(3)
    told = dict(listed(kernel.ask(Opcode.READDIRPLUS, ask, folder)[1]))
    assert list(told) == [b".", b"..", b"a", b"d", b"e"]
    kernel.ask(Opcode.RELEASEDIR, protocol.RELEASE_IN.pack(number, 0, 0, 0), folder)


def open_directory(kernel: Kernel, ino: int) -> tuple[int, Fopen]:
    """opendir(3): the handle, and what the kernel may do."""
    status, answer = kernel.ask(Opcode.OPENDIR, protocol.OPEN_IN.pack(0, 0), ino)
    assert status == 0
    opened = protocol.OPEN_OUT.read(answer)
    return opened.fh, Fopen(opened.open_flags)


def read_directory(kernel: Kernel, ino: int, number: int, offset: int = 0, size: int = 4096) -> list[Dirent]:
    """READDIR once."""
    body = protocol.READ_IN.pack(number, offset, size, 0, 0, 0, 0)
    status, answer = kernel.ask(Opcode.READDIR, body, ino)
    assert status == 0
    found = []
    while answer:
        found.append(protocol.DIRENT.read(answer))
        answer = answer[-(-(protocol.DIRENT.size + found[-1].namelen) // 8) * 8 :]
    return found


def close_directory(kernel: Kernel, ino: int, number: int) -> None:
    """closedir(3)."""
    assert kernel.ask(Opcode.RELEASEDIR, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)[0] == 0


NO_CACHE, FILL = Fopen(0), Fopen.CACHE_DIR
KEEP = Fopen.CACHE_DIR | Fopen.KEEP_CACHE


@pytest.fixture
def believing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is believed is true, so that the kernel may keep listings."""
    monkeypatch.setattr(Context, "may_keep_listings", lambda _: True)


def test_a_listing_is_not_kept_where_attributes_are_believed_for_a_moment(
    kernel: Kernel, folder: int
) -> None:
    for _ in range(2):
        number, flags = open_directory(kernel, folder)
        assert flags == NO_CACHE
        read_directory(kernel, folder, number)
        close_directory(kernel, folder, number)


def test_a_listing_is_kept_until_the_directory_changes(kernel: Kernel, folder: int, believing: None) -> None:
    for expected in (FILL, KEEP, KEEP):
        number, flags = open_directory(kernel, folder)
        assert flags == expected
        read_directory(kernel, folder, number)
        close_directory(kernel, folder, number)
    assert kernel.ask(Opcode.UNLINK, b"a\0", folder)[0] == 0
    number, flags = open_directory(kernel, folder)
    assert flags == FILL
    close_directory(kernel, folder, number)


def test_a_listing_of_two_states_is_not_kept(
    kernel: Kernel, folder: int, believing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "FIRST_ENTRIES", 2)
    number, flags = open_directory(kernel, folder)
    assert flags == FILL
    told = read_directory(kernel, folder, number, size=3 * (protocol.DIRENT.size + 8))
    assert kernel.ask(Opcode.UNLINK, b"d\0", folder)[0] == 0
    assert len(told + read_directory(kernel, folder, number, told[-1].off)) == 5
    other, flags = open_directory(kernel, folder)
    assert flags == NO_CACHE, "the first one may still fill the cache"
    close_directory(kernel, folder, number)
    close_directory(kernel, folder, other)
    number, flags = open_directory(kernel, folder)
    assert flags == FILL
    close_directory(kernel, folder, number)


def test_what_an_older_open_fills_the_cache_with_is_not_for_a_newer_one(
    kernel: Kernel, folder: int, believing: None
) -> None:
    older, _ = open_directory(kernel, folder)
    assert kernel.ask(Opcode.UNLINK, b"d\0", folder)[0] == 0
    newer, flags = open_directory(kernel, folder)
    assert flags == NO_CACHE
    read_directory(kernel, folder, older)
    for number in (older, newer):
        close_directory(kernel, folder, number)


def test_the_label_counts_when_the_kernel_has_dropped_what_was_there(
    kernel: Kernel, folder: int, believing: None
) -> None:
    first, flags = open_directory(kernel, folder)
    second, other_flags = open_directory(kernel, folder)
    assert (flags, other_flags) == (FILL, FILL), "the first one's pages may not be dropped yet"
    read_directory(kernel, folder, first)
    third, flags = open_directory(kernel, folder)
    assert flags == KEEP
    for number in (first, second, third):
        close_directory(kernel, folder, number)


def test_a_handle_of_an_earlier_worker_may_fill_the_cache(
    kernel: Kernel, folder: int, believing: None
) -> None:
    labelled, _ = open_directory(kernel, folder)
    read_directory(kernel, folder, labelled)
    read_directory(kernel, folder, 4711)
    number, flags = open_directory(kernel, folder)
    assert flags == NO_CACHE
    for opened in (labelled, 4711, number):
        close_directory(kernel, folder, opened)
    number, flags = open_directory(kernel, folder)
    assert flags == FILL
    close_directory(kernel, folder, number)


def test_labels_are_forgotten_but_not_of_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "LISTINGS_MAX", 2)
    labels = Listings()
    assert labels.opened(1, 5) == FILL
    for ino in (2, 3, 4):
        assert labels.opened(ino, 5) == FILL
        labels.has_dropped(ino)
        labels.closed(ino)
    assert [labels.label(ino) for ino in (1, 2, 4)] == [0, 0, 5]
    assert labels.opened(1, 6) == NO_CACHE, "it is open"


def test_an_offset_means_the_same_at_the_next_worker(kernel: Kernel, folder: int) -> None:
    number = 4711  # nothing that this worker has opened
    ask = protocol.READ_IN.pack(number, 0, 4 * (protocol.DIRENT.size + 8), 0, 0, 0, 0)
    _, answer = kernel.ask(Opcode.READDIR, ask, folder)
    last = protocol.DIRENT.read(answer, len(answer) - protocol.DIRENT.size - 8)
    for name in (b"a", b"b", b"c"):
        assert kernel.ask(Opcode.UNLINK, name + b"\0", folder)[0] == 0
    ask = protocol.READ_IN.pack(number + 1, last.off, 4096, 0, 0, 0, 0)
    _, answer = kernel.ask(Opcode.READDIR, ask, folder)
    assert answer[protocol.DIRENT.size :] == b"d" + bytes(7)
    for opened in (number, number + 1):
        kernel.ask(Opcode.RELEASEDIR, protocol.RELEASE_IN.pack(opened, 0, 0, 0), folder)
