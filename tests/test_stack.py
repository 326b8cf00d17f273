"""What the Vfs means, through its interface, over the real services: with one client and with two."""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from sqlalchemy import select, update

from cache.sparse import SparseFile
from clients.session import Answer, Wire
from mount import committing, locks, recovery
from mount.nodes import Node
from mount.vfs import Changes
from servers.directory.collection import forget_holds
from servers.directory.schema import holds
from tests.support.stack import DIRECTORY, LOCK, Client, Stack, split
from tests.support.times import wait_until
from wire.errors import Busy, Conflict, ReplyLost, fail
from wire.limits import CHUNK_BYTES, OPS_MAX
from wire.messages.common import Caller
from wire.messages.directory import ROOT_INO, Create

READ, WRITE, BOTH, MAKE = os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT
BORDER = CHUNK_BYTES
GONE_SECONDS = 0.3
BASE = b"what both of them began with"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A realm for tests that break nothing in it."""
    with Stack(tmp_path_factory.mktemp("shared")) as stack:
        yield stack


@pytest.fixture(scope="module")
def pair(shared: Stack) -> tuple[Client, Client]:
    """Two clients of the same user in it."""
    return shared.client(lock_wait_seconds=0.2), shared.client(lock_wait_seconds=0.2)


@pytest.fixture
def place(pair: tuple[Client, Client], request: pytest.FixtureRequest) -> str:
    """A fresh directory."""
    path = f"/{request.node.name}"
    pair[0].mkdir(path)
    return path


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A realm of this test's own."""
    with Stack(tmp_path) as stack:
        yield stack


def raises(number: int) -> "pytest.RaisesExc[OSError]":
    """An OSError with this errno."""
    return pytest.raises(OSError, check=lambda error: error.errno == number)


class WatchedWire:
    """Calls ``before`` and ``after`` each request; what they raise takes its place."""

    def __init__(self) -> None:
        self._inner: Wire
        self.before: Callable[[str, str], None] = lambda method, url: None
        self.after: Callable[[str, str], None] = lambda method, url: None

    def wrap(self, inner: Wire) -> Wire:
        """Stands before ``inner`` from now on."""
        self._inner = inner
        return self

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
    ) -> Answer:
        self.before(method, url)
        answer = self._inner.send(method, url, headers, body, silence_seconds)
        self.after(method, url)
        return answer


# Content


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


def test_holes_are_zeros_and_cost_nothing(shared: Stack, pair: tuple[Client, Client], place: str) -> None:
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


# Names


def test_names(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    one.mkdir(f"{place}/dir")
    one.write(f"{place}/dir/file", b"content")
    assert two.names(f"{place}/dir") == ["file"]
    with raises(errno.EEXIST):
        two.mkdir(f"{place}/dir")
    with raises(errno.ENOTEMPTY):
        two.rmdir(f"{place}/dir")
    with raises(errno.EISDIR):
        two.unlink(f"{place}/dir")
    with raises(errno.ENOTDIR):
        two.rmdir(f"{place}/dir/file")
    with raises(errno.EISDIR):
        two.open(f"{place}/dir", READ)
    with raises(errno.ENAMETOOLONG):
        two.mkdir(f"{place}/{'x' * 256}")
    two.rename(f"{place}/dir/file", f"{place}/moved")
    assert one.read(f"{place}/moved") == b"content"
    with raises(errno.ENOENT):
        one.open(f"{place}/dir/file", READ)
    with raises(errno.EEXIST):
        one.open(f"{place}/moved", MAKE | os.O_EXCL)
    two.rmdir(f"{place}/dir")
    assert one.names(place) == ["moved"]


def test_links_and_symlinks(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    one.write(f"{place}/a", b"content")
    assert two.link(f"{place}/a", f"{place}/b").nlink == 2
    one.append(f"{place}/b", b" and more")
    assert two.read(f"{place}/a") == b"content and more"
    two.unlink(f"{place}/a")
    assert one.walk(f"{place}/b", fresh=True).nlink == 1
    one.symlink("b", f"{place}/soft")
    assert two.vfs.readlink(two.walk(f"{place}/soft").ino, None) == b"b"
    with raises(errno.ESTALE):
        two.open(f"{place}/soft", READ)


def test_rename_replaces_and_exchanges(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    one.write(f"{place}/a", b"a")
    one.write(f"{place}/b", b"b")
    with raises(errno.EEXIST):
        two.rename(f"{place}/a", f"{place}/b", 1)
    two.rename(f"{place}/a", f"{place}/b", 2)
    assert (one.read(f"{place}/a"), one.read(f"{place}/b")) == (b"b", b"a")
    with one.opened(f"{place}/b", BOTH) as handle:
        two.rename(f"{place}/a", f"{place}/b")
        assert one.pread(handle, 0, 10) == b"a"
        one.vfs.write(handle, 1, b"nobody will read this")
    assert one.read(f"{place}/b") == two.read(f"{place}/b") == b"b"


def test_what_is_open_lives_on_without_a_name(stack: Stack) -> None:
    one = stack.client()
    handle = one.open("/file", MAKE)
    one.vfs.write(handle, 0, b"one")
    one.vfs.flush(handle)
    one.unlink("/file")
    ino = one.vfs.handle_attr(handle).ino
    one.vfs.write(handle, 3, b" two")
    one.vfs.flush(handle)
    assert one.pread(handle, 0, 20) == b"one two"
    assert one.vfs.handle_attr(handle).nlink == 0
    assert one.vfs.setattr(ino, Changes(size=2), None, handle).size == 2
    one.close_handle(handle)
    assert not one.vfs.unsaved()
    assert one.vfs.local_version(ino) == (0, False)
    assert one.names() == []


def test_a_reader_keeps_what_a_rename_replaced(stack: Stack) -> None:
    one = stack.client()
    one.write("/old", b"old")
    one.write("/new", b"new")
    handle = one.open("/old", READ)
    one.rename("/new", "/old")
    assert one.pread(handle, 0, 10) == b"old"
    one.vfs.release(handle)
    assert one.read("/old") == b"new"


def test_a_directory_with_three_thousand_entries(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    ino = one.walk(place, fresh=True).ino
    wanted = sorted(f"name {number}" for number in range(3000))
    for first in range(0, 3000, OPS_MAX):
        one.proxy.directory.mutate(
            [Create(ino, os.fsencode(name), stat.S_IFREG | 0o644) for name in wanted[first : first + OPS_MAX]]
        )
    assert two.names(place) == wanted
    two.vfs.unlink(ino, b"name 1500", None)
    assert len(two.names(place)) == 2999


# Attributes


def test_attributes(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    one.write(f"{place}/file", b"content")
    one.set(f"{place}/file", Changes(mode=0o600, mtime=5 * 10**9, atime=7))
    attr = two.walk(f"{place}/file", fresh=True)
    assert (stat.S_IMODE(attr.mode), attr.mtime, attr.atime) == (0o600, 5 * 10**9, 7)
    with raises(errno.EPERM):
        two.set(f"{place}/file", Changes(uid=7))
    two.set(f"{place}/file", Changes(mtime_now=True))
    assert one.walk(f"{place}/file", fresh=True).mtime > 5 * 10**9


def test_attributes_of_dirty_content_go_with_it(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    with one.opened(f"{place}/file", MAKE) as handle:
        one.vfs.write(handle, 0, b"content")
        ino = one.walk(f"{place}/file").ino
        shown = one.vfs.setattr(ino, Changes(mode=0o4755, mtime=5), None, handle)
        assert (stat.S_IMODE(shown.mode), shown.mtime, shown.size) == (0o4755, 5, 7)
    attr = two.walk(f"{place}/file", fresh=True)
    assert (stat.S_IMODE(attr.mode), attr.mtime, attr.size) == (0o4755, 5, 7)
    with one.opened(f"{place}/file", BOTH) as handle:
        one.vfs.write(handle, 0, b"C")
    attr = two.walk(f"{place}/file", fresh=True)
    assert stat.S_IMODE(attr.mode) == 0o755
    assert attr.mtime > 5


def test_the_size_is_set_by_handles_that_may(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    one.write(f"{place}/file", b"content")
    ino = one.walk(f"{place}/file").ino
    with one.opened(f"{place}/file", READ) as handle, raises(errno.EINVAL):
        one.vfs.setattr(ino, Changes(size=1), None, handle)
    with one.opened(f"{place}/file", WRITE) as handle:
        one.vfs.setattr(ino, Changes(size=3), None, handle)
        with raises(errno.EBADF):
            one.pread(handle, 0, 1)
        assert two.read(f"{place}/file") == b"content"
    assert two.read(f"{place}/file") == b"con"
    with one.opened(f"{place}/file", READ) as handle, raises(errno.EBADF):
        one.vfs.write(handle, 0, b"x")


def test_extended_attributes(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    one.write(f"{place}/file", b"")
    ino = one.walk(f"{place}/file").ino
    assert two.vfs.listxattr(ino, None) == []
    one.vfs.setxattr(ino, b"user.a", b"1", 0, None)
    two.walk(f"{place}/file", fresh=True)
    assert two.vfs.getxattr(ino, b"user.a", None) == b"1"
    with raises(errno.EEXIST):
        two.vfs.setxattr(ino, b"user.a", b"2", os.XATTR_CREATE, None)
    with raises(errno.ENODATA):
        two.vfs.setxattr(ino, b"user.b", b"2", os.XATTR_REPLACE, None)
    two.vfs.removexattr(ino, b"user.a", None)
    with raises(errno.ENODATA):
        two.vfs.getxattr(ino, b"user.a", None)


def test_statfs_knows_the_space(pair: tuple[Client, Client]) -> None:
    space = pair[0].vfs.statfs()
    assert 0 < space.free_bytes <= space.total_bytes


# Two users


def test_permissions_of_two_users(stack: Stack) -> None:
    alice = stack.client()
    bob = stack.client(user="bob", uid=10002, gids=(10002,))
    alice.mkdir("/hers", 0o755)
    alice.write("/hers/file", b"secret")
    assert bob.read("/hers/file") == b"secret"
    for do in (
        lambda: bob.open("/hers/file", WRITE),
        lambda: bob.open("/hers/other", MAKE),
        lambda: bob.unlink("/hers/file"),
        lambda: bob.set("/hers/file", Changes(size=0)),
    ):
        with raises(errno.EACCES):
            do()
    with raises(errno.EPERM):
        bob.set("/hers/file", Changes(mode=0o777))
    alice.set("/hers/file", Changes(mode=0o600))
    with raises(errno.EACCES):
        bob.open("/hers/file", READ)
    alice.set("/hers", Changes(mode=0o700))
    with raises(errno.EACCES):
        bob.walk("/hers/file", fresh=True)
    bob.write("/his", b"in the root, which is sticky")
    with raises(errno.EPERM):
        alice.unlink("/his")
    with alice.opened("/hers/readonly", MAKE, 0o444) as handle:
        alice.vfs.write(handle, 0, b"its creator may write")
    with raises(errno.EACCES):
        alice.open("/hers/readonly", WRITE)
    assert alice.read("/hers/readonly") == b"its creator may write"


def test_a_trusted_mount_speaks_for_others(stack: Stack) -> None:
    mount = stack.client(user="root", uid=0, gids=(0,), trusted=True)
    alice, bob = Caller(10001, [10001]), Caller(10002, [10002])
    mount.write("/file", b"hers", who=alice)
    assert mount.walk("/file").uid == alice.uid
    with raises(errno.EACCES):
        mount.open("/file", WRITE, who=bob)
    mount.set("/file", Changes(mode=0o666), alice)
    with mount.opened("/file", WRITE, who=bob) as handle:
        mount.vfs.write(handle, 0, b"his")
        mount.set("/file", Changes(mode=0o640), alice)
    attr = mount.walk("/file", fresh=True)
    assert (stat.S_IMODE(attr.mode), attr.size) == (0o640, 4)
    assert mount.read("/file", who=alice) == b"hiss"
    assert not mount.vfs.unsaved()


# Locks


def test_one_writer(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    handle = one.open(f"{place}/file", MAKE)
    with pytest.raises(Busy, match="alice"):
        two.open(f"{place}/file", WRITE)
    with raises(errno.EWOULDBLOCK):
        two.open(f"{place}/file", WRITE | os.O_NONBLOCK)
    with raises(errno.EBUSY):
        two.set(f"{place}/file", Changes(size=1))
    assert two.read(f"{place}/file") == b""
    one.close_handle(handle)
    two.write(f"{place}/file", b"now")


def test_who_waits_is_let_in_when_the_other_closes(stack: Stack) -> None:
    one, two = stack.client(), stack.client(lock_wait_seconds=20.0)
    handle = one.open("/file", MAKE)
    one.vfs.write(handle, 0, b"one")
    done = threading.Event()

    def append() -> None:
        two.append("/file", b" two")
        done.set()

    waiter = threading.Thread(target=append)
    waiter.start()
    wait_until(lambda: any(lock.queue for lock in stack.lock.service.locks().locks))
    assert not done.is_set()
    one.close_handle(handle)
    waiter.join(10)
    assert done.is_set()
    assert one.read("/file") == b"one two"


def lose_locks(stack: Stack, client: Client) -> None:
    """The leases of all end, and the client learns it."""
    stack.advance_locks()
    locks = client.proxy.write_locks
    locks._forget([locks._held[client.walk("/file").ino]])


def test_a_lost_lock_is_taken_again_if_nobody_wrote(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    with one.opened("/file", MAKE) as handle:
        one.vfs.write(handle, 0, b"before")
        lose_locks(stack, one)
        one.vfs.write(handle, 6, b" after")
        assert stack.lock_holders()[one.walk("/file").ino] == one.proxy.keyring.session.session
    assert two.read("/file") == b"before after"
    assert one.names() == ["file"]


def test_a_lock_lost_unheard_is_taken_again_at_the_commit(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    with one.opened("/file", MAKE) as handle:
        one.vfs.write(handle, 0, b"content")
        stack.advance_locks()
        with two.opened("/file", READ) as reading:  # looks, and does not write
            assert two.pread(reading, 0, 10) == b""
        with two.opened("/file", WRITE):  # raises the mark, and writes nothing
            pass
    assert two.walk("/file", fresh=True).size == 7
    assert one.names() == ["file"]


def test_a_lock_that_ended_while_it_waited_to_be_given_back_is_asked_for_anew(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "FRESH_RELEASE_SECONDS", 3600.0)
    one, two = stack.client(), stack.client()
    one.write("/file", b"one")
    stack.advance_locks()
    two.append("/file", b" two")
    one.append("/file", b" three")
    assert two.read("/file") == b"one two three"


def test_who_lost_the_lock_and_the_leave_to_write_gets_a_conflict_copy(stack: Stack) -> None:
    """Only while the lock is held does the leave last that was given at the open."""
    alice, bob = stack.client(), stack.client(user="bob", uid=10002, gids=(10002,))
    alice.write("/file", BASE)
    alice.set("/file", Changes(mode=0o666))
    handle = bob.open("/file", BOTH)
    bob.vfs.write(handle, 0, b"LOSER")
    alice.set("/file", Changes(mode=0o644))
    bob.vfs.flush(handle)
    assert alice.read("/file") == b"LOSER" + BASE[5:]
    bob.vfs.write(handle, 0, b"AGAIN")
    lose_locks(stack, bob)
    with raises(errno.ESTALE):
        bob.vfs.flush(handle)
    bob.vfs.release(handle)
    copy = max(bob.names(), key=len)
    assert (bob.read(f"/{copy}"), bob.read("/file")) == (b"AGAIN" + BASE[5:], b"LOSER" + BASE[5:])
    alice.write("/file", b"mine")
    assert alice.read("/file")[:4] == b"mine"


@pytest.mark.parametrize("is_told", [True, False])
def test_who_lost_the_lock_to_a_writer_gets_a_conflict_copy(stack: Stack, is_told: bool) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", BASE)
    handle = one.open("/file", BOTH)
    one.vfs.write(handle, 0, b"LOSER")
    stack.advance_locks()
    two.write("/file", b"winner")
    if is_told:
        lose_locks(stack, one)
        with pytest.raises(Conflict):
            one.vfs.write(handle, 0, b"x")
    for _ in range(2):
        with raises(errno.ESTALE):
            one.vfs.flush(handle)
    with raises(errno.ESTALE):
        one.vfs.write(handle, 0, b"x")
    one.vfs.release(handle)
    [copy] = [name for name in one.names() if name != "file"]
    assert copy.startswith("file (conflict alice@")
    assert two.read(f"/{copy}") == b"LOSER" + BASE[5:]
    assert one.read("/file") == two.read("/file") == b"winner" + BASE[6:]
    one.write("/file", b"again")
    assert two.read("/file") == b"againr" + BASE[6:]
    assert not one.vfs.unsaved()


def lose(loser: Client, path: str, stack: Stack, do: Callable[[], object]) -> int:
    """Writes through a handle of ``loser``'s; then somebody else does something to the file, and its lock is
    lost. The handle, whose next flush makes a conflict copy."""
    handle = loser.open(path, BOTH)
    loser.vfs.write(handle, 0, b"LOSER")
    stack.advance_locks()
    do()
    return handle


@pytest.mark.parametrize("holds", [True, False])
def test_a_conflict_copy_of_a_version_that_is_not_retained(
    stack: Stack, caplog: pytest.LogCaptureFixture, holds: bool
) -> None:
    """What is here of the base is uploaded, what is nowhere becomes a hole, and the changes are kept."""
    one, two = stack.client(), stack.client()
    base = b"a" * BORDER + b"b" * 10
    two.write("/file", base)
    if holds:
        one.read("/file")

    def replace() -> None:
        with two.opened("/file", BOTH | os.O_TRUNC) as handle:
            two.vfs.write(handle, 0, b"winner")
        object.__setattr__(stack._directory_config, "retention_seconds", 0.0)
        object.__setattr__(stack._directory_config, "grace_seconds", 0.0)
        for _ in range(3):  # the version ends, its chunks are condemned, they are deleted
            stack.maintain()
        object.__setattr__(stack._directory_config, "grace_seconds", 3600.0)

    handle = lose(one, "/file", stack, replace)
    with raises(errno.ESTALE):
        one.vfs.flush(handle)
    one.vfs.release(handle)
    [copy] = [name for name in two.names() if name != "file"]
    assert two.read(f"/{copy}") == b"LOSER" + base[5:BORDER] + (b"b" if holds else b"\0") * 10
    assert ("1 chunks of the version that was changed are neither here nor retained" in caplog.text) != holds
    assert not one.vfs.unsaved()


def test_a_conflict_copy_that_cannot_be_stored_leaves_no_name(stack: Stack) -> None:
    wire = WatchedWire()
    one, two = stack.client(wrap=wire.wrap, deadline_seconds=GONE_SECONDS), stack.client()
    two.write("/file", BASE)
    handle = lose(one, "/file", stack, lambda: two.write("/file", b"winner"))
    mutations: list[str] = []

    def full(method: str, url: str) -> None:
        mutations.extend([url] if url.endswith("/mutations") else [])
        if method == "PUT" and mutations:  # the commit has lost
            raise fail(errno.ENOSPC)

    def refuse_the_commit(method: str, url: str) -> None:
        mutations.extend([url] if url.endswith("/mutations") else [])
        if len(mutations) == 3:  # the commit that loses, the creation, the copy's own commit
            raise fail(errno.EDQUOT)

    for trouble, number in ((full, errno.ENOSPC), (refuse_the_commit, errno.EDQUOT)):
        mutations.clear()
        wire.before = trouble
        with raises(number):
            one.vfs._committer.commit(one.vfs._handle(handle).node)
        assert two.names() == ["file"]
    wire.before = lambda method, url: None
    with raises(errno.ESTALE):
        one.vfs._committer.commit(one.vfs._handle(handle).node)
    one.vfs.release(handle)
    [copy] = [name for name in two.names() if name != "file"]
    assert two.read(f"/{copy}") == b"LOSER" + BASE[5:]


def test_a_conflict_copy_in_a_foreign_folder_is_private(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    two.mkdir("/private", 0o700)
    two.write("/private/file", BASE)

    def move() -> None:
        two.rename("/private/file", "/file")
        two.rmdir("/private")
        two.write("/file", b"winner")

    handle = lose(one, "/private/file", stack, move)
    with raises(errno.ESTALE):
        one.vfs.flush(handle)
    one.vfs.release(handle)
    [copy] = [name for name in two.names() if name != "file"]
    assert stat.S_IMODE(two.walk(f"/{copy}").mode) == 0o600
    assert stat.S_IMODE(two.walk("/file").mode) == 0o644


def test_who_lost_his_lock_does_not_write_over_what_he_has_not_read(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", b"5")
    with pytest.raises(OSError, match="meanwhile") as at_close, one.opened("/file", BOTH) as handle:
        assert one.pread(handle, 0, 20) == b"5"
        stack.advance_locks()
        two.write("/file", b"6")
        lose_locks(stack, one)
        with pytest.raises(OSError, match="meanwhile") as at_write:
            one.vfs.write(handle, 0, b"6")
        assert at_write.value.errno == errno.ESTALE
    assert at_close.value.errno == errno.ESTALE
    assert two.read("/file") == b"6"
    with one.opened("/file", BOTH) as handle:
        assert one.pread(handle, 0, 20) == b"6"
        one.vfs.write(handle, 0, b"7")
    assert two.read("/file") == b"7"


def test_an_idle_writer_that_lost_his_lock_keeps_no_reader_from_a_newer_version(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", BASE)
    writer = one.open("/file", BOTH)
    assert one.pread(writer, 0, 100) == BASE
    stack.advance_locks()
    two.write("/file", b"winner")
    lose_locks(stack, one)
    assert one.read("/file") == two.read("/file") == b"winner" + BASE[6:]
    with raises(errno.ESTALE):
        one.vfs.write(writer, 0, b"of what it has not read")
    with raises(errno.ESTALE):
        one.close_handle(writer)
    assert two.read("/file") == b"winner" + BASE[6:]
    one.write("/file", b"again!")
    assert two.read("/file") == b"again!" + BASE[6:]
    assert one.names() == ["file"]


# What fsync covers


def test_fsync_is_about_the_file_and_not_the_handle(stack: Stack) -> None:
    one, two = stack.client(deadline_seconds=GONE_SECONDS), stack.client()
    writer = one.open("/file", MAKE)
    one.vfs.write(writer, 0, b"content")
    with one.opened("/file", READ) as reader:
        one.vfs.flush(reader)
        assert two.read("/file") == b"", "closing a reader promises nothing"
        one.vfs.fsync(reader)
        assert two.read("/file") == b"content"
        assert one.walk("/file").ino in stack.lock_holders()
        one.vfs.write(writer, 7, b" and more")
        stack.away(DIRECTORY)
        with raises(errno.ETIMEDOUT):
            one.vfs.fsync(reader)
        stack.back()
    one.vfs.release(writer)
    assert two.read("/file") == b"content and more"


class WatchedLock:
    """A lock that tells when somebody asks for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.asked = threading.Semaphore(0)

    def __enter__(self) -> None:
        self.asked.release()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_those_who_wait_for_a_commit_that_fails_make_none_of_their_own(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = WatchedWire()
    one = stack.client(wrap=wire.wrap)
    handles = [one.open("/file", MAKE)]
    handles += [one.open("/file", WRITE) for _ in range(3)]
    one.vfs.write(handles[0], 0, b"content")
    gate, attempts, errors = threading.Event(), list[str](), list[object]()

    def fail_late(method: str, url: str) -> None:
        if method == "PUT":
            attempts.append(url)
            assert gate.wait(10)
            raise fail(errno.ENETDOWN)

    def fsync(handle: int) -> None:
        with pytest.raises(OSError) as error:
            one.vfs.fsync(handle)
        errors.append(error.value.errno)

    wire.before = fail_late
    committing = WatchedLock()
    monkeypatch.setattr(one.vfs._handle(handles[0]).node, "committing", committing)
    threads = [threading.Thread(target=fsync, args=(handle,)) for handle in handles]
    for thread in threads:
        thread.start()
        assert committing.asked.acquire(timeout=10)
    gate.set()
    for thread in threads:
        thread.join(10)
    assert len(errors) == 4
    assert len(attempts) == 2, "one attempt, at two servers"
    wire.before = lambda method, url: None
    for handle in handles:
        one.vfs.release(handle)
    assert not one.vfs.unsaved()


# What goes wrong on the way


def test_a_reader_of_a_new_version_does_not_wait_for_the_old_one(stack: Stack) -> None:
    wire = WatchedWire()
    one, two = stack.client(wrap=wire.wrap), stack.client()
    two.write("/file", b"old")
    seen, gate, found = threading.Event(), threading.Event(), list[bytes]()
    old = ""

    def hold_back(method: str, url: str) -> None:
        nonlocal old
        if method == "GET" and "/v1/chunks/" in url:
            old = old or url.rpartition("/")[2]
            if url.endswith(old):
                seen.set()
                assert gate.wait(10)
                raise fail(errno.ENETDOWN)

    wire.before = hold_back
    early = threading.Thread(target=lambda: found.append(one.read("/file")))
    early.start()
    assert seen.wait(10)
    two.write("/file", b"new")
    assert one.read("/file") == b"new"
    gate.set()
    early.join(10)
    assert found == [b"new"], "what failed is not asked for any more"


def test_of_a_punch_that_failed_the_first_part_is_committed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = stack.client(), stack.client()
    punch = SparseFile.punch

    def first_only(file: SparseFile, offset: int, size: int) -> None:
        if offset:
            raise fail(errno.EIO)
        punch(file, offset, size)

    with one.opened("/file", MAKE) as handle:
        one.vfs.write(handle, 0, b"a" * BORDER)  # its upload begins here
        one.vfs.write(handle, BORDER, b"a" * BORDER)
        with monkeypatch.context() as patch, raises(errno.EIO):
            patch.setattr(SparseFile, "punch", first_only)
            one.vfs.punch(handle, 0, 2 * BORDER)
    assert two.read("/file") == bytes(BORDER) + b"a" * BORDER


def test_writing_back_goes_on_after_what_nobody_foresaw(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = stack.client(), stack.client()
    handles = [one.open(f"/{name}", MAKE) for name in "ab"]
    for handle in handles:
        one.vfs.write(handle, 0, b"content")
    commit = one.vfs._committer.commit

    def fail_first(node: Node) -> None:
        if node.ino == one.vfs.inode_of(handles[0]):
            raise RuntimeError("on purpose")
        commit(node)

    with monkeypatch.context() as patch:
        patch.setattr(one.vfs._committer, "commit", fail_first)
        one.vfs.write_back_all()
    assert "on purpose" in caplog.text
    caplog.clear()
    assert (two.read("/a"), two.read("/b")) == (b"", b"content")
    for handle in handles:
        one.close_handle(handle)


def test_a_torn_early_upload_is_not_committed(stack: Stack) -> None:
    """A sequential writer's chunk is uploaded while it is overwritten: the later content is committed."""
    gate, seen = threading.Event(), threading.Event()
    wire = WatchedWire()

    one, two = stack.client(wrap=wire.wrap), stack.client()

    def hold_back(method: str, url: str) -> None:
        if method == "PUT" and not seen.is_set():
            seen.set()
            assert gate.wait(10)

    with one.opened("/file", MAKE) as handle:
        wire.before = hold_back
        one.vfs.write(handle, 0, b"a" * BORDER)
        assert seen.wait(10)
        one.vfs.write(handle, 100, b"b" * 100)
        gate.set()
    assert two.read("/file") == b"a" * 100 + b"b" * 100 + b"a" * (BORDER - 200)


def test_chunks_that_the_directory_has_condemned_are_uploaded_again(tmp_path: Path) -> None:
    """No receipt is believed at first: what the commit names is not known."""
    with Stack(tmp_path, grace_seconds=0.0, retention_seconds=0.0) as stack:
        wire = WatchedWire()

        one, two = stack.client(wrap=wire.wrap), stack.client()
        rounds: list[str] = []

        def forget(method: str, url: str) -> None:
            if method == "PUT":
                rounds.append(url)
                if len(rounds) == 3:
                    object.__setattr__(stack._directory_config, "grace_seconds", 3600.0)

        wire.before = forget
        with one.opened("/file", MAKE) as handle:
            one.vfs.write(handle, 0, b"a" * (BORDER + 5))
        assert len(rounds) == 4
        assert two.read("/file") == b"a" * (BORDER + 5)


@pytest.mark.parametrize("later", [b"", b" later"])
def test_a_commit_whose_answer_was_lost_for_good(stack: Stack, later: bytes) -> None:
    wire = WatchedWire()

    one = stack.client(wrap=wire.wrap, deadline_seconds=GONE_SECONDS)
    two = stack.client()

    def lose(method: str, url: str) -> None:
        if url.endswith("/v1/mutations"):
            raise ReplyLost("on purpose")

    handle = one.open("/file", MAKE)
    one.vfs.write(handle, 0, b"content")
    wire.after = lose
    with raises(errno.ETIMEDOUT):
        one.vfs.flush(handle)
    assert two.read("/file") == b"content"
    wire.after = lambda method, url: None
    if later:
        one.vfs.release(handle)
        wait_until(lambda: not one.vfs.unsaved())
        one.append("/file", later)
    else:
        with raises(errno.ETIMEDOUT):
            one.vfs.flush(handle)
        one.vfs.release(handle)
    assert not one.vfs.unsaved()
    assert two.read("/file") == one.read("/file") == b"content" + later
    assert one.names() == ["file"]


def test_a_commit_found_after_its_lock_was_lost(stack: Stack) -> None:
    """Its answer is lost, then its lease: the directory is asked for the commit, and the work goes on."""
    wire = WatchedWire()

    one = stack.client(wrap=wire.wrap, deadline_seconds=GONE_SECONDS)
    two = stack.client()

    def lose(method: str, url: str) -> None:
        if url.endswith("/v1/mutations"):
            raise ReplyLost("on purpose")

    handle = one.open("/file", MAKE)
    one.vfs.write(handle, 0, b"content")
    wire.after = lose
    with raises(errno.ETIMEDOUT):
        one.vfs.flush(handle)
    wire.after = lambda method, url: None
    lose_locks(stack, one)
    two.append("/file", b" and more")
    one.vfs.release(handle)
    assert not one.vfs.unsaved()
    assert one.read("/file") == two.read("/file") == b"content and more"
    assert one.walk("/file").size == 16
    assert one.names() == ["file"]


def test_what_a_close_could_not_write_is_written_when_the_servers_are_back(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committing, "RETRY_SECONDS", (0.05,))
    one, two = stack.client(deadline_seconds=GONE_SECONDS), stack.client()
    handle = one.open("/file", MAKE)
    one.vfs.write(handle, 0, b"content")
    for url in ("http://files1", "http://files2"):
        stack.away(url)
    with raises(errno.ETIMEDOUT):
        one.vfs.flush(handle)
    with raises(errno.ETIMEDOUT):
        one.vfs.write(handle, 0, b"x")
    one.vfs.release(handle)
    assert one.vfs.unsaved() == [one.walk("/file").ino]
    assert one.read("/file") == b"content"
    with pytest.raises(Busy):
        two.proxy.write_locks.acquire(one.walk("/file").ino, 0.0)
    stack.back()
    wait_until(lambda: not one.vfs.unsaved())
    assert two.read("/file") == b"content"
    two.append("/file", b" and more")
    assert one.read("/file") == b"content and more"


def test_fsync_covers_what_was_written_after_a_commit_that_timed_out(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit that is sent again first is not all there is to commit."""
    monkeypatch.setattr(committing, "RETRY_SECONDS", (3600.0,))
    one, two = stack.client(deadline_seconds=GONE_SECONDS), stack.client()
    one.write("/other", b"so that it knows where chunks go")
    handle = one.open("/file", MAKE)
    one.vfs.write(handle, 0, b"content")
    stack.away(DIRECTORY)
    with raises(errno.ETIMEDOUT):
        one.vfs.flush(handle)
    one.vfs.release(handle)
    stack.back()
    handle = one.open("/file", WRITE)
    one.vfs.write(handle, 7, b" and more")
    one.vfs.flush(handle)
    assert two.read("/file") == b"content and more"
    one.vfs.release(handle)


def test_one_dead_file_server_costs_nothing(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/a", b"a")
    stack.away("http://files1")
    one.write("/b", b"b")
    assert (two.read("/a"), two.read("/b")) == (b"a", b"b")
    stack.back()
    stack.away("http://files2")
    assert stack.client().read("/a") == b"a"


def test_services_that_are_restarted_are_only_waited_for(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    handle = one.open("/file", MAKE)
    one.vfs.write(handle, 0, b"content")
    for url, server in ((LOCK, stack.lock), (DIRECTORY, stack.directory)):
        stack.away(url)
        server.close()
    closing = threading.Thread(target=one.close_handle, args=(handle,))
    closing.start()
    stack.start_directory()
    stack.start_lock()
    stack.maintain()
    closing.join(10)
    assert not closing.is_alive()
    assert two.read("/file") == b"content"
    two.append("/file", b" and more")
    assert one.read("/file") == b"content and more"


# Recovery


def test_what_a_killed_mount_had_not_committed_becomes_a_conflict_copy(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", b"acknowledged")
    handle = one.open("/file", BOTH)
    one.vfs.write(handle, 0, b"UNSAVED")
    one.kill()
    again = stack.client(one.cache, started=False)
    again.recovery.run()
    assert again.recovery.left() == []
    again.start()
    assert two.read("/file") == b"acknowledged"
    [kept] = [name for name in two.names() if name != "file"]
    assert kept.startswith("file (conflict alice@")
    assert two.read(f"/{kept}") == b"UNSAVEDedged"
    stack.advance_locks()
    again.append("/file", b"!")
    assert two.read("/file") == b"acknowledged!"


def left_dirty(stack: Stack, paths: list[str], *, flushed: bool) -> Client:
    """A client that was killed with content that no commit had covered, while the directory was away; with
    ``flushed`` an fsync had begun a commit."""
    client = stack.client(deadline_seconds=GONE_SECONDS)
    client.write("/other", b"so that it knows where chunks go")
    handles = [client.open(path, MAKE) for path in paths]
    for handle in handles:
        client.vfs.write(handle, 0, b"content")
    stack.away(DIRECTORY)
    if flushed:
        for handle in handles:
            with raises(errno.ETIMEDOUT):
                client.vfs.flush(handle)
    client.kill()
    return client


def test_a_mount_goes_on_although_recovery_could_not(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The services are away when the mount begins. One deadline is enough to see that; when they are back
    recovery goes on by itself."""
    paths = [f"/{number}" for number in range(10)]
    two = stack.client()
    dead = left_dirty(stack, paths, flushed=True)
    again = stack.client(dead.cache, started=False, deadline_seconds=GONE_SECONDS)
    began = time.monotonic()
    again.recovery.run()
    assert time.monotonic() - began < 3 * GONE_SECONDS
    assert len(again.recovery.left()) == 10
    monkeypatch.setattr(recovery, "RETRY_SECONDS", (0.01,))
    again.start()
    stack.advance_locks()
    stack.back()
    wait_until(lambda: not again.recovery.left())
    assert [two.read(path) for path in paths] == [b"content"] * 10
    again.append("/3", b" and more")
    assert two.read("/3") == b"content and more"
    assert len(again.names()) == 11
    assert "its last commit was sent again" in caplog.text


def test_a_commit_that_recovery_could_not_upload_again_is_none_the_less_known_to_have_been_begun(
    stack: Stack,
) -> None:
    two = stack.client()
    dead = left_dirty(stack, ["/file"], flushed=True)
    again = stack.client(dead.cache, started=False, deadline_seconds=GONE_SECONDS)
    stack.back()
    stack.advance_locks()
    for number in range(1, len(stack.files) + 1):
        stack.away(f"http://files{number}")
    again.recovery.run()
    assert len(again.recovery.left()) == 1
    stack.back()
    again.recovery.run()
    assert two.read("/file") == b"content"
    assert two.names() == ["file", "other"]


def test_writing_everything_back_waits_for_one_deadline_when_a_service_is_away(stack: Stack) -> None:
    one = stack.client(deadline_seconds=GONE_SECONDS)
    handles = [one.open(f"/{number}", MAKE) for number in range(10)]
    for handle in handles:
        one.vfs.write(handle, 0, b"content")
    stack.away(DIRECTORY)
    began = time.monotonic()
    one.vfs.write_back_all()
    assert time.monotonic() - began < 4 * GONE_SECONDS
    stack.back()
    one.vfs.write_back_all()
    assert not one.vfs.unsaved()
    for handle in handles:
        one.close_handle(handle)


def test_what_recovery_has_left_is_settled_before_it_is_opened(stack: Stack) -> None:
    """Nobody takes for committed what was not."""
    two = stack.client()
    two.write("/file", BASE)
    dead = left_dirty(stack, ["/file"], flushed=False)
    again = stack.client(dead.cache, started=False, deadline_seconds=GONE_SECONDS)
    again.recovery.run()
    again.start()
    known = two.walk("/file")
    for flags in (READ, BOTH):
        with raises(errno.ETIMEDOUT):
            again.vfs.open(known.ino, flags, None, attr=known)
    stack.back()
    stack.advance_locks()
    assert again.read("/file") == BASE
    [copy] = [name for name in two.names() if " (conflict " in name]
    assert two.read(f"/{copy}") == b"content" + BASE[7:]
    assert again.recovery.left() == []


def test_a_file_that_recovery_commits_while_it_is_opened_shows_its_new_size(stack: Stack) -> None:
    dead = left_dirty(stack, ["/file"], flushed=True)
    again = stack.client(dead.cache, started=False, deadline_seconds=GONE_SECONDS)
    again.recovery.run()
    again.start()
    stack.back()
    stack.advance_locks()
    old = again.walk("/file", fresh=True)
    again.recovery.run()
    handle = again.vfs.open(old.ino, READ, None, attr=old)
    assert again.vfs.handle_attr(handle.number).size == len(b"content")
    again.vfs.release(handle.number)


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


def test_a_manifest_that_comes_with_a_path_is_for_who_may_read(stack: Stack) -> None:
    one, two = stack.client(), stack.client(user="bob", uid=10002, gids=(10002,))
    one.write("/file", b"content")
    names = split("/file")
    for mode, shown in ((0o600, False), (0o622, False), (0o604, True)):
        one.set("/file", Changes(mode=mode))
        assert (two.proxy.directory.resolve(1, names, content=True).manifest is not None) is shown
    assert two.proxy.directory.resolve(1, names).manifest is None
    assert two.proxy.directory.resolve(1, [], content=True).manifest is None


def test_two_mounts_cannot_share_a_cache_folder(stack: Stack) -> None:
    one = stack.client()
    with raises(errno.EBUSY):
        stack.client(one.cache)


def test_numbers_and_locks_of_files_that_could_not_be_made_are_used_again(
    pair: tuple[Client, Client], place: str
) -> None:
    one, _ = pair
    one.write(f"{place}/file", b"")
    for _ in range(locks.STOCK + 5):
        with raises(errno.EEXIST):
            one.open(f"{place}/file", MAKE | os.O_EXCL)
    assert one.walk(place).ino != ROOT_INO


def test_what_is_open_without_a_name_is_held_again_and_again(stack: Stack) -> None:
    one = stack.client()
    one.write("/held", b"content")
    with one.opened("/held", os.O_RDONLY) as handle:
        ino = one.walk("/held").ino
        one.unlink("/held")
        database = stack.directory._database
        database.write(lambda connection: connection.execute(update(holds).values(at=0.0)))
        one.proxy.on_renewal()
        database.write(lambda connection: forget_holds(connection, time.time()))
        with database.read() as connection:
            assert connection.scalars(select(holds.c.ino)).all() == [ino]
        assert one.pread(handle, 0, 10) == b"content"


def test_numbers_that_were_not_used_for_long_are_given_back(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stack.client()
    one.write("/first", b"")
    before = set(stack.lock_holders())
    assert before
    monkeypatch.setattr(locks, "STOCK_SECONDS", -1.0)
    one.proxy.write_locks._give_up_old_stock()
    monkeypatch.undo()
    wait_until(lambda: stack.lock_holders() and not before & set(stack.lock_holders()))
    one.write("/second", b"2")
    assert one.walk("/second").ino not in before
