"""Which times move when: as on a local disk, whoever commits what, and whenever."""

import os

import pytest

from mount.ranges import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from mount.vfs import Changes
from tests.support.stack import Client, Stack
from wire.messages.common import Caller

WRITE = os.O_RDWR


@pytest.fixture
def client(stack: Stack) -> Client:
    """The only one."""
    return stack.client()


def times(client: Client, handle: int) -> tuple[int, int]:
    """mtime and ctime of an open file."""
    attr = client.vfs.handle_attr(handle)
    return attr.mtime, attr.ctime


def test_close_moves_no_times(client: Client) -> None:
    with client.opened("/file", WRITE | os.O_CREAT) as handle:
        client.vfs.write(handle, 0, b"content")
        before = times(client, handle)
        client.vfs.flush(handle)
        assert times(client, handle) == before
    attr = client.walk("/file", fresh=True)
    assert (attr.mtime, attr.ctime) == before


def test_what_is_set_while_writing_moves_ctime_then_and_not_with_close(client: Client) -> None:
    with client.opened("/file", WRITE | os.O_CREAT) as handle:
        client.vfs.write(handle, 0, b"content")
        ino = client.vfs.inode_of(handle)
        for changes in (Changes(mtime=7), Changes(uid=client.vfs.handle_attr(handle).uid)):
            before = times(client, handle)
            client.vfs.setattr(ino, changes, None)
            set_ = times(client, handle)
            assert set_[1] > before[1]
    attr = client.walk("/file", fresh=True)
    assert (attr.mtime, attr.ctime) == set_ == (7, attr.ctime)


@pytest.mark.parametrize("mode", [KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE])
def test_fallocate_without_effect_moves_times(client: Client, mode: int) -> None:
    with client.opened("/file", WRITE | os.O_CREAT) as handle:
        client.vfs.setattr(client.vfs.inode_of(handle), Changes(size=9), None, handle)  # a hole
        client.vfs.flush(handle)
        for offset in (0, 100):
            before = times(client, handle)
            client.vfs.fallocate(handle, mode, offset, 5)
            moved = times(client, handle)
            assert moved > before
            assert moved[1] > before[1]
            client.vfs.flush(handle)
            assert times(client, handle) == moved


def test_times_that_another_user_sets_are_not_lost_with_the_commit(stack: Stack) -> None:
    mount = stack.client(user="root", uid=0, gids=(0,), trusted=True)
    alice, bob = Caller(10001, [10001]), Caller(10002, [10002])
    with mount.opened("/file", WRITE | os.O_CREAT, 0o666, who=alice):
        pass
    mount.set("/file", Changes(mode=0o666), alice)
    with mount.opened("/file", WRITE, who=bob) as handle:
        mount.vfs.write(handle, 0, b"his")
        mount.set("/file", Changes(atime=5, mtime=6), alice)
    attr = mount.walk("/file", fresh=True)
    assert (attr.atime, attr.mtime, attr.size) == (5, 6, 3)


def test_a_mode_is_not_overruled_by_an_earlier_one_that_waits_for_the_commit(client: Client) -> None:
    with client.opened("/file", WRITE | os.O_CREAT) as handle:
        ino = client.vfs.inode_of(handle)
        client.vfs.write(handle, 0, b"content")
        client.vfs.setattr(ino, Changes(mode=0o640), None)
        client.vfs.flush(handle)
        client.vfs.write(handle, 0, b"more")
        client.vfs.setattr(ino, Changes(mode=0o600, mtime=5), None)
        client.vfs.setattr(ino, Changes(mode=0o644), None)
    assert client.walk("/file", fresh=True).mode & 0o777 == 0o644
