"""The directory server through its real door: names, permissions, retries, content, restarts."""

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.support.directory import DirectoryRealm, User
from tests.support.inprocess import LossyWire
from tests.support.times import NOON
from wire.errors import BadMessage, ChunksMissing, Conflict
from wire.limits import CHUNK_BYTES, LINK_MAX
from wire.messages.common import Caller
from wire.messages.directory import (
    ROOT_INO,
    Attr,
    ChunkChange,
    Commit,
    Create,
    Drop,
    FoundCommit,
    Hold,
    Link,
    Op,
    OpenWrite,
    RemoveXattr,
    Rename,
    Reserve,
    Rmdir,
    SetAttr,
    SetXattr,
    Unlink,
)

ALICE, BOB, TEAM = 10001, 10002, 20000
NOREPLACE, EXCHANGE = 1, 2


@pytest.fixture
def realm(tmp_path: Path) -> Iterator[DirectoryRealm]:
    realm = DirectoryRealm(tmp_path)
    yield realm
    realm.server.close()


@pytest.fixture
def alice(realm: DirectoryRealm) -> User:
    return realm.user(ALICE, ALICE, TEAM)


@pytest.fixture
def bob(realm: DirectoryRealm) -> User:
    return realm.user(BOB, BOB, TEAM)


@pytest.fixture
def root(realm: DirectoryRealm) -> User:
    return realm.user(0)


@contextmanager
def fails(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number], caught.value


def look(user: User, ino: int) -> Attr:
    attr = user.attr(ino)
    assert attr is not None
    return attr


# Names


def test_the_root_is_there_for_everybody(alice: User) -> None:
    attr = look(alice, ROOT_INO)
    assert (attr.mode, attr.nlink, attr.uid) == (0o041777, 2, 0)
    assert alice.client.list_page(ROOT_INO).parent == ROOT_INO
    assert alice.client.paths([ROOT_INO]) == [b"/"]


def test_create_makes_every_type_of_inode(alice: User, root: User) -> None:
    made = {
        kind: alice.do(Create(ROOT_INO, f"{kind:o}".encode(), kind | 0o640, target=target))
        for kind, target in (
            (stat.S_IFREG, b""),
            (stat.S_IFDIR, b""),
            (stat.S_IFLNK, b"to/there"),
            (stat.S_IFIFO, b""),
            (stat.S_IFSOCK, b""),
        )
    }
    assert [stat.S_IFMT(attr.mode) for attr in made.values()] == list(made)
    assert made[stat.S_IFDIR].nlink == 2
    assert made[stat.S_IFLNK].size == 8
    assert stat.S_IMODE(made[stat.S_IFLNK].mode) == 0o777
    assert alice.client.target(made[stat.S_IFLNK].ino) == b"to/there"
    with fails(errno.EINVAL):
        alice.client.target(made[stat.S_IFREG].ino)
    with fails(errno.EPERM):
        alice.do(Create(ROOT_INO, b"dev", stat.S_IFCHR | 0o600, rdev=259))
    assert root.do(Create(ROOT_INO, b"dev", stat.S_IFBLK | 0o600, rdev=259)).rdev == 259
    assert look(alice, ROOT_INO).nlink == 3


@pytest.mark.parametrize(
    ("op", "number"),
    [
        (Create(ROOT_INO, b"file", 0o100644), errno.EEXIST),
        (Create(ROOT_INO, b"n" * 256, 0o100644), errno.ENAMETOOLONG),
        (Create(ROOT_INO, b"..", 0o100644), errno.EINVAL),
        (Create(ROOT_INO, b"x", 0o644), errno.EINVAL),
        (Create(999, b"x", 0o100644), errno.ENOENT),
        (Create(3, b"x", 0o100644), errno.ENOTDIR),
        (Create(ROOT_INO, b"x", 0o120777, target=b"t" * 4096), errno.ENAMETOOLONG),
        (Create(ROOT_INO, b"x", 0o120777), errno.ENOENT),
        (Create(ROOT_INO, b"x", 0o100644, ino=4000, grant=b"x"), errno.EINVAL),
        (Unlink(ROOT_INO, b"nothing"), errno.ENOENT),
        (Unlink(ROOT_INO, b"dir"), errno.EISDIR),
        (Unlink(3, b"x"), errno.ENOTDIR),
        (Rmdir(ROOT_INO, b"file"), errno.ENOTDIR),
        (Rmdir(ROOT_INO, b"dir"), errno.ENOTEMPTY),
        (Link(2, ROOT_INO, b"x"), errno.EPERM),
        (Link(3, ROOT_INO, b"dir"), errno.EEXIST),
        (Link(999, ROOT_INO, b"x"), errno.ENOENT),
        (Rename(ROOT_INO, b"nothing", ROOT_INO, b"x"), errno.ENOENT),
        (Rename(ROOT_INO, b"file", ROOT_INO, b"dir"), errno.EISDIR),
        (Rename(ROOT_INO, b"empty", ROOT_INO, b"file"), errno.ENOTDIR),
        (Rename(ROOT_INO, b"empty", ROOT_INO, b"dir"), errno.ENOTEMPTY),
        (Rename(ROOT_INO, b"dir", 4, b"x"), errno.EINVAL),
        (Rename(ROOT_INO, b"dir", 2, b"x"), errno.EINVAL),
        (Rename(4, b"deep", ROOT_INO, b"dir"), errno.ENOTEMPTY),
        (Rename(4, b"deep", ROOT_INO, b"dir", EXCHANGE), errno.EINVAL),
        (Rename(ROOT_INO, b"file", ROOT_INO, b"dir", NOREPLACE), errno.EEXIST),
        (Rename(ROOT_INO, b"file", ROOT_INO, b"x", EXCHANGE), errno.ENOENT),
        (SetAttr(999, mode=0o600), errno.ENOENT),
        (OpenWrite(2, b""), errno.EISDIR),
        (OpenWrite(3, b"forged"), errno.EPERM),
    ],
)
def test_what_cannot_be_done_says_why_and_changes_nothing(alice: User, op: Op, number: int) -> None:
    alice.client.mutate(
        [
            Create(ROOT_INO, b"dir", 0o040755),  # 2
            Create(ROOT_INO, b"file", 0o100644),  # 3
            Create(2, b"sub", 0o040755),  # 4
            Create(4, b"deep", 0o100644),
            Create(ROOT_INO, b"empty", 0o040755),
        ]
    )
    before = [alice.client.list_page(ino) for ino in (ROOT_INO, 2, 4)]
    with fails(number):
        alice.client.mutate([Create(ROOT_INO, b"undone", 0o100644), op])
    assert [alice.client.list_page(ino) for ino in (ROOT_INO, 2, 4)] == before


def test_links_are_counted_and_the_last_name_leaves_an_orphan(alice: User) -> None:
    folder, file = alice.mkdir(b"d"), alice.create(b"f")
    linked = alice.do(Link(file.ino, folder.ino, b"g"))
    assert (linked.nlink, linked.ctime > file.ctime, linked.mtime) == (2, True, file.mtime)
    assert sorted(path for path in alice.client.paths([file.ino]) if path) == [b"/f"]
    assert alice.do(Unlink(ROOT_INO, b"f")).nlink == 1
    assert alice.client.paths([file.ino]) == [b"/d/g"]
    assert alice.do(Unlink(folder.ino, b"g", hold=True)).nlink == 0
    assert look(alice, file.ino).nlink == 0
    with fails(errno.ENOENT):
        alice.do(Link(file.ino, ROOT_INO, b"again"))
    assert alice.client.paths([file.ino]) == [None]


def test_a_file_has_at_most_link_max_names(realm: DirectoryRealm, alice: User) -> None:
    file = alice.create(b"f")
    engine = create_engine(realm.config.database)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE inodes SET nlink = {LINK_MAX} WHERE ino = {file.ino}"))
    engine.dispose()
    with fails(errno.EMLINK):
        alice.do(Link(file.ino, ROOT_INO, b"g"))


def test_rename_moves_a_directory_with_its_counts(alice: User) -> None:
    a, b = alice.mkdir(b"a"), alice.mkdir(b"b")
    moved = alice.mkdir(b"moved", a.ino)
    result = alice.client.mutate([Rename(a.ino, b"moved", b.ino, b"here")])[0]
    assert result.attr is not None
    assert result.attr.ctime > moved.ctime
    assert {attr.ino: attr.nlink for attr in result.touched} == {a.ino: 2, b.ino: 3}
    assert all(attr.mtime == result.attr.ctime for attr in result.touched)
    assert alice.client.list_page(moved.ino).parent == b.ino
    assert alice.client.paths([moved.ino]) == [b"/b/here"]
    empty = alice.mkdir(b"empty")
    replaced = alice.client.mutate([Rename(b.ino, b"here", ROOT_INO, b"empty")])[0]
    assert {attr.ino: attr.nlink for attr in replaced.touched} == {b.ino: 2, ROOT_INO: 5, empty.ino: 0}


def test_rename_of_two_names_of_one_inode_does_nothing(alice: User) -> None:
    file = alice.create(b"f")
    alice.do(Link(file.ino, ROOT_INO, b"g"))
    before = look(alice, ROOT_INO)
    result = alice.client.mutate([Rename(ROOT_INO, b"f", ROOT_INO, b"g")])[0]
    assert result.touched == []
    assert look(alice, ROOT_INO) == before
    assert alice.names() == [b"f", b"g"]


def test_rename_exchanges_a_directory_and_a_file(alice: User) -> None:
    a, b = alice.mkdir(b"a"), alice.mkdir(b"b")
    folder, file = alice.mkdir(b"d", a.ino), alice.create(b"f", b.ino)
    alice.do(Rename(a.ino, b"d", b.ino, b"f", EXCHANGE))
    assert alice.client.paths([folder.ino, file.ino]) == [b"/b/f", b"/a/d"]
    assert (look(alice, a.ino).nlink, look(alice, b.ino).nlink) == (2, 3)
    assert alice.client.list_page(folder.ino).parent == b.ino


def test_times_are_the_clock_and_every_change_is_later(alice: User) -> None:
    folder = alice.mkdir(b"d")
    file = alice.create(b"f", folder.ino)
    assert file.atime == file.mtime == file.ctime == file.change
    parent = look(alice, folder.ino)
    assert parent.mtime == parent.ctime == parent.change == file.change
    chmodded = alice.do(SetAttr(file.ino, mode=0o600))
    assert (chmodded.mtime, chmodded.ctime > file.ctime) == (file.mtime, True)
    timed = alice.do(SetAttr(file.ino, atime=-5, mtime=7))
    assert (timed.atime, timed.mtime, timed.ctime > chmodded.ctime) == (-5, 7, True)
    now = alice.do(SetAttr(file.ino, mtime_now=True))
    assert (now.atime, now.mtime) == (-5, now.ctime)
    assert alice.do(SetAttr(file.ino)) == now


def test_the_clock_never_goes_back_over_a_restart(realm: DirectoryRealm, alice: User) -> None:
    last = alice.create(b"a")
    assert last.change > realm.clock.ns()
    realm.clock.now -= 1e6
    realm.restart()
    later = alice.create(b"b")
    assert later.change > last.change
    assert later.ino > last.ino
    realm.clock.now = NOON + 1e6
    assert alice.create(b"c").change == realm.clock.ns()


# Permissions


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


# Exactly once, all or nothing


def test_over_a_bad_line_every_create_happens_exactly_once(
    realm: DirectoryRealm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.session.PAUSE_SECONDS_MAX", 0.001)
    lossy = LossyWire(realm.wire, seed=7, loss=0.2)
    user = realm.user(ALICE, wire=lossy)
    inos = {user.create(b"%03d" % number).ino for number in range(200)}
    assert len(inos) == 200
    assert user.names() == [b"%03d" % number for number in range(200)]
    for number in range(0, 200, 2):
        user.do(Rename(ROOT_INO, b"%03d" % number, ROOT_INO, b"%03d" % (number + 1)))
    assert len(user.names()) == 100
    assert lossy.lost_requests, lossy.seed
    assert lossy.lost_replies, lossy.seed


def test_of_two_that_create_one_name_one_wins(realm: DirectoryRealm) -> None:
    users = [realm.user(uid) for uid in range(10001, 10009)]
    barrier = threading.Barrier(len(users))
    outcomes: list[int] = []

    def run(user: User) -> None:
        barrier.wait()
        for number in range(10):
            try:
                user.create(b"%d" % number)
                outcomes.append(0)
            except FileExistsError:
                outcomes.append(errno.EEXIST)

    threads = [threading.Thread(target=run, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outcomes.count(0), outcomes.count(errno.EEXIST)) == (10, 70)
    assert len(users[0].names()) == 10


def test_a_list_is_done_in_order(alice: User) -> None:
    results = alice.client.mutate(
        [
            Create(ROOT_INO, b"d", 0o040755),
            Create(2, b"f", 0o100644),
            Rename(2, b"f", ROOT_INO, b"g"),
            Unlink(ROOT_INO, b"g"),
            Rmdir(ROOT_INO, b"d"),
        ]
    )
    changes = [result.attr.change for result in results if result.attr]
    assert changes == sorted(set(changes))
    assert [result.attr.nlink for result in results if result.attr] == [2, 1, 1, 0, 0]
    assert alice.names() == []
    assert look(alice, ROOT_INO).nlink == 2


# Reading


def test_a_long_listing_comes_in_pages(alice: User) -> None:
    folder = alice.mkdir(b"d")
    names = [b"%05d" % number for number in range(5000)]
    for start in range(0, 5000, 1000):
        alice.client.mutate([Create(folder.ino, name, 0o100644) for name in names[start : start + 1000]])
    seen: list[bytes] = []
    more = True
    while more:
        page = alice.client.list_page(folder.ino, seen[-1] if seen else b"")
        seen += [entry.name for entry in page.entries]
        more = page.more
    assert seen == names
    assert alice.client.list_page(folder.ino, change=page.attr.change).unchanged
    exact = alice.client.list_page(folder.ino, b"04997", limit=2)
    assert ([entry.name for entry in exact.entries], exact.more) == ([b"04998", b"04999"], False)


def test_without_search_a_listing_tells_names_and_types_only(alice: User, bob: User) -> None:
    folder = alice.mkdir(b"d", mode=0o744)
    alice.create(b"f", folder.ino)
    (entry,) = bob.client.list_page(folder.ino).entries
    assert (entry.attr.mode, entry.attr.uid, entry.attr.change) == (stat.S_IFREG, 0, 0)
    alice.do(SetAttr(folder.ino, mode=0o711))
    with fails(errno.EACCES):
        bob.client.list_page(folder.ino)


def test_resolve_walks_as_far_as_it_may(alice: User, bob: User) -> None:
    parent, inos = ROOT_INO, [ROOT_INO]
    names = [b"%d" % depth for depth in range(40)]
    for name in names:
        parent = alice.mkdir(name, parent).ino
        inos.append(parent)
    file = alice.create(b"file", parent)

    def walk(user: User, *more: bytes, start: int = 0) -> tuple[list[int], str]:
        resolved = user.client.resolve(inos[start], names[start:] + list(more))
        return [attr.ino for attr in resolved.attrs], resolved.errno

    assert walk(bob, b"file") == ([*inos, file.ino], "")
    assert walk(bob, b"nothing", b"more") == (inos, "ENOENT")
    assert walk(bob, b"file", b"more") == ([*inos, file.ino], "ENOTDIR")
    assert walk(bob, b"n" * 300) == (inos, "ENAMETOOLONG")
    assert bob.client.resolve(file.ino, []).attrs == [file]
    assert bob.client.resolve(99999, [b"x"]).errno == "ENOENT"
    alice.do(SetAttr(inos[20], mode=0o600))
    assert walk(bob, b"file") == (inos[:21], "EACCES")
    assert walk(bob, b"file", start=30) == ([], "EACCES")


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
        (RemoveXattr(2, b"user.new"), errno.ENODATA),
        (SetXattr(2, b"user." + b"n" * 251, b""), errno.ERANGE),
        (SetXattr(2, b"user.a", b"v" * 65537), errno.E2BIG),
        (SetXattr(2, b"user.", b""), errno.EINVAL),
        (SetXattr(2, b"user", b""), errno.EINVAL),
        (SetXattr(2, b"system.posix_acl_access", b""), errno.EOPNOTSUPP),
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
    with fails(errno.EACCES):
        bob.client.xattrs(file.ino)
    ops = [SetXattr(file.ino, b"user.%d" % number, b"v" * 65000) for number in range(16)]
    alice.client.mutate(ops)
    with fails(errno.ENOSPC):
        alice.do(SetXattr(file.ino, b"user.more", b"v" * 65000))


# Content


def commit(
    file: Attr, grant: bytes, size: int, chunks: list[ChunkChange], keep: int = 0, **more: int
) -> Commit:
    commit_id = os.urandom(16)
    return Commit(file.ino, grant, file.version, commit_id, size, keep, chunks, **more)


def placed(user: User, ino: int, version: int = 0) -> dict[int, bytes]:
    return {chunk.index: chunk.id for chunk in user.client.manifest(ino, version).chunks}


def test_a_commit_makes_a_version_and_the_old_one_stays_readable(realm: DirectoryRealm, alice: User) -> None:
    server = realm.add_file_server()
    file, grant = alice.open_new(b"f")
    size = 5 * CHUNK_BYTES
    chunks = [realm.stored(index, server) for index in (0, 1, 2, 4)]  # 3 is a hole
    first = alice.do(commit(file, grant, size, chunks))
    assert (first.size, first.version, first.mtime) == (size, first.change, first.ctime)
    manifest = alice.client.manifest(file.ino)
    assert [(c.index, c.id, c.size, c.servers) for c in manifest.chunks] == [
        (chunk.index, chunk.id, 100, [server]) for chunk in chunks
    ]
    assert [address.id for address in manifest.servers] == [server]
    new, hole = realm.stored(1, server), ChunkChange(2)
    second = alice.do(commit(first, grant, 4 * CHUNK_BYTES, [new, hole], keep=size))
    assert placed(alice, file.ino) == {0: chunks[0].id, 1: new.id}
    assert placed(alice, file.ino, first.version) == {chunk.index: chunk.id for chunk in chunks}
    assert alice.client.manifest(file.ino, first.version).size == size
    assert [c.index for c in alice.client.manifest(file.ino, 0, 1, 1).chunks] == [1]
    third = alice.do(commit(second, grant, 4 * CHUNK_BYTES, [], keep=CHUNK_BYTES + 100))
    assert placed(alice, file.ino) == {0: chunks[0].id, 1: new.id}
    alice.do(commit(third, grant, 4 * CHUNK_BYTES, [], keep=CHUNK_BYTES))
    assert placed(alice, file.ino) == {0: chunks[0].id}
    assert alice.client.manifest(file.ino, first=2**63 - 1).chunks == []
    with fails(errno.ESTALE):
        alice.client.manifest(file.ino, 12345)


def test_a_commit_needs_the_current_base_and_token(realm: DirectoryRealm, alice: User, bob: User) -> None:
    server = realm.add_file_server()
    file, grant = alice.open_new(b"f", token=5)
    alice.do(SetAttr(file.ino, mode=0o666))
    first = alice.do(commit(file, grant, 10, [realm.stored(0, server)]))
    with pytest.raises(Conflict, match="base"):
        alice.do(commit(file, grant, 10, [realm.stored(0, server)]))
    bob.do(OpenWrite(file.ino, bob.grant(file.ino, 6)))
    with pytest.raises(Conflict, match="lock"):
        alice.do(commit(first, grant, 10, []))
    with pytest.raises(Conflict):
        alice.do(OpenWrite(file.ino, grant))
    for stolen in (bob.grant(file.ino, 7), alice.grant(file.ino + 1, 7), b"forged"):
        with fails(errno.EPERM):
            alice.do(commit(first, stolen, 10, []))
    other, _ = alice.open_new(b"g")
    with fails(errno.EPERM):
        alice.do(commit(other, bob.grant(other.ino, 1), 0, []))


def test_a_commit_is_known_by_its_id(realm: DirectoryRealm, alice: User, bob: User) -> None:
    server = realm.add_file_server()
    file, grant = alice.open_new(b"f")
    sent = commit(file, grant, 10, [realm.stored(0, server)])
    assert alice.client.find_commit(file.ino, sent.commit_id) == FoundCommit(0, file.version)
    first = alice.do(sent)
    assert alice.do(sent) == first  # another request, the same commit
    second = alice.do(commit(first, grant, 10, [], keep=10))
    assert alice.client.find_commit(file.ino, sent.commit_id) == FoundCommit(first.version, second.version)
    assert alice.client.find_commit(12345, sent.commit_id) == FoundCommit(0, 0)
    closed = alice.mkdir(b"closed", mode=0o700)
    alice.do(Rename(ROOT_INO, b"f", closed.ino, b"f"))
    assert bob.client.find_commit(file.ino, b"0" * 16) == FoundCommit(0, 0)


def test_a_commit_names_only_chunks_that_can_be_counted_on(realm: DirectoryRealm, alice: User) -> None:
    server = realm.add_file_server()
    file, grant = alice.open_new(b"f")
    good, late = realm.stored(0, server), realm.stored(1, server, age_seconds=3601)
    bare = ChunkChange(2, realm.stored(2, server).id, 100)
    other = ChunkChange(3, realm.stored(3, server).id, 100, realm.stored(3, server).receipt)
    shrunk = ChunkChange(4, (chunk := realm.stored(4, server)).id, 99, chunk.receipt)
    nowhere = realm.stored(5, 999)
    bad = [late, bare, other, shrunk, nowhere]
    with pytest.raises(ChunksMissing) as caught:
        alice.do(commit(file, grant, 6 * CHUNK_BYTES, [good, *bad]))
    assert sorted(caught.value.chunks) == sorted(change.id or b"" for change in bad)
    assert look(alice, file.ino) == file
    alice.do(commit(file, grant, CHUNK_BYTES, [good]))
    copy, its_grant = alice.open_new(b"copy")
    assert good.id is not None
    alice.do(commit(copy, its_grant, CHUNK_BYTES, [ChunkChange(0, good.id, 100)]))
    assert placed(alice, copy.ino) == placed(alice, file.ino)
    engine = create_engine(realm.config.database)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT refs FROM chunks")).scalars().all() == [2]
        connection.execute(text("UPDATE chunks SET condemned_at = 1.0"))
    engine.dispose()
    third, its_grant = alice.open_new(b"third")
    with pytest.raises(ChunksMissing):
        alice.do(commit(third, its_grant, CHUNK_BYTES, [good]))


def test_content_that_was_cut_off_does_not_come_back(realm: DirectoryRealm, alice: User) -> None:
    server = realm.add_file_server()
    file, grant = alice.open_new(b"f")
    full = alice.do(
        commit(file, grant, 2 * CHUNK_BYTES, [realm.stored(i, server, CHUNK_BYTES) for i in (0, 1)])
    )
    cut = alice.do(commit(full, grant, 10, [], keep=10))
    assert list(placed(alice, file.ino)) == [0]
    with pytest.raises(BadMessage, match="cut off"):
        alice.do(commit(cut, grant, 20, [], keep=10))
    again = alice.do(commit(cut, grant, 2 * CHUNK_BYTES, [realm.stored(0, server, 10)], keep=10))
    assert list(placed(alice, file.ino)) == [0]
    with fails(errno.EINVAL):
        alice.do(commit(again, grant, 10, [ChunkChange(1)]))
    with fails(errno.EINVAL):
        alice.do(commit(again, grant, 10, [ChunkChange(0), ChunkChange(0)]))


def test_a_commit_drops_set_id_bits_unless_it_brings_a_mode(
    realm: DirectoryRealm, alice: User, bob: User, root: User
) -> None:
    file, grant = alice.open_new(b"f")
    file = alice.do(SetAttr(file.ino, mode=0o6777))
    file = alice.do(commit(file, grant, 0, []))
    assert stat.S_IMODE(file.mode) == 0o777
    file = alice.do(commit(file, grant, 0, [], mode=0o4711, mtime=5, atime=6))
    assert (stat.S_IMODE(file.mode), file.mtime, file.atime, file.ctime) == (0o4711, 5, 6, file.version)
    alice.do(SetAttr(file.ino, mode=0o4777))
    file = root.do(OpenWrite(file.ino, root.grant(file.ino, 2)))
    file = root.do(commit(file, root.grant(file.ino, 2), 0, []))
    assert stat.S_IMODE(file.mode) == 0o4777
    bob.do(OpenWrite(file.ino, bob.grant(file.ino, 3)))
    with fails(errno.EPERM):
        bob.do(commit(file, bob.grant(file.ino, 3), 0, [], mode=0o777))
    with fails(errno.EPERM):
        bob.do(commit(file, bob.grant(file.ino, 3), 0, [], mtime=1))


def test_who_opens_needs_permission_and_who_commits_the_grant(alice: User, bob: User) -> None:
    file, grant = alice.open_new(b"f")
    file = alice.do(SetAttr(file.ino, mode=0o444))
    alice.do(commit(file, grant, 0, []))
    with fails(errno.EACCES):
        alice.do(OpenWrite(file.ino, grant))
    alice.do(SetAttr(file.ino, mode=0o602))
    bob.do(OpenWrite(file.ino, bob.grant(file.ino, 2)))
    with fails(errno.EACCES):
        bob.do(OpenWrite(file.ino, bob.grant(file.ino, 2), read=True))
    with fails(errno.EACCES):
        bob.client.manifest(file.ino)


def test_a_lock_without_an_opening_commits_only_what_may_be_written(alice: User, bob: User) -> None:
    file, _ = alice.open_new(b"f")
    file = alice.do(SetAttr(file.ino, mode=0o600))
    for base in (0, file.version):
        with fails(errno.EACCES):
            bob.do(Commit(file.ino, bob.grant(file.ino, 2), base, b"2" * 16, 0, 0, []))
    assert alice.attr(file.ino) == file
    alice.do(SetAttr(file.ino, mode=0o444))
    file = alice.do(commit(file, alice.grant(file.ino, 3), 0, []))  # a lock that was lost and taken again
    with fails(errno.EACCES):
        bob.do(commit(file, bob.grant(file.ino, 4), 0, []))
    alice.do(SetAttr(file.ino, mode=0o666))
    file = bob.do(commit(file, bob.grant(file.ino, 5), 0, []))
    alice.do(SetAttr(file.ino, mode=0o600))
    bob.do(commit(file, bob.grant(file.ino, 5), 0, []))  # as through a descriptor that is open


def test_an_old_version_is_for_who_could_read_it_then(
    realm: DirectoryRealm, alice: User, bob: User, root: User
) -> None:
    file, grant = alice.open_new(b"f")
    secret = alice.do(commit(file, grant, 10, [], mode=0o600))
    public = alice.do(commit(secret, grant, 20, [], mode=0o644))
    assert bob.client.manifest(file.ino).size == 20
    with fails(errno.EACCES):
        bob.client.manifest(file.ino, secret.version)
    last = alice.do(commit(public, grant, 30, []))
    assert bob.client.manifest(file.ino, public.version).size == 20
    root.do(SetAttr(file.ino, uid=BOB, mode=0o600))
    for user, version in ((bob, secret.version), (alice, public.version), (alice, last.version)):
        with fails(errno.EACCES):
            user.client.manifest(file.ino, version)
    assert root.client.manifest(file.ino, secret.version).size == 10


def test_an_orphan_can_be_committed(realm: DirectoryRealm, alice: User) -> None:
    server = realm.add_file_server()
    file, grant = alice.open_new(b"f")
    alice.do(Unlink(ROOT_INO, b"f", hold=True))
    alice.do(commit(file, grant, 10, [realm.stored(0, server)]))
    assert list(placed(alice, file.ino)) == [0]


def test_reserved_numbers_belong_to_their_session(alice: User, bob: User) -> None:
    with fails(errno.EINVAL):
        alice.client.mutate([Reserve(1000), Reserve(25)])
    inos = alice.client.mutate([Reserve(3)])[0].inos
    assert len(set(inos)) == 3
    with fails(errno.EINVAL):
        bob.do(Create(ROOT_INO, b"f", 0o100644, ino=inos[0], grant=bob.grant(inos[0], 1)))
    with fails(errno.EPERM):
        alice.do(Create(ROOT_INO, b"f", 0o100644, ino=inos[0], grant=alice.grant(inos[1], 1)))
    alice.do(Create(ROOT_INO, b"f", 0o100644, ino=inos[0], grant=alice.grant(inos[0], 1)))
    with fails(errno.EINVAL):
        alice.do(Create(ROOT_INO, b"g", 0o100644, ino=inos[0], grant=alice.grant(inos[0], 1)))
    assert alice.create(b"g").ino not in inos


def test_statfs_placement_and_servers_are_asked_through_the_client(
    realm: DirectoryRealm, alice: User
) -> None:
    server = realm.add_file_server()
    assert alice.client.statfs().inodes == 1
    assert alice.client.placement(1).sets[0][0].id == server
    assert [state.id for state in alice.client.servers().servers] == [server]
    known = alice.client.known_servers().servers
    assert [(one.id, one.name, one.state) for one in known] == [(server, "f", "alive")]
