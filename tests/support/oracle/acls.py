"""POSIX ACLs: set, taken away and asked for, by paths and by descriptors. Who may do what by them is found
out by all other calls, and what they become by the watch."""

import os
from contextlib import suppress

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.support.acls import ACCESS, DEFAULT, acl
from tests.support.oracle.descriptors import Descriptors
from tests.support.oracle.draws import FOLDERS, acls, mounts, paths, picks, users
from wire.acl import GROUP_OBJ, NOBODY, OTHER, USER_OBJ

places = st.one_of(paths, st.sampled_from(FOLDERS))
names = st.sampled_from([ACCESS, ACCESS, DEFAULT])


class Acls(Descriptors):
    """Access ACLs of all, default ACLs of directories."""

    @rule(mount=mounts, user=users, place=places, name=names, value=acls)
    def set_acl(self, mount: int, user: int, place: str, name: str, value: bytes) -> None:
        if not _has(self.here + place, name, value):
            self._do(mount, user, [place], lambda root: os.setxattr(root + place, name, value))

    @rule(mount=mounts, user=users, place=places, name=names)
    def get_acl(self, mount: int, user: int, place: str, name: str) -> None:
        self._do(mount, user, [place], lambda root: os.getxattr(root + place, name))

    @rule(mount=mounts, user=users, place=places, name=names)
    def remove_acl(self, mount: int, user: int, place: str, name: str) -> None:
        self._do(mount, user, [place], lambda root: os.removexattr(root + place, name))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, value=acls)
    def set_acl_of_open(self, pick: int, user: int, value: bytes) -> None:
        one = self._pick_with_way(pick, user)
        if one is not None and not _has(one.here, ACCESS, value):
            self._with(one, user, lambda fd: os.setxattr(fd, ACCESS, value))


def _has(place: str | int, name: str, value: bytes) -> bool:
    """Whether it is there already, or says what the mode does: some file systems move ctime then, others do
    not."""
    with suppress(OSError):
        mode = os.stat(place).st_mode
        minimal = acl(
            (USER_OBJ, mode >> 6 & 7, NOBODY), (GROUP_OBJ, mode >> 3 & 7, NOBODY), (OTHER, mode & 7, NOBODY)
        )
        return (name == ACCESS and value == minimal) or os.getxattr(place, name) == value
    return False
