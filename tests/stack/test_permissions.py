"""Who may do what: users on mounts of their own, and those for whom a trusted mount speaks."""

import errno
import os
import stat

import pytest

from mount.vfs import Changes
from tests.support.stack import Client, Stack, split
from tests.support.vfs import MAKE, READ, WRITE, raises
from wire.messages.common import Caller

ROOT, ALICE, BOB = Caller(0, [0]), Caller(10001, [10001]), Caller(10002, [10002])


@pytest.fixture
def alice(stack: Stack) -> Client:
    return stack.client()


@pytest.fixture
def bob(stack: Stack) -> Client:
    return stack.client(user="bob", uid=BOB.uid, gids=tuple(BOB.gids))


def test_permissions_of_two_users(alice: Client, bob: Client) -> None:
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
    mount.write("/file", b"hers", who=ALICE)
    assert mount.walk("/file").uid == ALICE.uid
    with raises(errno.EACCES):
        mount.open("/file", WRITE, who=BOB)
    mount.set("/file", Changes(mode=0o666), ALICE)
    with mount.opened("/file", WRITE, who=BOB) as handle:
        mount.vfs.write(handle, 0, b"his")
        mount.set("/file", Changes(mode=0o640), ALICE)
    attr = mount.walk("/file", fresh=True)
    assert (stat.S_IMODE(attr.mode), attr.size) == (0o640, 4)
    assert mount.read("/file", who=ALICE) == b"hiss"
    assert not mount.vfs.unsaved()


def test_who_may_only_write_writes_into_what_is_there(stack: Stack) -> None:
    stack.client(trusted=True).write("/file", b"content", who=ALICE)
    cold = stack.client(trusted=True)
    cold.set("/file", Changes(mode=0o222), ALICE)
    with raises(errno.EACCES):
        cold.read("/file", who=BOB)
    cold.write("/file", b"TENT", 3, who=BOB)
    assert cold.read("/file", who=ROOT) == b"conTENT"


def test_a_descriptor_reads_on_when_the_right_is_taken_away(stack: Stack) -> None:
    first, cold = stack.client(trusted=True), stack.client(trusted=True)
    first.write("/file", b"content", who=ALICE)
    number = cold.vfs.open(cold.walk("/file").ino, os.O_RDONLY, BOB).number
    first.set("/file", Changes(mode=0o600), ALICE)
    assert cold.pread(number, 0, 7) == b"content"
    cold.vfs.release(number)


def test_the_names_of_attributes_are_for_who_may_not_read_them_too(alice: Client, bob: Client) -> None:
    alice.write("/file", b"")
    ino = alice.walk("/file").ino
    alice.vfs.setxattr(ino, b"user.a", b"1", 0, None)
    alice.set("/file", Changes(mode=0o600))
    assert bob.vfs.listxattr(ino, None) == [b"user.a"]
    for name in (b"user.a", b"user.there_is_none"):
        with raises(errno.EACCES):
            bob.vfs.getxattr(ino, name, None)


def test_a_manifest_that_comes_with_a_path_is_for_who_may_read(alice: Client, bob: Client) -> None:
    alice.write("/file", b"content")
    names = split("/file")
    for mode, shown in ((0o600, False), (0o622, False), (0o604, True)):
        alice.set("/file", Changes(mode=mode))
        assert (bob.proxy.directory.resolve(1, names, content=True).manifest is not None) is shown
    assert bob.proxy.directory.resolve(1, names).manifest is None
    assert bob.proxy.directory.resolve(1, [], content=True).manifest is None
