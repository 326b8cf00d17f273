"""POSIX ACLs, pure: a local disk says the same."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mount.owners import Owners
from tests.support.acls import ACCESS, DEFAULT, NUMBERS, Asked, any_values, extended, local_disk, whole_acls
from wire.acl import build, parse
from wire.limits import ACL_ENTRIES_MAX
from wire.permissions import Identity, may


class Thing(NamedTuple):
    """An inode, as far as permissions go."""

    mode: int
    uid: int
    gid: int
    acl: bytes


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    with local_disk() as folder:
        yield folder


def said_of(value: bytes, mode: int) -> tuple[int, bytes | None] | int:
    """What becomes of an inode with ``mode`` when the value is set: its mode, and the value that is there
    then; or an errno."""
    try:
        acl = parse(value)
    except OSError as error:
        return error.errno or 0
    if acl is None:
        return mode, None
    return acl.permissions, build(*acl) if acl.extension else None


def done_to(path: Path, value: bytes, mode: int) -> tuple[int, bytes | None] | int:
    """The same of a file on a disk."""
    path.unlink(missing_ok=True)
    path.touch()
    path.chmod(mode)
    try:
        os.setxattr(path, ACCESS, value)
    except OSError as error:
        return error.errno or 0
    return stat.S_IMODE(path.stat().st_mode), found_at(path, ACCESS)


def found_at(path: Path, name: str) -> bytes | None:
    """The attribute, None if it is not there."""
    return os.getxattr(path, name) if name in os.listxattr(path) else None


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=any_values(), mode=st.integers(0, 0o777))
def test_what_is_an_acl_and_what_mode_it_means(disk: Path, value: bytes, mode: int) -> None:
    assert said_of(value, mode) == done_to(disk / "set", value, mode)


@given(value=whole_acls())
def test_a_directory_may_have_any_of_them_as_default(disk: Path, value: bytes) -> None:
    folder = disk / "with-default"
    folder.mkdir(exist_ok=True)
    os.setxattr(folder, DEFAULT, value)
    acl = parse(value)
    assert acl is not None
    assert build(*acl) == os.getxattr(folder, DEFAULT)


def test_too_many_entries_are_refused() -> None:
    users = [(number, 7) for number in range(ACL_ENTRIES_MAX - 4)]
    assert parse(extended(0o777, users=users)) is not None
    with pytest.raises(OSError, match="at most") as caught:
        parse(extended(0o777, users=[*users, (99999, 7)]))
    assert caught.value.errno == errno.ENOSPC


@pytest.fixture(scope="module")
def others() -> Iterator[list[tuple[Identity, Asked]]]:
    """Users of every kind: the owner of a file, members of its group, of other groups, of none."""
    if os.geteuid():
        pytest.skip("only root can be everybody")
    one, two, three = NUMBERS
    identities = [(one, (one,)), (two, (one, three)), (two, (two,)), (three, (two, three)), (4711, (4711,))]
    with ExitStack() as stack:
        yield [(Identity(uid, gids), stack.enter_context(Asked(uid, gids))) for uid, gids in identities]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=whole_acls(),
    mode=st.none() | st.integers(0, 0o777),
    owners=st.tuples(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS)),
    is_folder=st.booleans(),
)
def test_who_may_do_what(
    disk: Path,
    others: list[tuple[Identity, Asked]],
    value: bytes,
    mode: int | None,
    owners: tuple[int, int],
    is_folder: bool,
) -> None:
    path = disk / ("folder" if is_folder else "file")
    path.mkdir(exist_ok=True) if is_folder else path.touch()
    os.chown(path, *owners)
    os.setxattr(path, ACCESS, value)
    acl = parse(value)
    assert acl is not None
    permissions, extension = acl
    if mode is not None:  # chmod changes what the ACL says of owner, mask and others
        path.chmod(mode)
        permissions = mode
        assert found_at(path, ACCESS) == (build(mode, extension) if extension else None)
    thing = Thing((stat.S_IFDIR if is_folder else stat.S_IFREG) | permissions, *owners, extension)
    for identity, asked in others:
        for bits in (1, 2, 4, 6):
            assert may(identity, thing, bits) == asked.may(path, bits), (identity, bits)
    for bits in (1, 2, 4):
        assert may(Identity(0, (0,)), thing, bits) == os.access(path, bits)


@given(value=any_values())
def test_numbers_in_acls_are_shown_as_those_of_owners_are(value: bytes) -> None:
    owners = Owners(NUMBERS[0], NUMBERS[1], 1000, NUMBERS[2])
    shown = owners.xattr(b"system.posix_acl_access", value)
    assert len(shown) == len(value)
    assert owners.xattr(b"system.posix_acl_access", shown) == value
    assert owners.xattr(b"user.something", value) == value


def test_only_the_two_own_numbers_change() -> None:
    owners = Owners(10001, 20001, 1000, 2000)
    realm = extended(0o770, users=[(10001, 7), (10002, 6)], groups=[(20001, 5), (20002, 4)], group=7)
    local = extended(0o770, users=[(1000, 7), (10002, 6)], groups=[(2000, 5), (20002, 4)], group=7)
    assert owners.xattr(b"system.posix_acl_default", realm) == local
