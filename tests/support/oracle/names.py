"""What makes, removes and moves names."""

import os
import stat

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.support.oracle.draws import FOLDERS, TARGETS, modes, mounts, paths, users
from tests.support.oracle.sides import Sides, listing
from tests.support.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, link_followed, renameat2


class Names(Sides):
    """Directories and what is in them."""

    @rule(mount=mounts, user=users, place=paths, mode=modes)
    def mkdir(self, mount: int, user: int, place: str, mode: int) -> None:
        self._do(mount, user, [place], lambda root: os.mkdir(root + place, mode))

    @rule(mount=mounts, user=users, place=paths)
    def rmdir(self, mount: int, user: int, place: str) -> None:
        self._do(mount, user, [place], lambda root: os.rmdir(root + place))

    @rule(mount=mounts, user=users, place=paths)
    def unlink(self, mount: int, user: int, place: str) -> None:
        self._do(mount, user, [place], lambda root: os.unlink(root + place))

    @rule(
        mount=mounts,
        user=users,
        old=paths,
        new=paths,
        flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, 3]),
    )
    def rename(self, mount: int, user: int, old: str, new: str, flags: int) -> None:
        self._do(mount, user, [old, new], lambda root: renameat2(root + old, root + new, flags))

    @rule(mount=mounts, user=users, old=paths, new=paths, follow=st.booleans())
    def link(self, mount: int, user: int, old: str, new: str, follow: bool) -> None:
        if follow:
            self._do(mount, user, [old, new], lambda root: link_followed(root + old, root + new))
        else:
            self._do(mount, user, [old, new], lambda root: os.link(root + old, root + new))

    @rule(mount=mounts, user=users, place=paths, where=st.integers(0, len(TARGETS) - 1))
    def symlink(self, mount: int, user: int, place: str, where: int) -> None:
        self._do(mount, user, [place], lambda root: os.symlink(TARGETS[where], root + place))
        self._do(mount, user, [place], lambda root: os.readlink(root + place))

    @rule(
        mount=mounts,
        user=users,
        place=paths,
        mode=modes,
        kind=st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG]),
    )
    def mknod(self, mount: int, user: int, place: str, mode: int, kind: int) -> None:
        device = os.makedev(1, 3) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        self._do(mount, user, [place], lambda root: os.mknod(root + place, kind | mode, device))

    @rule(mount=mounts, user=users, place=st.one_of(paths, st.sampled_from(FOLDERS)))
    def listdir(self, mount: int, user: int, place: str) -> None:
        self._do(mount, user, [place], lambda root: listing(root + place))
