"""What a file has in it: open sees the last close, and content costs only what it must."""

import errno
import os
import time

import pytest

from mount import committing
from mount.vfs import Changes
from tests.support.stack import DIRECTORY, Client, Stack
from tests.support.vfs import BORDER, MAKE, READ, WRITE, WatchedWire, raises


def test_open_sees_the_last_close(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    one.write(f"{place}/file", b"first")
    for turn in range(5):
        writer, reader = (one, two) if turn % 2 else (two, one)
        assert reader.read(f"{place}/file") == writer.read(f"{place}/file")
        writer.write(f"{place}/file", b"round %d" % turn)
        assert reader.read(f"{place}/file") == b"round %d" % turn


def test_writing_across_chunks(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    content = bytearray(os.urandom(2 * BORDER + 1000))
    one.write(f"{place}/file", bytes(content))
    assert two.read(f"{place}/file") == content
    for offset, size in ((BORDER - 10, 20), (5, 1), (2 * BORDER, 1000), (2 * BORDER - 1, 1500), (0, BORDER)):
        patch = os.urandom(size)
        content[offset : offset + size] = patch
        two.write(f"{place}/file", patch, offset)
        assert one.read(f"{place}/file") == content, (offset, size)


def test_local_handles_share_what_is_not_committed(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    with one.opened(f"{place}/file", MAKE) as writing:
        one.vfs.write(writing, 0, b"dirty")
        with one.opened(f"{place}/file", READ) as reading:
            assert one.pread(reading, 0, 10) == b"dirty"
            one.vfs.write(writing, 5, b" content")
            assert one.pread(reading, 0, 20) == b"dirty content"
        assert two.read(f"{place}/file") == b""
        assert one.walk(f"{place}/file").size == 13
        assert two.walk(f"{place}/file", fresh=True).size == 0
    assert two.read(f"{place}/file") == b"dirty content"


def test_appending_goes_to_the_end_as_it_is_under_the_lock(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    one.write(f"{place}/log", b"")
    for number in range(6):
        pair[number % 2].append(f"{place}/log", b"%d" % number)
    appending = WRITE | os.O_APPEND
    with one.opened(f"{place}/log", appending) as first, one.opened(f"{place}/log", appending) as second:
        one.vfs.write(first, 0, b"a")
        one.vfs.write(second, 0, b"b")
        one.vfs.write(first, 3, b"c")
    assert two.read(f"{place}/log") == b"012345abc"


@pytest.mark.parametrize("size", [0, 1, BORDER - 1, BORDER, BORDER + 1, 2 * BORDER + 5])
def test_truncation_cuts_and_growing_again_gives_zeros(
    pair: tuple[Client, Client], place: str, size: int
) -> None:
    one, two = pair
    content = os.urandom(2 * BORDER + 5)
    one.write(f"{place}/file", content)
    assert two.set(f"{place}/file", Changes(size=size)).size == size
    assert one.read(f"{place}/file") == content[:size]
    one.set(f"{place}/file", Changes(size=2 * BORDER + 9))
    assert two.read(f"{place}/file") == content[:size] + bytes(2 * BORDER + 9 - size)


def test_truncation_on_open_is_seen_elsewhere_only_with_what_follows(
    pair: tuple[Client, Client], place: str
) -> None:
    one, two = pair
    one.write(f"{place}/file", b"old content")
    with one.opened(f"{place}/file", WRITE | os.O_TRUNC) as handle:
        assert one.walk(f"{place}/file").size == 0
        assert two.read(f"{place}/file") == b"old content"
        one.vfs.write(handle, 0, b"new")
    assert two.read(f"{place}/file") == b"new"
    with one.opened(f"{place}/file", WRITE | os.O_TRUNC):
        pass
    assert two.read(f"{place}/file") == b""


def test_truncation_by_opening_for_reading(pair: tuple[Client, Client], place: str) -> None:
    """open(2): what O_RDONLY | O_TRUNC does is unspecified; on Linux it truncates."""
    one, two = pair
    one.write(f"{place}/file", b"content")
    with one.opened(f"{place}/file", READ | os.O_TRUNC) as handle:
        assert one.pread(handle, 0, 10) == b""
    assert two.read(f"{place}/file") == b""
    two.write(f"{place}/file", b"not locked any more")
    assert one.read(f"{place}/file") == b"not locked any more"


def test_holes_are_zeros_and_cost_nothing(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    with one.opened(f"{place}/file", MAKE) as handle:
        one.vfs.write(handle, 3 * BORDER + 7, b"end")
    assert two.read(f"{place}/file") == bytes(3 * BORDER + 7) + b"end"
    ino = one.walk(f"{place}/file").ino
    assert [chunk.index for chunk in one.proxy.manifest(ino, 0, 0).chunks] == [3]
    content = os.urandom(3 * BORDER)
    two.write(f"{place}/file", content)
    with two.opened(f"{place}/file", WRITE) as handle:
        two.vfs.punch(handle, BORDER - 100, BORDER + 200)
    expected = content[: BORDER - 100] + bytes(BORDER + 200) + content[2 * BORDER + 100 :] + bytes(7) + b"end"
    assert one.read(f"{place}/file") == expected


def test_a_terabyte_with_one_byte_costs_one_byte(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    end = 2**40 - 1
    began, used = time.monotonic(), one.copies.used_bytes()
    with one.opened(f"{place}/file", MAKE) as handle:
        one.vfs.write(handle, end, b"!")
    one.set(f"{place}/file", Changes(size=2**40 + 1))
    one.set(f"{place}/file", Changes(size=2**43))
    one.set(f"{place}/file", Changes(size=2**40))
    with two.opened(f"{place}/file", READ) as handle:
        assert two.pread(handle, end - 3, 10) == b"\0\0\0!"
        assert two.pread(handle, 2**39, 10) == bytes(10)
    assert one.walk(f"{place}/file", fresh=True).size == 2**40
    assert one.copies.used_bytes() - used < 2 * BORDER
    assert time.monotonic() - began < 5.0
    with raises(errno.EFBIG):
        one.set(f"{place}/file", Changes(size=2**60 + 1))


def test_more_changed_chunks_than_fit_one_commit(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "MANIFEST_CHUNKS_MAX", 3)
    monkeypatch.setattr("cache.local.LocalCopy.snapshot_dirty.__defaults__", (3,))
    one, two = stack.client(), stack.client()
    with one.opened("/file", MAKE) as handle:
        for index in range(10):
            one.vfs.write(handle, index * BORDER, b"%d" % index)
    with two.opened("/file", READ) as handle:
        assert [two.pread(handle, index * BORDER, 1) for index in range(10)] == [
            b"%d" % index for index in range(10)
        ]
    assert not one.vfs.unsaved()


def test_a_cold_read_asks_the_directory_once_and_a_warm_one_too(stack: Stack) -> None:
    watched = WatchedWire()
    one, two = stack.client(), stack.client(wrap=watched.wrap)
    one.write("/file", b"content")
    asked: list[str] = []
    watched.before = lambda _method, url: asked.append(url.removeprefix(DIRECTORY).partition("/chunks/")[0])
    assert two.read("/file") == b"content"
    assert len(asked) == 2, "the path with its manifest, and the chunk"
    assert asked[0] == "/v1/resolve"
    asked.clear()
    assert two.read("/file") == b"content"
    assert asked == ["/v1/resolve"]
    one.write("/file", b"CONTENT!")
    asked.clear()
    assert two.read("/file") == b"CONTENT!"
    assert asked[:2] == ["/v1/resolve", "/v1/manifest"], "a copy is here, so the manifest was not asked for"
    assert len(asked) == 3
