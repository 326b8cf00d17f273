"""Attributes and extended ones: who sets them shows them everywhere, and dirty content keeps its own."""

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from mount.ranges import KEEP_SIZE
from mount.vfs import Changes
from tests.support.stack import Client, Stack
from tests.support.vfs import BOTH, MAKE, READ, WRITE, raises


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


def test_statfs_knows_the_space(pair: tuple[Client, Client]) -> None:
    space = pair[0].vfs.statfs()
    assert 0 < space.free_bytes <= space.total_bytes
