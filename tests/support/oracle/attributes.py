"""What changes and asks attributes by a path."""

import os
from collections.abc import Sequence
from contextlib import suppress

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.support.oracle.draws import (
    ids,
    modes,
    moments,
    mounts,
    names_of_xattrs,
    offsets,
    paths,
    users,
    values,
)
from tests.support.oracle.sides import Sides
from tests.support.syscalls import UTIME_OMIT, utimensat
from tests.support.twins import failed


class Attributes(Sides):
    """Modes, owners, times, sizes, extended attributes."""

    @rule(mount=mounts, user=users, place=paths, mode=modes)
    def chmod(self, mount: int, user: int, place: str, mode: int) -> None:
        self._do(mount, user, [place], lambda root: os.chmod(root + place, mode))

    @rule(mount=mounts, user=users, place=paths, uid=ids, gid=ids, follow=st.booleans())
    def chown(self, mount: int, user: int, place: str, uid: int, gid: int, follow: bool) -> None:
        if (uid, gid) == (-1, -1):
            return
        self._do(mount, user, [place], lambda root: os.chown(root + place, uid, gid, follow_symlinks=follow))

    @rule(mount=mounts, user=users, place=paths, atime=moments, mtime=moments, follow=st.booleans())
    def utimens(
        self, mount: int, user: int, place: str, atime: tuple[int, int], mtime: tuple[int, int], follow: bool
    ) -> None:
        done = self._do(
            mount, user, [place], lambda root: utimensat(root + place, atime, mtime, follow=follow)
        )
        times = [number for number, one in enumerate((atime, mtime)) if one[1] < UTIME_OMIT]
        if not failed(done) and times and follow:  # to look where a link leads is to read it, and moves atime
            self._do(mount, 0, [place], lambda root: _times(root + place, times, follow=follow))

    @rule(mount=mounts, user=users, place=paths, size=offsets)
    def truncate(self, mount: int, user: int, place: str, size: int) -> None:
        self._do(mount, user, [place], lambda root: os.truncate(root + place, size))

    @rule(mount=mounts, user=users, place=paths, mode=st.integers(0, 7))
    def access(self, mount: int, user: int, place: str, mode: int) -> None:
        self._do(mount, user, [place], lambda root: os.access(root + place, mode, effective_ids=True))

    @rule(
        mount=mounts,
        user=users,
        place=paths,
        name=names_of_xattrs,
        value=values,
        flags=st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]),
        follow=st.booleans(),
    )
    def setxattr(
        self, mount: int, user: int, place: str, name: str, value: bytes, flags: int, follow: bool
    ) -> None:
        with suppress(OSError):
            if os.getxattr(self.here + place, name, follow_symlinks=follow) == value:
                return  # some file systems move ctime, others do not
        self._do(
            mount,
            user,
            [place],
            lambda root: os.setxattr(root + place, name, value, flags, follow_symlinks=follow),
        )

    @rule(mount=mounts, user=users, place=paths, name=names_of_xattrs, follow=st.booleans())
    def getxattr(self, mount: int, user: int, place: str, name: str, follow: bool) -> None:
        self._do(mount, user, [place], lambda root: os.getxattr(root + place, name, follow_symlinks=follow))
        self._do(
            mount, user, [place], lambda root: sorted(os.listxattr(root + place, follow_symlinks=follow))
        )

    @rule(mount=mounts, user=users, place=paths, name=names_of_xattrs, follow=st.booleans())
    def removexattr(self, mount: int, user: int, place: str, name: str, follow: bool) -> None:
        self._do(
            mount, user, [place], lambda root: os.removexattr(root + place, name, follow_symlinks=follow)
        )


def _times(place: str, which: Sequence[int], *, follow: bool) -> list[int]:
    status = os.stat(place, follow_symlinks=follow)
    return [(status.st_atime_ns, status.st_mtime_ns)[number] for number in which]
