"""The directory: who may do what to names, attributes and extended attributes."""

import errno
import stat

import pytest

from tests.support.directory import ALICE, BOB, TEAM, DirectoryRealm, User, commit, fails, look
from wire.messages.common import Caller
from wire.messages.directory import (
    ROOT_INO,
    Commit,
    Create,
    Drop,
    Hold,
    Link,
    Op,
    OpenWrite,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Unlink,
)


def test_who_may_not_write_a_directory_changes_no_name_in_it(alice: User, bob: User) -> None:
    folder = alice.mkdir(b"d")
    file = alice.create(b"f", folder.ino)
    ops: list[Op] = [
        Create(folder.ino, b"x", 0o100644),
        Unlink(folder.ino, b"f"),
        Rename(folder.ino, b"f", ROOT_INO, b"x"),
        Link(file.ino, folder.ino, b"x"),
    ]
    for op in ops:
        with fails(errno.EACCES):
            bob.do(op)
    with fails(errno.EEXIST):
        bob.create(b"f", folder.ino)


def test_a_sticky_directory_keeps_what_belongs_to_others(alice: User, bob: User, root: User) -> None:
    alice.create(b"f")
    bob.create(b"mine")
    ops: list[Op] = [
        Unlink(ROOT_INO, b"f"),
        Rename(ROOT_INO, b"f", ROOT_INO, b"x"),
        Rename(ROOT_INO, b"mine", ROOT_INO, b"f"),
    ]
    for op in ops:
        with fails(errno.EPERM):
            bob.do(op)
    root.do(Unlink(ROOT_INO, b"f"))


def test_moving_a_directory_elsewhere_needs_write_on_it(alice: User, bob: User, root: User) -> None:
    shared = alice.mkdir(b"shared", mode=0o777)
    alice.do(SetAttr(shared.ino, mode=0o777))
    bob.mkdir(b"d", shared.ino, mode=0o755)
    theirs = alice.mkdir(b"to", mode=0o777)
    alice.do(Rename(shared.ino, b"d", shared.ino, b"e"))
    with fails(errno.EACCES):
        alice.do(Rename(shared.ino, b"e", theirs.ino, b"e"))
    root.do(Rename(shared.ino, b"e", theirs.ino, b"e"))


def test_an_inode_number_is_no_way_round_a_closed_directory(alice: User, bob: User) -> None:
    closed = alice.mkdir(b"closed", mode=0o711)
    inner = alice.mkdir(b"inner", closed.ino, mode=0o777)
    file = alice.create(b"f", inner.ino, mode=0o666)
    assert bob.client.list_page(inner.ino).entries[0].attr.ino == file.ino
    alice.do(SetAttr(closed.ino, mode=0o700))
    assert bob.client.attrs([file.ino, inner.ino, closed.ino])[:2] == [None, None]
    assert bob.attr(closed.ino) is not None
    assert bob.client.paths([file.ino]) == [None]
    assert bob.client.resolve(inner.ino, [b"f"]).errno == "EACCES"
    for ask in (bob.client.list_page, bob.client.manifest, bob.client.target, bob.client.xattrs):
        with fails(errno.EACCES):
            ask(file.ino)
    ops: list[Op] = [
        Create(inner.ino, b"x", 0o100644),
        SetAttr(file.ino, mtime_now=True),
        SetXattr(file.ino, b"user.a", b""),
        OpenWrite(file.ino, bob.grant(file.ino, 1)),
        commit(file, bob.grant(file.ino, 1), 0, []),
        Commit(file.ino, bob.grant(file.ino, 1), 0, b"1" * 16, 0, 0, []),
        commit(inner, bob.grant(inner.ino, 1), 0, []),
        Link(file.ino, ROOT_INO, b"stolen"),
    ]
    for op in ops:
        with fails(errno.EACCES):
            bob.do(op)
    assert bob.client.mutate([Hold([file.ino])])[0].inos == []
    alice.do(Link(file.ino, ROOT_INO, b"open"))
    assert bob.attr(file.ino) is not None
    alice.do(Unlink(ROOT_INO, b"open"))
    alice.do(Rename(closed.ino, b"inner", ROOT_INO, b"inner"))
    assert bob.attr(file.ino) is not None


def test_a_change_of_ways_counts_within_its_own_request(alice: User, bob: User) -> None:
    folder = alice.mkdir(b"d")
    inner = alice.mkdir(b"inner", folder.ino)
    assert alice.client.list_page(inner.ino).entries == []
    with fails(errno.EACCES):
        alice.client.mutate([SetAttr(folder.ino, mode=0o600), Create(inner.ino, b"x", 0o100644)])
    alice.client.mutate([Create(inner.ino, b"x", 0o100644)])
    assert look(bob, inner.ino).nlink == 2


def test_orphans_are_for_their_holders_and_owners(realm: DirectoryRealm, alice: User, bob: User) -> None:
    file = alice.create(b"f", mode=0o666)
    assert bob.client.mutate([Hold([file.ino, 12345])])[0].inos == [file.ino]
    alice.do(Unlink(ROOT_INO, b"f"))
    assert look(bob, file.ino).nlink == 0
    bob.do(OpenWrite(file.ino, bob.grant(file.ino, 1), read=True))
    assert realm.user(BOB).attr(file.ino) is None
    bob.client.mutate([Drop([file.ino])])
    assert bob.attr(file.ino) is None
    assert realm.user(ALICE).attr(file.ino) is not None


def test_a_removed_directory_takes_nothing_more(alice: User) -> None:
    folder = alice.mkdir(b"d")
    alice.client.mutate([Hold([folder.ino]), Rmdir(ROOT_INO, b"d")])
    assert alice.client.list_page(folder.ino).entries == []
    with fails(errno.ENOENT):
        alice.create(b"x", folder.ino)


def test_chown_and_chmod_are_for_owners(alice: User, bob: User, root: User) -> None:
    file = alice.create(b"f", mode=0o666)
    ops: list[Op] = [
        SetAttr(file.ino, mode=0o777),
        SetAttr(file.ino, uid=BOB),
        SetAttr(file.ino, mtime=1),
        SetAttr(file.ino, mtime_now=True, atime=1),
        SetAttr(file.ino, mtime_now=True),
        SetAttr(file.ino, atime_now=True),
    ]
    for op in ops:
        with fails(errno.EPERM):
            bob.do(op)
    bob.do(SetAttr(file.ino, atime_now=True, mtime_now=True))
    alice.do(SetAttr(file.ino, mode=0o600))
    with fails(errno.EACCES):
        bob.do(SetAttr(file.ino, atime_now=True, mtime_now=True))
    with fails(errno.EPERM):
        alice.do(SetAttr(file.ino, uid=BOB))
    with fails(errno.EPERM):
        alice.do(SetAttr(file.ino, gid=BOB))
    assert stat.S_IMODE(alice.do(SetAttr(file.ino, mode=0o6755)).mode) == 0o6755
    assert stat.S_IMODE(alice.do(SetAttr(file.ino, gid=TEAM)).mode) == 0o755
    fifo = alice.do(Create(ROOT_INO, b"p", stat.S_IFIFO | 0o6755))
    assert stat.S_IMODE(root.do(SetAttr(fifo.ino, uid=BOB)).mode) == 0o755
    folder = alice.do(Create(ROOT_INO, b"d", stat.S_IFDIR | 0o6755))
    assert stat.S_IMODE(root.do(SetAttr(folder.ino, uid=BOB)).mode) == 0o6755
    given = root.do(SetAttr(file.ino, uid=BOB, gid=BOB))
    assert (given.uid, given.gid) == (BOB, BOB)
    mixed = bob.do(SetAttr(file.ino, gid=TEAM, mode=0o2750))
    assert (mixed.gid, stat.S_IMODE(mixed.mode)) == (TEAM, 0o2750)


def test_a_setgid_directory_passes_its_group_on(alice: User) -> None:
    folder = alice.mkdir(b"d")
    alice.do(SetAttr(folder.ino, gid=TEAM, mode=0o2775))
    file, inner = alice.create(b"f", folder.ino), alice.mkdir(b"i", folder.ino)
    assert (file.gid, inner.gid, bool(inner.mode & stat.S_ISGID)) == (TEAM, TEAM, True)


def test_only_a_trusted_session_speaks_for_others(realm: DirectoryRealm, alice: User) -> None:
    mount = realm.user(ALICE, trusted=True)
    made = mount.client.mutate([Create(ROOT_INO, b"f", 0o100600)], Caller(BOB, [BOB, TEAM]))[0].attr
    assert made is not None
    assert (made.uid, made.gid) == (BOB, BOB)
    with fails(errno.EPERM):
        alice.client.mutate([Create(ROOT_INO, b"g", 0o100600)], Caller(BOB, [BOB]))
    with fails(errno.EPERM):
        alice.client.attrs([ROOT_INO], Caller(0, [0]))


# Extended attributes


def test_xattrs_are_set_replaced_and_removed(alice: User) -> None:
    file = alice.create(b"f")
    changed = alice.do(SetXattr(file.ino, b"user.a", b"1"))
    assert (changed.has_xattrs, changed.ctime > file.ctime, changed.mtime) == (True, True, file.mtime)
    alice.do(SetXattr(file.ino, b"user.a", b"2"))
    alice.do(SetXattr(file.ino, b"user.b", b""))
    assert alice.client.xattrs(file.ino) == {b"user.a": b"2", b"user.b": b""}
    alice.client.mutate([RemoveXattr(file.ino, b"user.a"), RemoveXattr(file.ino, b"user.b")])
    assert not look(alice, file.ino).has_xattrs
    assert alice.client.xattrs(file.ino) == {}


@pytest.mark.parametrize(
    ("op", "number"),
    [
        (SetXattr(2, b"user.has", b"", flags=1), errno.EEXIST),
        (SetXattr(2, b"user.new", b"", flags=2), errno.ENODATA),
        (SetXattr(2, b"user.has", b"", flags=3), errno.EEXIST),
        (SetXattr(2, b"user.new", b"", flags=3), errno.ENODATA),
        (RemoveXattr(2, b"user.new"), errno.ENODATA),
        (SetXattr(2, b"user." + b"n" * 251, b""), errno.ERANGE),
        (SetXattr(2, b"user.a", b"v" * 65537), errno.E2BIG),
        (SetXattr(2, b"user.", b""), errno.EINVAL),
        (SetXattr(2, b"user", b""), errno.EINVAL),
        (SetXattr(2, b"system.other", b""), errno.EOPNOTSUPP),
        (SetXattr(2, b"other.a", b""), errno.EOPNOTSUPP),
        (SetXattr(2, b"trusted.a", b""), errno.EPERM),
        (SetXattr(2, b"security.capability", b""), errno.EPERM),
        (SetXattr(3, b"user.a", b""), errno.EPERM),
        (SetXattr(ROOT_INO, b"user.a", b""), errno.EPERM),
    ],
)
def test_wrong_xattrs_say_why(alice: User, op: Op, number: int) -> None:
    alice.create(b"f")
    alice.do(Create(ROOT_INO, b"link", 0o120777, target=b"f"))
    alice.do(SetXattr(2, b"user.has", b""))
    with fails(number):
        alice.do(op)


def test_xattrs_need_permission_and_have_a_limit(alice: User, bob: User, root: User) -> None:
    file = alice.create(b"f", mode=0o644)
    root.do(SetXattr(file.ino, b"trusted.t", b"t"))
    assert bob.client.xattrs(file.ino) == {}
    alice.do(SetXattr(file.ino, b"user.a", b"1"))
    assert bob.client.xattrs(file.ino) == {b"user.a": b"1"}
    assert root.client.xattrs(file.ino) == {b"user.a": b"1", b"trusted.t": b"t"}
    with fails(errno.EACCES):
        bob.do(SetXattr(file.ino, b"user.a", b"2"))
    alice.do(SetAttr(file.ino, mode=0o600))
    root.do(SetXattr(file.ino, b"security.s", b"s"))
    assert bob.client.xattrs(file.ino) == {b"user.a": None, b"security.s": b"s"}
    ops = [SetXattr(file.ino, b"user.%d" % number, b"v" * 65000) for number in range(16)]
    alice.client.mutate(ops)
    with fails(errno.ENOSPC):
        alice.do(SetXattr(file.ino, b"user.more", b"v" * 65000))
