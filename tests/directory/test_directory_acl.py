"""The directory: POSIX ACLs, who may set them, what they allow, and how they are passed on."""

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.acls import ACCESS, DEFAULT, acl, extended, local_disk, whole_acls
from tests.support.directory import ALICE, BOB, TEAM, DirectoryRealm, User, commit, fails, look
from wire.acl import GROUP_OBJ, NOBODY, OTHER, USER_OBJ, build
from wire.limits import ACL_ENTRIES_MAX
from wire.messages.directory import (
    ROOT_INO,
    Create,
    Link,
    Op,
    OpenWrite,
    RemoveXattr,
    SetAttr,
    SetXattr,
    Unlink,
)

EVE = 10003
NAMES = {False: ACCESS.encode(), True: DEFAULT.encode()}
ACCESS_ACL, DEFAULT_ACL = NAMES[False], NAMES[True]
MINIMAL = acl((USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 0, NOBODY))


@pytest.fixture
def bob(realm: DirectoryRealm) -> User:
    return realm.user(BOB)


@pytest.fixture
def eve(realm: DirectoryRealm) -> User:
    return realm.user(EVE)


def access_of(user: User, ino: int) -> bytes | None:
    """What getxattr(2) would say."""
    attr = look(user, ino)
    return build(attr.mode, attr.acl) if attr.acl else None


def default_of(user: User, ino: int) -> bytes | None:
    """The same of a directory's default ACL."""
    return user.client.xattrs(ino).get(DEFAULT_ACL)


# Who may what


def test_a_named_user_may_what_entry_and_mask_say(alice: User, bob: User, eve: User) -> None:
    file = alice.create(b"f", mode=0o600)
    with fails(errno.EACCES):
        bob.do(OpenWrite(file.ino, bob.grant(file.ino, 1)))
    changed = alice.do(SetXattr(file.ino, ACCESS_ACL, extended(0o660, users=[(BOB, 6)])))
    assert (stat.S_IMODE(changed.mode), changed.has_xattrs) == (0o660, False)
    assert changed.ctime == changed.change > file.change
    bob.do(OpenWrite(file.ino, bob.grant(file.ino, 2)))
    with fails(errno.EACCES):
        eve.do(OpenWrite(file.ino, eve.grant(file.ino, 3)))
    alice.do(SetAttr(file.ino, mode=0o640))
    assert access_of(alice, file.ino) == extended(0o640, users=[(BOB, 6)])
    with fails(errno.EACCES):
        bob.do(OpenWrite(file.ino, bob.grant(file.ino, 4)))
    bob.client.manifest(file.ino)
    with fails(errno.EACCES):
        eve.client.manifest(file.ino)


def test_the_mask_is_not_what_the_group_may(realm: DirectoryRealm, alice: User) -> None:
    member = realm.user(BOB, BOB, ALICE)
    file = alice.create(b"f", mode=0o600)
    alice.do(SetXattr(file.ino, ACCESS_ACL, extended(0o660, users=[(EVE, 6)])))
    assert look(member, file.ino).gid == ALICE
    with fails(errno.EACCES):
        member.client.manifest(file.ino)


def test_a_named_group_counts_with_supplementary_ones(realm: DirectoryRealm, alice: User, bob: User) -> None:
    file = alice.create(b"f", mode=0o600)
    alice.do(SetXattr(file.ino, ACCESS_ACL, extended(0o660, groups=[(TEAM, 6)])))
    member = realm.user(EVE, EVE, TEAM)
    member.do(OpenWrite(file.ino, member.grant(file.ino, 1), read=True))
    with fails(errno.EACCES):
        bob.client.manifest(file.ino)


def test_only_the_owner_and_root_set_acls(alice: User, bob: User, root: User) -> None:
    folder = alice.mkdir(b"d", mode=0o777)
    alice.do(SetAttr(folder.ino, mode=0o777))
    for name in NAMES.values():
        value = extended(0o777, users=[(BOB, 7)])
        with fails(errno.EPERM):
            bob.do(SetXattr(folder.ino, name, value))
        root.do(SetXattr(folder.ino, name, value))
        with fails(errno.EPERM):
            bob.do(RemoveXattr(folder.ino, name))
        alice.do(RemoveXattr(folder.ino, name))


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        (DEFAULT_ACL, MINIMAL, errno.EACCES),
        (ACCESS_ACL, MINIMAL[:-1], errno.EINVAL),
        (ACCESS_ACL, b"\1" + MINIMAL[1:], errno.EOPNOTSUPP),
        (ACCESS_ACL, extended(0o600, users=[(number, 7) for number in range(300)]), errno.ENOSPC),
    ],
)
def test_wrong_acls_say_why_and_change_nothing(alice: User, name: bytes, value: bytes, number: int) -> None:
    file = alice.create(b"f")
    with fails(number):
        alice.do(SetXattr(file.ino, name, value))
    assert look(alice, file.ino) == file


def test_what_has_none(alice: User) -> None:
    file = alice.create(b"f")
    link = alice.do(Create(ROOT_INO, b"link", 0o120777, target=b"f"))
    with fails(errno.EOPNOTSUPP):
        alice.do(SetXattr(link.ino, ACCESS_ACL, MINIMAL))
    for name in NAMES.values():
        assert alice.do(RemoveXattr(file.ino, name)) == file


def test_a_closed_directory_is_closed_at_once(alice: User, bob: User) -> None:
    folder = alice.mkdir(b"d", mode=0o700)
    inner = alice.mkdir(b"inner", folder.ino, mode=0o755)
    assert bob.attr(inner.ino) is None
    alice.do(SetXattr(folder.ino, ACCESS_ACL, extended(0o710, users=[(BOB, 1)])))
    assert bob.attr(inner.ino) is not None
    assert bob.client.resolve(ROOT_INO, [b"d", b"inner"]).errno == ""
    alice.do(SetXattr(folder.ino, ACCESS_ACL, extended(0o710, users=[(EVE, 1)])))
    assert bob.attr(inner.ino) is None
    alice.do(SetXattr(folder.ino, ACCESS_ACL, extended(0o711, users=[(EVE, 1)])))
    assert bob.attr(inner.ino) is not None
    alice.do(SetXattr(folder.ino, ACCESS_ACL, extended(0o711, users=[(BOB, 0)])))
    assert bob.attr(inner.ino) is None
    alice.do(RemoveXattr(folder.ino, ACCESS_ACL))
    assert bob.attr(inner.ino) is not None


def test_who_writes_a_directory_by_its_acl(alice: User, bob: User, eve: User) -> None:
    folder = alice.mkdir(b"d", mode=0o700)
    alice.do(SetXattr(folder.ino, ACCESS_ACL, extended(0o770, users=[(BOB, 7)])))
    file = bob.create(b"f", folder.ino)
    bob.do(Link(file.ino, folder.ino, b"g"))
    bob.do(Unlink(folder.ino, b"f"))
    assert bob.names(folder.ino) == [b"g"]
    ops: list[Op] = [Create(folder.ino, b"x", 0o100644), Unlink(folder.ino, b"g")]
    for op in ops:
        with fails(errno.EACCES):
            eve.do(op)


def test_set_group_id_goes_when_one_outside_the_group_sets_an_acl(
    realm: DirectoryRealm, alice: User, root: User
) -> None:
    for is_folder, name in ((False, b"f"), (True, b"d")):
        inode = alice.mkdir(name) if is_folder else alice.create(name)
        root.do(SetAttr(inode.ino, gid=BOB))
        root.do(SetAttr(inode.ino, mode=0o2755))
        value = extended(0o755, users=[(BOB, 5)])
        assert stat.S_IMODE(root.do(SetXattr(inode.ino, ACCESS_ACL, value)).mode) == 0o2755
        assert stat.S_IMODE(alice.do(RemoveXattr(inode.ino, ACCESS_ACL)).mode) == 0o2755
        assert stat.S_IMODE(alice.do(SetXattr(inode.ino, ACCESS_ACL, value)).mode) == 0o755
        root.do(SetAttr(inode.ino, gid=TEAM))
        alice.do(SetAttr(inode.ino, mode=0o2755))
        assert stat.S_IMODE(alice.do(SetXattr(inode.ino, ACCESS_ACL, value)).mode) == 0o2755


def test_what_could_not_be_read_cannot_when_it_is_old(realm: DirectoryRealm, alice: User, bob: User) -> None:
    file, grant = alice.open_new(b"f")
    server = realm.add_file_server()
    alice.do(SetXattr(file.ino, ACCESS_ACL, extended(0o664, users=[(BOB, 0)])))
    first = alice.do(commit(file, grant, 100, [realm.stored(0, server)]))
    second = alice.do(commit(first, grant, 100, [realm.stored(0, server)]))
    alice.do(RemoveXattr(file.ino, ACCESS_ACL))
    assert bob.client.manifest(file.ino).version == second.version
    with fails(errno.EACCES):
        bob.client.manifest(file.ino, first.version)


def test_acls_are_seen_without_read_permission(alice: User, bob: User) -> None:
    folder = alice.mkdir(b"d", mode=0o711)
    alice.client.mutate([SetXattr(folder.ino, DEFAULT_ACL, MINIMAL), SetXattr(folder.ino, b"user.a", b"1")])
    assert bob.client.xattrs(folder.ino) == {DEFAULT_ACL: MINIMAL, b"user.a": None}


def test_the_longest_page_has_room_for_the_longest_acls(alice: User) -> None:
    users = [(number, 7) for number in range(ACL_ENTRIES_MAX - 4)]
    folder = alice.mkdir(b"d")
    alice.do(SetXattr(folder.ino, DEFAULT_ACL, extended(0o777, users=users)))
    for first in range(0, 2000, 500):
        alice.client.mutate(
            [Create(folder.ino, b"%0255d" % number, 0o100644) for number in range(first, first + 500)]
        )
    page = alice.client.list_page(folder.ino)
    assert len(page.entries) == 2000
    assert {len(entry.attr.acl) for entry in page.entries} == {8 * (ACL_ENTRIES_MAX - 3)}


# As on a local disk

_names = itertools.count()
_changes = st.lists(
    st.tuples(st.just("chmod"), st.integers(0, 0o7777))
    | st.tuples(st.just("access"), whole_acls())
    | st.tuples(st.just("default"), whole_acls())
    | st.tuples(st.sampled_from(["remove access", "remove default"]), st.none()),
    max_size=6,
)


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("only root may set every mode")
    with local_disk() as folder:
        yield folder


@pytest.fixture(scope="module")
def superuser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    realm = DirectoryRealm(tmp_path_factory.mktemp("realm"))
    yield realm.user(0)
    realm.server.close()


def change_both(user: User, ino: int, path: Path, what: str, value: int | bytes | None) -> None:
    """The same change of an inode and of a local directory."""
    name = ACCESS if what.endswith("access") else DEFAULT
    if what == "chmod":
        assert isinstance(value, int)
        user.do(SetAttr(ino, mode=value))
        path.chmod(value)
    elif isinstance(value, bytes):
        user.do(SetXattr(ino, name.encode(), value))
        os.setxattr(path, name, value)
    else:
        user.do(RemoveXattr(ino, name.encode()))
        os.removexattr(path, name)


def same(user: User, ino: int, path: Path) -> None:
    """Mode and ACLs of both are the same."""
    names = os.listxattr(path)
    assert oct(look(user, ino).mode) == oct(path.stat().st_mode)
    assert access_of(user, ino) == (os.getxattr(path, ACCESS) if ACCESS in names else None)
    assert default_of(user, ino) == (os.getxattr(path, DEFAULT) if DEFAULT in names else None)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=_changes,
    made=st.tuples(st.booleans(), st.integers(0, 0o1777)),
    umask=st.sampled_from([0, 0o022, 0o027, 0o077]),
)
def test_mode_and_acls_change_together_and_are_passed_on(
    disk: Path,
    superuser: User,
    changes: list[tuple[str, int | bytes | None]],
    made: tuple[bool, int],
    umask: int,
) -> None:
    path = disk / f"d{next(_names)}"
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    folder = superuser.mkdir(path.name.encode())
    for what, value in changes:
        change_both(superuser, folder.ino, path, what, value)
        same(superuser, folder.ino, path)
    is_folder, mode = made
    kind = stat.S_IFDIR if is_folder else stat.S_IFREG
    before = os.umask(umask)
    try:
        os.mkdir(path / "x", mode) if is_folder else os.mknod(path / "x", kind | mode)
    finally:
        os.umask(before)
    inode = superuser.do(Create(folder.ino, b"x", kind | mode, umask=umask))
    same(superuser, inode.ino, path / "x")
    os.symlink("x", path / "link")
    link = superuser.do(Create(folder.ino, b"link", stat.S_IFLNK | 0o777, target=b"x", umask=umask))
    assert (link.mode, link.acl, link.has_xattrs) == ((path / "link").lstat().st_mode, b"", False)
