"""Names: what gives, moves and takes them, what lives on without one, and how they are listed."""

import errno
import os
import stat
import time

import pytest

from mount.names import BELIEF_SECONDS
from mount.vfs import Changes
from tests.support.stack import Client, Stack
from tests.support.vfs import BOTH, MAKE, READ, raises
from wire.limits import OPS_MAX
from wire.messages.directory import Create


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
