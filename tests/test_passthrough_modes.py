"""How the files of one inode are open at once, as the kernel is told, and when they are released.

The kernel's part is played by the test: none of this needs /dev/fuse.
"""

import errno
import logging
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from mount.bindings.native import passthrough
from mount.bindings.native.passthrough import Passthrough
from mount.bindings.native.protocol import Fopen
from mount.nodes import Handle
from tests.support.stack import Client, Stack
from tests.support.times import wait_until
from tests.support.vfs import BOTH

WAIT_SECONDS = 10.0


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """One that has a file."""
    monkeypatch.setattr(passthrough, "register", lambda *_: 1)
    monkeypatch.setattr(passthrough, "unregister", lambda *_: None)
    monkeypatch.setattr(passthrough, "READ_BYTES_MIN", 1)
    monkeypatch.setattr(passthrough, "SHORT_WAITS_SECONDS", (0.0,))
    monkeypatch.setattr(passthrough, "MAP_SECONDS", 0.01)
    with Stack(tmp_path / "realm") as stack:
        found = stack.client()
        found.write("/file", b"content")
        yield found


def opened(client: Client, flags: int) -> Handle:
    return client.vfs._table.handle(client.open("/file", flags))


@contextmanager
def mapped(handle: Handle) -> Iterator[mmap.mmap]:
    """As a program that has mapped the backing file for writing, and closed its descriptor."""
    descriptor = handle.node.copy.lend(BOTH, at_any_size=True)
    assert descriptor is not None
    try:
        memory = mmap.mmap(descriptor, 0)
    finally:
        os.close(descriptor)
    with memory:
        yield memory


def test_a_file_that_may_get_pages_by_a_map_has_no_backing_file(client: Client) -> None:
    with closing(Passthrough(client.vfs, -1, lambda _: None, is_possible=True)) as through:
        appending, reader = opened(client, BOTH | os.O_APPEND), opened(client, os.O_RDONLY)
        assert through.opened(appending) == (Fopen.DIRECT_IO, 0)
        assert through.opened(reader) == (0, 0)
        through.closed(reader)
        through.closed(appending)
        assert through.opened(reader) == (Fopen.PASSTHROUGH, 1)


def test_what_is_put_aside_while_others_are_released_is_released_too(client: Client) -> None:
    maps, closed_again, both_are = ExitStack(), threading.Event(), threading.Event()

    def release(handle: Handle) -> None:
        if handle is second:
            both_are.set()
            return
        through.opened(second)  # meanwhile the other one is opened, mapped, and closed
        maps.enter_context(mapped(second))
        through.closed(second)
        closed_again.set()

    with closing(Passthrough(client.vfs, -1, release, is_possible=True)) as through:
        reader, first, second = (opened(client, flags) for flags in (os.O_RDONLY, BOTH, BOTH))
        through.opened(reader)
        through.opened(first)
        with mapped(first):
            through.closed(first)
            assert not closed_again.is_set(), "a map is left"
        assert closed_again.wait(WAIT_SECONDS)
        maps.close()
        assert both_are.wait(WAIT_SECONDS)


def test_one_that_cannot_be_released_does_not_keep_the_others(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    released: list[Handle] = []

    def release(handle: Handle) -> None:
        released.append(handle)
        if handle is first:
            raise OSError

    through = Passthrough(client.vfs, -1, release, is_possible=True)
    with closing(through), caplog.at_level(logging.CRITICAL):
        reader, first, second = (opened(client, flags) for flags in (os.O_RDONLY, BOTH, BOTH))
        for handle in (reader, first, second):
            through.opened(handle)
        through.closed(first)
        through.closed(second)
        assert released == [first, second]


def test_an_open_that_cannot_be_written_down_is_not_counted(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[int] = []
    monkeypatch.setattr(passthrough, "unregister", lambda _, backing: given_back.append(backing))
    with closing(Passthrough(client.vfs, -1, lambda _: None, is_possible=True)) as through:
        reader, writer = opened(client, os.O_RDONLY), opened(client, os.O_WRONLY)
        with monkeypatch.context() as patched:
            patched.setattr(client.vfs, "note_served", no_room)
            for handle in (reader, writer):
                with pytest.raises(OSError, match="no room"):
                    through.opened(handle)
        assert given_back == [1, 1]
        assert through.opened(opened(client, BOTH)) == (0, 0), "nobody has a backing file"
        assert not writer.node.copy.is_past_us


def no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "no room")


def test_who_goes_around_the_pages_beside_a_reader_may_map(client: Client) -> None:
    released: list[Handle] = []
    around = Fopen.PASSTHROUGH | Fopen.DIRECT_IO
    with closing(Passthrough(client.vfs, -1, released.append, is_possible=True)) as through:
        reader = opened(client, os.O_RDONLY)
        through.opened(reader)
        both, writer = (opened(client, flags | os.O_DIRECT) for flags in (BOTH, os.O_WRONLY))
        assert through.opened(both) == through.opened(writer) == (around, 1)
        with mapped(both) as memory:
            memory[:4] = b"past"
            through.closed(writer)
            through.closed(both)
            assert released == [writer]
            both.node.rescan()
            assert both.node.copy.dirty
        wait_until(lambda: both in released)


def test_pages_that_have_completed_the_copy_are_of_no_use(client: Client) -> None:
    with closing(Passthrough(client.vfs, -1, lambda _: None, is_possible=True)) as through:
        client.vfs.drop_clean_copies()
        first, second = opened(client, os.O_RDONLY), opened(client, os.O_RDONLY)
        assert through.opened(first) == through.opened(second) == (0, 0)
        assert client.pread(first.number, 0, 100) == b"content"
        assert not through.closed(first), "the other one reads them"
        assert through.closed(second)
        served = opened(client, os.O_RDONLY)
        assert through.opened(served) == (Fopen.PASSTHROUGH, 1)
        assert not through.closed(served)


def test_pages_stay_as_long_as_something_is_missing(client: Client) -> None:
    with closing(Passthrough(client.vfs, -1, lambda _: None, is_possible=True)) as through:
        client.vfs.drop_clean_copies()
        reader = opened(client, os.O_RDONLY)
        assert through.opened(reader) == (0, 0)
        assert not through.closed(reader)
