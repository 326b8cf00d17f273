"""The directory: files that are made without a name (O_TMPFILE), and get one or go."""

import errno
import stat

import pytest

from tests.support.acls import DEFAULT, acl
from tests.support.directory import ALICE, BOB, TEAM, DirectoryRealm, User, commit, fails, look
from tests.support.inprocess import LossyWire
from wire.acl import GROUP_OBJ, MASK, NOBODY, OTHER, USER, USER_OBJ
from wire.messages.common import Caller
from wire.messages.directory import (
    ROOT_INO,
    Attr,
    CreateNameless,
    Drop,
    Link,
    Reserve,
    Rmdir,
    SetAttr,
    SetXattr,
    Unlink,
)


def nameless(user: User, parent: int = ROOT_INO, mode: int = 0o666, umask: int = 0o022) -> Attr:
    """A new file, open for writing under the token 1."""
    ino = user.client.mutate([Reserve(1)])[0].inos[0]
    return user.do(CreateNameless(parent, ino, user.grant(ino, 1), mode, umask))


def test_a_nameless_file_changes_nothing_of_its_directory(alice: User) -> None:
    before = alice.client.list_page(ROOT_INO), alice.client.statfs().inodes
    file = nameless(alice)
    assert (file.mode, file.nlink, file.size) == (stat.S_IFREG | 0o644, 0, 0)
    assert (file.uid, file.gid) == (ALICE, ALICE)
    assert (alice.client.list_page(ROOT_INO), alice.client.statfs().inodes) == before
    assert alice.client.paths([file.ino]) == [None]


def test_it_is_made_as_a_file_with_a_name_would_be(alice: User, bob: User) -> None:
    shared = alice.mkdir(b"shared", mode=0o777)
    alice.do(SetAttr(shared.ino, gid=TEAM))
    alice.do(SetAttr(shared.ino, mode=0o2777))
    assert nameless(bob, shared.ino).gid == TEAM
    default = acl(
        (USER_OBJ, 7, NOBODY), (USER, 6, BOB), (GROUP_OBJ, 5, NOBODY), (MASK, 7, NOBODY), (OTHER, 0, NOBODY)
    )
    alice.do(SetXattr(shared.ino, DEFAULT.encode(), default))
    by_default = nameless(alice, shared.ino, mode=0o660)
    named = alice.do(Link(by_default.ino, shared.ino, b"f"))
    assert (by_default.mode, by_default.acl) == (named.mode, named.acl)
    assert by_default.acl and stat.S_IMODE(by_default.mode) == 0o660


def test_who_may_make_one(realm: DirectoryRealm, alice: User, bob: User) -> None:
    folder, file = alice.mkdir(b"d", mode=0o755), alice.create(b"f")
    with fails(errno.EACCES):
        nameless(bob, folder.ino)
    with fails(errno.ENOTDIR):
        nameless(alice, file.ino)
    with fails(errno.ENOENT):
        nameless(alice, 999)
    ino = alice.client.mutate([Reserve(1)])[0].inos[0]
    with fails(errno.EPERM):
        alice.do(CreateNameless(ROOT_INO, ino, alice.grant(ino + 1, 1), 0o600))
    with fails(errno.EINVAL):
        bob.do(CreateNameless(ROOT_INO, ino, bob.grant(ino, 1), 0o600))


def test_its_content_is_committed_and_it_gets_one_name_after_another(
    realm: DirectoryRealm, alice: User
) -> None:
    server = realm.add_file_server()
    file = nameless(alice)
    alice.do(commit(file, alice.grant(file.ino, 1), 10, [realm.stored(0, server)]))
    assert (look(alice, file.ino).nlink, look(alice, file.ino).size) == (0, 10)
    before = look(alice, ROOT_INO)
    named = alice.do(Link(file.ino, ROOT_INO, b"f"))
    assert (named.nlink, named.size, named.ctime > file.ctime) == (1, 10, True)
    assert look(alice, ROOT_INO).mtime > before.mtime
    assert alice.do(Link(file.ino, ROOT_INO, b"g")).nlink == 2
    assert alice.names() == [b"f", b"g"]
    assert alice.client.paths([file.ino]) == [b"/f"]


def test_what_had_a_name_gets_none_again(alice: User) -> None:
    file = nameless(alice)
    alice.do(Link(file.ino, ROOT_INO, b"f"))
    alice.do(Unlink(ROOT_INO, b"f", hold=True))
    with fails(errno.ENOENT):
        alice.do(Link(file.ino, ROOT_INO, b"g"))


def test_it_is_for_its_holder_and_owner(realm: DirectoryRealm, alice: User, bob: User) -> None:
    file = nameless(alice)
    alice.do(SetAttr(file.ino, mode=0o666))
    assert bob.attr(file.ino) is None
    with fails(errno.EACCES):
        bob.do(Link(file.ino, ROOT_INO, b"f"))
    alice.client.mutate([Drop([file.ino])])
    assert realm.user(ALICE).attr(file.ino) is not None  # until the retention time is over
    alice.do(Link(file.ino, ROOT_INO, b"f"))
    assert look(bob, file.ino).nlink == 1


def test_a_name_ends_the_hold(realm: DirectoryRealm) -> None:
    mount, other = realm.user(0, trusted=True), Caller(BOB, [BOB])
    file = nameless(mount)
    assert mount.client.attrs([file.ino], other)[0] is not None
    mount.do(Link(file.ino, ROOT_INO, b"f"))
    mount.do(Unlink(ROOT_INO, b"f"))
    assert mount.client.attrs([file.ino], other)[0] is None


def test_its_directory_may_go(alice: User) -> None:
    folder = alice.mkdir(b"d")
    file = nameless(alice, folder.ino)
    alice.client.mutate([Rmdir(ROOT_INO, b"d")])
    assert alice.do(Link(file.ino, ROOT_INO, b"f")).nlink == 1
    with fails(errno.ENOENT):
        nameless(alice, folder.ino)


def test_what_is_lost_on_the_way_makes_no_file_and_no_name_twice(
    realm: DirectoryRealm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.session.PAUSE_SECONDS_MAX", 0.001)
    lossy = LossyWire(realm.wire, seed=5, loss=0.2)
    user = realm.user(ALICE, wire=lossy)
    files = [nameless(user).ino for _ in range(20)]
    for number, ino in enumerate(files):
        assert user.do(Link(ino, ROOT_INO, b"%02d" % number)).nlink == 1
    assert [entry.attr.ino for entry in user.client.list_page(ROOT_INO).entries] == files
    assert lossy.lost_requests and lossy.lost_replies, lossy.seed
