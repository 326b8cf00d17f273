"""Whole mounts, but for the kernel: what was read in part is completed when nobody has it open."""

import errno
import os
import threading

import pytest

from mount import completing
from mount.completing import is_worth_it
from mount.vfs import Vfs
from tests.support.stack import Client, Stack
from tests.support.times import wait_until
from tests.support.vfs import GONE_SECONDS, READ, WatchedWire, raises
from wire.errors import NeverReached
from wire.limits import CHUNK_BYTES

MIB = 1024 * 1024
CHUNKS = 3
CONTENT = b"".join(bytes([number]) * CHUNK_BYTES for number in range(CHUNKS - 1)) + b"end"


@pytest.fixture
def stack(stack: Stack) -> Stack:
    stack.client().write("/file", CONTENT)
    return stack


class Downloads:
    """The chunks that a client asks file servers for; from ``hold`` on they wait until ``let_go``."""

    def __init__(self) -> None:
        self.begun = 0
        self._may_go = threading.Event()
        self._may_go.set()
        self.wire = WatchedWire()
        self.wire.before = self._before

    def _before(self, method: str, url: str) -> None:
        if method == "GET" and url.startswith("http://files"):
            self.begun += 1
            assert self._may_go.wait(20)

    def hold(self) -> None:
        self._may_go.clear()

    def let_go(self) -> None:
        self._may_go.set()


def could_be_lent(client: Client, handle: int) -> bool:
    lent = client.vfs.lend(handle)
    if lent is not None:
        os.close(lent)
    return lent is not None


def read_the_head(client: Client, path: str = "/file") -> None:
    """As a program whose file the kernel would have served, had there been all of it."""
    with client.opened(path, READ) as handle:
        assert not could_be_lent(client, handle)
        assert client.pread(handle, 0, 10)


def begin_and_hold(client: Client, downloads: Downloads) -> None:
    """All the rest is being asked for, and does not come."""
    with client.opened("/file", READ) as handle:
        assert not could_be_lent(client, handle)
        client.pread(handle, 0, 10)
        downloads.hold()
    wait_until(lambda: downloads.begun == CHUNKS)


def lacking(client: Client, path: str = "/file") -> int:
    copy = client.copies.open(client.walk(path).ino)
    try:
        return copy.lacking
    finally:
        copy.close()


def is_idle(vfs: Vfs) -> bool:
    """Whether nothing is being completed, nor will be."""
    completer = vfs._completer
    with vfs._reader.demand.changed:
        return not completer._waiting and not completer._is_working


def test_the_next_open_finds_a_complete_copy(stack: Stack) -> None:
    client = stack.client()
    read_the_head(client)
    wait_until(lambda: is_idle(client.vfs))
    with client.opened("/file", READ) as handle:
        assert could_be_lent(client, handle)
    stack.away("http://files1")
    stack.away("http://files2")
    assert client.read("/file") == CONTENT


def test_what_is_completed_is_complete_for_the_next_mount(stack: Stack) -> None:
    client = stack.client()
    read_the_head(client)
    wait_until(lambda: is_idle(client.vfs))
    client.close()
    again = stack.client(client.cache)
    with again.opened("/file", READ) as handle:
        assert could_be_lent(again, handle)


def test_what_nobody_has_read_is_left_alone(stack: Stack) -> None:
    client = stack.client()
    demand = client.vfs._reader.demand
    demand.begin()  # nothing that was begun could end
    with client.opened("/file", READ) as handle:
        assert not could_be_lent(client, handle)
    assert is_idle(client.vfs)
    with client.opened("/file", READ) as handle:  # the kernel would not have served it: nobody asked
        client.pread(handle, 0, 10)
    assert is_idle(client.vfs)
    demand.end()


def test_programs_come_first(stack: Stack) -> None:
    stack.client().write("/other", b"other")
    downloads = Downloads()
    client = stack.client(wrap=downloads.wire.wrap)
    reader = threading.Thread(target=client.read, args=("/other",))
    with client.opened("/file", READ) as handle:
        assert not could_be_lent(client, handle)
        client.pread(handle, 0, 10)
        downloads.hold()
        reader.start()
        wait_until(lambda: downloads.begun == 2)
    with pytest.raises(AssertionError, match="not within"):
        wait_until(lambda: downloads.begun > 2, GONE_SECONDS)
    assert not is_idle(client.vfs)
    downloads.let_go()
    reader.join()
    wait_until(lambda: is_idle(client.vfs))
    assert not lacking(client)


@pytest.mark.parametrize("how", ["the end", "dropping the cache"])
def test_it_is_given_up_at_once(stack: Stack, how: str) -> None:
    downloads = Downloads()
    client = stack.client(wrap=downloads.wire.wrap)
    ino = client.walk("/file").ino
    begin_and_hold(client, downloads)
    if how == "the end":
        client.vfs._completer.close()
    else:
        client.vfs.drop_clean_copies()
        assert not client.copies.has(ino)
    assert client.vfs._table.peek(ino) is None
    downloads.let_go()
    client.close()
    assert client.copies.has(ino) == (how == "the end")


def test_a_copy_that_moves_on_is_given_up(stack: Stack) -> None:
    downloads = Downloads()
    one, two = stack.client(wrap=downloads.wire.wrap), stack.client()
    begin_and_hold(one, downloads)
    two.write("/file", b"new content", 0)
    with one.opened("/file", READ) as handle:
        downloads.let_go()
        wait_until(lambda: is_idle(one.vfs))
        assert lacking(one), "of the new version nothing was asked for"
        assert one.pread(handle, 0, 20) == b"new content" + bytes(9)


def test_what_loses_its_name_meanwhile_is_forgotten(stack: Stack) -> None:
    downloads = Downloads()
    client = stack.client(wrap=downloads.wire.wrap)
    ino = client.walk("/file").ino
    begin_and_hold(client, downloads)
    client.unlink("/file")
    downloads.let_go()
    wait_until(lambda: is_idle(client.vfs))
    assert not client.copies.has(ino)


def test_nothing_is_tried_again_while_services_are_away(stack: Stack) -> None:
    maker = stack.client()
    maker.write("/other", CONTENT)
    downloads = Downloads()
    client = stack.client(wrap=downloads.wire.wrap, deadline_seconds=0.3)
    demand = client.vfs._reader.demand
    demand.begin()
    for path in ("/file", "/other"):
        read_the_head(client, path)
    chunks = set()

    def away(_method: str, url: str) -> None:
        if url.startswith("http://files"):
            chunks.add(url.rpartition("/")[2])
            raise NeverReached("it is away")

    downloads.wire.before = away
    demand.end()
    wait_until(lambda: is_idle(client.vfs))
    assert len(chunks) == CHUNKS - 1, "of one file only"
    downloads.wire.before = lambda _method, _url: None
    assert lacking(client, "/file") == lacking(client, "/other") == CHUNKS - 1


def test_a_broken_chunk_is_the_reader_s_to_hear_of(stack: Stack) -> None:
    downloads = Downloads()
    client = stack.client(wrap=downloads.wire.wrap)
    demand = client.vfs._reader.demand
    demand.begin()
    read_the_head(client)

    def broken(method: str, url: str) -> None:
        if method == "GET" and url.startswith("http://files"):
            raise OSError(errno.EIO, "broken")

    downloads.wire.before = broken
    demand.end()
    wait_until(lambda: is_idle(client.vfs))
    with client.opened("/file", READ) as handle, raises(errno.EIO):
        client.pread(handle, CHUNK_BYTES, 10)


def test_of_too_many_the_last_ones_are_completed(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completing, "WAITING_MAX", 2)
    stack.clients[0].write("/first", CONTENT)
    names = [f"/{number}" for number in range(3)]
    for name in names:
        stack.clients[0].write(name, CONTENT[: CHUNK_BYTES + 1])
    client = stack.client()
    client.vfs._reader.demand.begin()
    read_the_head(client, "/first")
    wait_until(lambda: client.vfs._completer._is_working)
    for name in names:
        read_the_head(client, name)
    client.vfs._reader.demand.end()
    wait_until(lambda: is_idle(client.vfs))
    assert [lacking(client, name) for name in ["/first", *names]] == [0, 1, 0, 0]


CACHE = 10 * 1024 * MIB


@pytest.mark.parametrize(
    ("size", "lack", "worth"),
    [
        (8 * MIB, 0, False),
        (8 * MIB, 4 * MIB, True),
        (64 * MIB, 60 * MIB, True),
        (65 * MIB, 40 * MIB, False),
        (65 * MIB, 32 * MIB, True),
        (600 * MIB, 256 * MIB, True),
        (600 * MIB, 260 * MIB, False),
        (CACHE // 8, 4 * MIB, True),
        (CACHE // 8 + 1, 4 * MIB, False),
    ],
)
def test_what_is_worth_it(size: int, lack: int, worth: bool) -> None:
    assert is_worth_it(size, lack, CACHE) == worth
