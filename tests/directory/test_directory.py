"""The directory server through its real door: names, retries, reading, restarts."""

import errno
import stat
import threading

import pytest
from sqlalchemy import create_engine, text

from tests.support.directory import ALICE, DirectoryRealm, User, fails, look
from tests.support.inprocess import LossyWire
from tests.support.times import NOON
from wire.limits import LINK_MAX
from wire.messages.directory import (
    ROOT_INO,
    Create,
    Entry,
    Link,
    Op,
    OpenWrite,
    Rename,
    Rmdir,
    SetAttr,
    Unlink,
)

NOREPLACE, EXCHANGE = 1, 2


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
    seen: list[Entry] = []
    more = True
    while more:
        page = alice.client.list_page(folder.ino, seen[-1].cookie if seen else 0)
        seen += page.entries
        more = page.more
    assert [entry.name for entry in seen] == names
    assert alice.client.list_page(folder.ino, change=page.attr.change).unchanged
    exact = alice.client.list_page(folder.ino, seen[4997].cookie, limit=2)
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
