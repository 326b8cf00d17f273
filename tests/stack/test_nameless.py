"""Files that are made without a name (O_TMPFILE), through the whole stack: they get one, or go."""

import errno
import os

import pytest

from mount.vfs import Changes
from tests.support.stack import DIRECTORY, Client, Stack
from tests.support.times import wait_until
from tests.support.vfs import BORDER, BOTH, GONE_SECONDS, MAKE, raises
from wire.messages.common import Caller

NAMELESS = os.O_TMPFILE | os.O_RDWR


def nameless(client: Client, mode: int = 0o644, who: Caller | None = None) -> int:
    """A handle of a new one in the root."""
    return client.vfs.create_nameless(client.walk("/").ino, mode, NAMELESS, who)[0].number


def link(client: Client, handle: int, path: str) -> int:
    """Gives it a name; how many it has."""
    parent, name = client.parent(path)
    return client.vfs.link(client.vfs.inode_of(handle), parent, name, None).nlink


@pytest.mark.parametrize("is_saved", [False, True])
def test_it_gets_its_name_with_all_its_content(stack: Stack, is_saved: bool) -> None:
    one, two = stack.client(), stack.client()
    data = os.urandom(BORDER + 5)
    handle = nameless(one)
    one.vfs.write(handle, 0, data)
    if is_saved:
        one.vfs.fsync(handle)
    attr = one.vfs.handle_attr(handle)
    assert (attr.nlink, attr.size, two.names()) == (0, len(data), [])
    assert link(one, handle, "/file") == 1
    assert two.read("/file") == data
    one.vfs.write(handle, 0, b"more")
    assert link(one, handle, "/other") == 2
    one.close_handle(handle)
    assert two.read("/other") == b"more" + data[4:]


def test_without_a_name_it_goes_with_its_last_handle(stack: Stack) -> None:
    one, other = stack.client(trusted=True), Caller(10002, [10002])
    before = one.walk("/", fresh=True)
    handle = nameless(one)
    one.vfs.write(handle, 0, b"content")
    one.vfs.setxattr(one.vfs.inode_of(handle), b"user.name", b"1", 0, None)
    ino = one.vfs.setattr(one.vfs.inode_of(handle), Changes(size=3, mode=0o600), None, handle).ino
    again = one.vfs.open_known(ino, ino, [], BOTH, None).number
    one.close_handle(handle)
    assert one.pread(again, 0, 10) == b"con"
    assert one.proxy.directory.attrs([ino], other) != [None], "who holds it finds a way to it"
    one.close_handle(again)
    assert not one.vfs.unsaved()
    assert one.vfs.local_state(ino) == (0, False, 0)
    assert one.walk("/", fresh=True) == before
    assert one.proxy.directory.attrs([ino], other) == [None]


def test_a_mount_that_was_killed_leaves_nothing_of_it(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    one = stack.client()
    dirty, linked = nameless(one), nameless(one)
    one.vfs.write(dirty, 0, b"nobody's")
    assert link(one, linked, "/linked") == 1
    one.vfs.write(linked, 0, b"somebody's")
    one.kill()
    again = stack.client(one.cache, started=False)
    caplog.clear()
    again.recovery.run()
    again.start()
    tree = again.tree()
    assert tree.pop("/linked") == b""
    [(kept, content)] = tree.items()
    assert kept.startswith("/linked (conflict ") and content == b"somebody's"
    assert not again.vfs.unsaved()
    assert len(caplog.records) == 1


def test_the_next_worker_goes_on_with_it(stack: Stack) -> None:
    one = stack.client()
    handle = nameless(one)
    one.vfs.write(handle, 0, b"content")
    one.kill()
    two = stack.client(before=one)
    assert two.vfs.handle_attr(handle).nlink == 0
    two.vfs.write(handle, 7, b" and more")
    assert link(two, handle, "/file") == 1
    two.close_handle(handle)
    assert stack.client().tree() == {"/file": b"content and more"}


@pytest.mark.parametrize("is_made", [False, True])
def test_whether_it_was_linked_is_not_known(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, is_made: bool
) -> None:
    """Then it is not thrown away with its last handle: somebody may find it."""
    monkeypatch.setattr("mount.later_commits.RETRY_SECONDS", (0.01,))
    one = stack.client(deadline_seconds=GONE_SECONDS)
    handle = nameless(one)
    one.vfs.write(handle, 0, b"content")
    one.vfs.fsync(handle)
    parent, ino = one.walk("/").ino, one.vfs.inode_of(handle)
    stack.away(DIRECTORY)
    with raises(errno.ETIMEDOUT):
        one.vfs.link(ino, parent, b"file", None)
    one.vfs.write(handle, 7, b" and more")
    with raises(errno.ETIMEDOUT):
        one.vfs.flush(handle)
    one.vfs.release(handle)
    assert one.vfs.unsaved() == [ino]
    stack.back()
    if is_made:
        stack.client().vfs.link(ino, parent, b"file", None)
    wait_until(lambda: not one.vfs.unsaved())
    assert one.tree() == ({"/file": b"content and more"} if is_made else {})


def test_its_lock_may_be_lost_meanwhile(stack: Stack) -> None:
    one = stack.client()
    handle = nameless(one)
    one.vfs.write(handle, 0, b"content")
    stack.advance_locks()
    one.vfs._on_lock_lost(one.vfs.inode_of(handle))
    assert link(one, handle, "/file") == 1
    one.close_handle(handle)
    assert one.read("/file") == b"content"


def test_a_name_that_is_taken_leaves_it_as_it_was(stack: Stack) -> None:
    one = stack.client()
    one.write("/file", b"other")
    handle = nameless(one)
    with raises(errno.EEXIST):
        link(one, handle, "/file")
    with raises(errno.ENAMETOOLONG):
        link(one, handle, "/" + "n" * 256)
    assert one.vfs.handle_attr(handle).nlink == 0
    one.close_handle(handle)
    assert one.tree() == {"/file": b"other"}
    with one.opened("/file", MAKE):
        one.unlink("/file")
        with raises(errno.ENOENT):
            one.vfs.link(one.vfs.handles()[0].node.ino, one.walk("/").ino, b"again", None)
