"""POSIX ACLs as a mount has them: with content that is dirty, in beliefs, and in conflict copies."""

import errno
import os
import stat

import pytest

from mount.vfs import Changes
from tests.support.acls import extended
from tests.support.stack import Client, Stack
from tests.support.vfs import BASE, BOTH, raises
from wire.acl import ACCESS, DEFAULT

BOB, EVE = 10002, 10003
OF_BOB = extended(0o660, users=[(BOB, 6)])


@pytest.fixture
def alice(stack: Stack) -> Client:
    return stack.client(promised=True)


@pytest.fixture
def bob(stack: Stack) -> Client:
    return stack.client(user="bob", uid=BOB, gids=(BOB,), promised=True)


def set_acl(client: Client, path: str, value: bytes, name: bytes = ACCESS) -> None:
    """setfacl(1)."""
    client.vfs.setxattr(client.walk(path, fresh=True).ino, name, value, 0, None)


def acl_of(client: Client, path: str, name: bytes = ACCESS) -> bytes:
    """getfacl(1)."""
    return client.vfs.getxattr(client.walk(path).ino, name, None)


def mode_of(client: Client, path: str) -> int:
    """The permissions that are shown."""
    return stat.S_IMODE(client.walk(path).mode)


def test_what_is_believed_of_an_acl_goes_when_it_is_changed_elsewhere(alice: Client, bob: Client) -> None:
    alice.mkdir("/folder", 0o700)
    alice.write("/folder/file", BASE)
    alice.set("/folder/file", Changes(mode=0o666))
    for _ in range(3):
        set_acl(alice, "/folder", extended(0o750, users=[(BOB, 5)]))
        assert bob.read("/folder/file") == BASE
        assert acl_of(bob, "/folder") == extended(0o750, users=[(BOB, 5)])
        assert bob.names("/folder") == ["file"]
        set_acl(alice, "/folder", extended(0o750, users=[(EVE, 5)]))
        with raises(errno.EACCES):
            bob.read("/folder/file")
        with raises(errno.EACCES):
            bob.names("/folder")
        assert acl_of(bob, "/folder") == extended(0o750, users=[(EVE, 5)])


def test_an_acl_costs_no_question(alice: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    alice.write("/file", BASE)
    set_acl(alice, "/file", OF_BOB)
    ino = alice.walk("/file").ino
    monkeypatch.setattr(alice.proxy.directory, "xattrs", lambda *_: pytest.fail("was asked"))
    assert alice.vfs.getxattr(ino, ACCESS, None) == OF_BOB
    assert alice.vfs.listxattr(ino, None) == [ACCESS]
    with raises(errno.ENODATA):
        alice.vfs.getxattr(ino, DEFAULT, None)


def test_access_is_answered_by_acls(alice: Client, bob: Client) -> None:
    alice.write("/file", BASE)
    alice.set("/file", Changes(mode=0o600))
    set_acl(alice, "/file", extended(0o660, users=[(BOB, 4)]))
    ino = bob.walk("/file", fresh=True).ino
    bob.vfs.access(ino, os.R_OK, None)
    with raises(errno.EACCES):
        bob.vfs.access(ino, os.W_OK, None)


def test_a_default_acl_is_told_and_keeps_the_umask_away(alice: Client) -> None:
    folder = alice.mkdir("/folder").ino
    set_acl(alice, "/folder", extended(0o770, users=[(BOB, 7)]), DEFAULT)
    assert alice.vfs.listxattr(folder, None) == [DEFAULT]
    handle, attr = alice.vfs.create(folder, b"file", 0o666, os.O_WRONLY, None, 0o077)
    alice.close_handle(handle.number)
    assert (stat.S_IMODE(attr.mode), acl_of(alice, "/folder/file")) == (
        0o660,
        extended(0o660, users=[(BOB, 7)]),
    )
    inner = alice.vfs.mkdir(folder, b"inner", 0o755, None, 0o077)
    assert acl_of(alice, "/folder/inner", DEFAULT) == extended(0o770, users=[(BOB, 7)])
    assert stat.S_IMODE(inner.mode) == 0o750
    alice.vfs.removexattr(folder, DEFAULT, None)
    plain = alice.vfs.mknod(folder, b"plain", stat.S_IFREG | 0o666, 0, None, 0o077)
    assert (stat.S_IMODE(plain.mode), plain.acl) == (0o600, b"")


def test_an_acl_that_is_set_after_a_mode_wins(alice: Client, bob: Client) -> None:
    with alice.opened("/file", os.O_RDWR | os.O_CREAT) as handle:
        alice.vfs.write(handle, 0, BASE)
        ino = alice.vfs.inode_of(handle)
        alice.vfs.setattr(ino, Changes(mode=0o4700), None, handle)
        shown = alice.vfs.setxattr(ino, ACCESS, OF_BOB, 0, None)
        assert stat.S_IMODE(shown.mode) == 0o4660
        alice.vfs.write(handle, 0, b"more")
    assert stat.S_IMODE(bob.walk("/file", fresh=True).mode) == 0o660
    assert acl_of(bob, "/file") == OF_BOB
    assert bob.read("/file")[:4] == b"more"


def test_a_mode_that_is_set_after_an_acl_changes_it(alice: Client, bob: Client) -> None:
    with alice.opened("/file", os.O_RDWR | os.O_CREAT) as handle:
        alice.vfs.write(handle, 0, BASE)
        ino = alice.vfs.inode_of(handle)
        alice.vfs.setxattr(ino, ACCESS, OF_BOB, 0, None)
        alice.vfs.setattr(ino, Changes(mode=0o640), None, handle)
        assert acl_of(alice, "/file") == extended(0o640, users=[(BOB, 6)])
    assert acl_of(bob, "/file") == extended(0o640, users=[(BOB, 6)])
    assert bob.read("/file") == BASE
    with raises(errno.EACCES):
        bob.open("/file", os.O_WRONLY)


@pytest.mark.parametrize("has_place", [True, False])
def test_a_conflict_copy_gives_nobody_more_than_the_original(stack: Stack, has_place: bool) -> None:
    one, two = stack.client(), stack.client()
    member = stack.client(user="bob", uid=BOB, gids=(BOB, 10001))
    one.mkdir("/folder")
    one.write("/folder/file", BASE)
    set_acl(one, "/folder/file", extended(0o660, users=[(EVE, 6)]))
    handle = one.open("/folder/file", BOTH)
    one.vfs.write(handle, 0, b"LOSER")
    stack.advance_locks()
    two.write("/folder/file", b"winner")
    if not has_place:
        two.rename("/folder/file", "/file")
        two.rmdir("/folder")
    with raises(errno.ESTALE):
        one.vfs.flush(handle)
    one.vfs.release(handle)
    folder = "/folder" if has_place else "/"
    [copy] = [f"{folder}/{name}" for name in one.names(folder) if "conflict" in name]
    assert one.read(copy) == b"LOSER" + BASE[5:]
    with raises(errno.EACCES):
        member.read(copy)
    eve = stack.client(user="eve", uid=EVE, gids=(EVE,))
    if has_place:
        assert eve.read(copy) == b"LOSER" + BASE[5:]
    else:
        assert mode_of(one, copy) == 0o600
