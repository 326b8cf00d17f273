"""What the Vfs means, through its interface, over real services: content, names, attributes, users, costs."""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mount import committing, locks
from mount.names import BELIEF_SECONDS
from mount.ranges import KEEP_SIZE
from mount.vfs import Changes
from tests.support.stack import DIRECTORY, Client, Stack, split
from tests.support.vfs import (
    BORDER,
    BOTH,
    MAKE,
    READ,
    WRITE,
    WatchedWire,
    raises,
)
from wire.errors import Busy
from wire.limits import OPS_MAX
from wire.messages.common import Caller
from wire.messages.directory import ROOT_INO, Create


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
    assert one.vfs.local_state(ino) == (0, False, 0)
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


def test_a_listing_that_is_read_slowly_tells_no_old_attributes(
    pair: tuple[Client, Client], place: str
) -> None:
    one, two = pair
    for name in ("a", "b"):
        one.write(f"{place}/{name}", b"content")
    listing = one.vfs.readdir(one.walk(place, fresh=True).ino, None)
    assert next(listing).attr.change
    two.vfs.setattr(two.walk(f"{place}/b").ino, Changes(mode=0o600), None)
    one.vfs._names.drop_all()  # as if a second had passed
    last = next(listing)
    assert (last.name, last.attr.change) == (b"b", 0), "no more than the name is known"


def test_the_rest_of_a_listing_that_is_old_is_asked_for_again(
    pair: tuple[Client, Client], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    for name in ("a", "b", "c"):
        one.write(f"{place}/{name}", b"content")
    now = [time.monotonic()]
    monkeypatch.setattr(one.vfs._names._lifetime, "_clock", lambda: now[0])
    listing = one.vfs.readdir(one.walk(place, fresh=True).ino, None)
    assert next(listing).name == b"a"
    two.vfs.setattr(two.walk(f"{place}/b").ino, Changes(mode=0o600), None)
    two.unlink(f"{place}/c")
    now[0] += BELIEF_SECONDS
    last = next(listing)
    assert (last.name, stat.S_IMODE(last.attr.mode)) == (b"b", 0o600)
    now[0] += BELIEF_SECONDS
    assert list(listing) == []


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


@pytest.mark.parametrize(
    "touch",
    [
        lambda client, handle: client.vfs.fallocate(handle, 0, 0, 4),
        lambda client, handle: client.vfs.fallocate(handle, KEEP_SIZE, 0, 100),
        lambda client, handle: client.vfs.setattr(client.vfs.inode_of(handle), Changes(size=7), None, handle),
    ],
)
def test_what_changes_nothing_is_a_change_all_the_same(
    pair: tuple[Client, Client], place: str, touch: Callable[[Client, int], object]
) -> None:
    one, two = pair
    one.write(f"{place}/file", b"content")
    one.set(f"{place}/file", Changes(mtime=5))
    before = one.walk(f"{place}/file", fresh=True)
    with one.opened(f"{place}/file", WRITE) as handle:
        touch(one, handle)
        shown = one.vfs.handle_attr(handle)
        assert shown.mtime > 5
        assert shown.ctime > before.ctime
    attr = two.walk(f"{place}/file", fresh=True)
    assert (attr.mtime > 5, attr.ctime > before.ctime, attr.size) == (True, True, 7)


def test_what_is_set_is_shown_while_it_is_committed(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client = stack.client()
    with client.opened("/file", MAKE) as handle:
        client.vfs.write(handle, 0, b"content")
        ino = client.vfs.inode_of(handle)
        client.vfs.setattr(ino, Changes(mode=0o600, mtime=5), None, handle)
        change, seen = client.proxy.names.change, []

        def watched(*arguments: Any) -> Any:
            seen.append(client.walk("/file"))
            done = change(*arguments)
            seen.append(client.walk("/file"))
            return done

        monkeypatch.setattr(client.proxy.names, "change", watched)
        client.vfs.fsync(handle)
        assert [(stat.S_IMODE(attr.mode), attr.mtime) for attr in seen] == [(0o600, 5)] * 2


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
    with raises(errno.EINVAL):
        two.vfs.getxattr(ino, b"user.", None)


def test_the_names_of_attributes_are_for_who_may_not_read_them_too(stack: Stack) -> None:
    alice = stack.client()
    bob = stack.client(user="bob", uid=10002, gids=(10002,))
    alice.write("/file", b"")
    ino = alice.walk("/file").ino
    alice.vfs.setxattr(ino, b"user.a", b"1", 0, None)
    alice.set("/file", Changes(mode=0o600))
    assert bob.vfs.listxattr(ino, None) == [b"user.a"]
    for name in (b"user.a", b"user.there_is_none"):
        with raises(errno.EACCES):
            bob.vfs.getxattr(ino, name, None)


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


def test_numbers_and_locks_of_files_that_could_not_be_made_are_used_again(
    pair: tuple[Client, Client], place: str
) -> None:
    one, _ = pair
    one.write(f"{place}/file", b"")
    for _ in range(locks.STOCK + 5):
        with raises(errno.EEXIST):
            one.open(f"{place}/file", MAKE | os.O_EXCL)
    assert one.walk(place).ino != ROOT_INO


# What it costs


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
