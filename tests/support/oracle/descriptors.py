"""What is open: opening, closing, and what goes through a descriptor to the inode and not to its bytes."""

import os
import stat
from collections.abc import Callable
from contextlib import suppress

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.support.oracle.draws import (
    FOLDERS,
    NAMES,
    accesses,
    creates,
    ids,
    modes,
    mounts,
    others,
    paths,
    picks,
    users,
)
from tests.support.oracle.sides import Opened, Sides
from tests.support.syscalls import link_descriptor
from tests.support.twins import failed

OPEN_MAX = 6


class Descriptors(Sides):
    """Open files and directories."""

    @rule(mount=mounts, user=users, place=paths, access=accesses, create=creates, more=others, mode=modes)
    def open(self, mount: int, user: int, place: str, access: int, create: int, more: int, mode: int) -> None:
        flags = access | create | more
        with suppress(OSError):
            kind = stat.S_IFMT(os.stat(self.here + place).st_mode)
            if kind in (stat.S_IFCHR, stat.S_IFBLK):
                return  # mounts are nodev
            if kind != stat.S_IFREG:
                flags |= os.O_NONBLOCK  # a FIFO would wait for its other end
        self._open(mount, user, place, flags, mode)

    @rule(
        mount=mounts,
        user=users,
        place=st.sampled_from(FOLDERS),
        mode=modes,
        more=st.sampled_from([0, os.O_EXCL]),
    )
    def open_nameless(self, mount: int, user: int, place: str, mode: int, more: int) -> None:
        self._open(mount, user, place, os.O_TMPFILE | os.O_RDWR | more, mode)

    @precondition(lambda self: self.opened)
    @rule(pick=picks, mount=mounts, access=st.sampled_from([os.O_RDONLY, os.O_RDWR]))
    def open_again(self, pick: int, mount: int, access: int) -> None:
        """What is open, by the name that it has now: who has it open on either mount meets others."""
        one = self.opened[pick % len(self.opened)]
        place = os.readlink(f"/proc/self/fd/{one.here}")
        if place.startswith(self.here) and os.path.exists(place):
            self._open(mount, 0, place.removeprefix(self.here), access, 0)

    def _open(self, wanted: int, user: int, place: str, flags: int, mode: int) -> None:
        mount = self._mount(wanted, place)
        if mount is None or len(self.opened) >= OPEN_MAX:
            return
        found: list[int] = []

        def run(root: str) -> None:
            found.append(os.open(root + place, flags, mode))

        try:
            if failed(self._do(mount, user, [place], run)):
                return
        except AssertionError:
            for descriptor in found:
                os.close(descriptor)
            raise
        status = os.fstat(found[1])
        kind = stat.S_IFMT(status.st_mode)
        one = Opened(mount, found[0], found[1], flags, status.st_ino, kind == stat.S_IFDIR)
        if kind in (stat.S_IFREG, stat.S_IFDIR):
            self.opened.append(one)
        else:
            one.close()

    def _pick(self, pick: int, *, folders: bool = False) -> Opened | None:
        """One of what is open, and may be read now: nobody writes it on the other mount."""
        able = [
            one
            for one in self.opened
            if one.is_folder == folders
            and not any(
                other.writes and other.ino == one.ino and other.mount != one.mount for other in self.opened
            )
        ]
        return able[pick % len(able)] if able else None

    def _pick_with_way(self, pick: int, user: int) -> Opened | None:
        """As ``_pick``, if the user could open it still: the directory lets nobody change the attributes of
        what he finds no way to."""
        one = self._pick(pick)
        if one is None or user < 1:
            return one
        place = os.readlink(f"/proc/self/fd/{one.here}")
        back = self._become(user)
        try:
            return one if os.path.lexists(place) else None
        finally:
            back()

    @precondition(lambda self: self.opened)
    @rule(pick=picks)
    def close(self, pick: int) -> None:
        self._close(self.opened[pick % len(self.opened)])

    def _close(self, one: Opened) -> None:
        self.opened.remove(one)
        if os.fstat(one.here).st_nlink == 0:
            self.identities.pop(one.ino, None)
        one.close()
        if not any(other.ino == one.ino for other in self.opened):
            self.vague.discard(one.ino)

    @precondition(lambda self: self.opened)
    @rule(pick=picks, data_only=st.booleans())
    def fsync(self, pick: int, data_only: bool) -> None:
        if one := self._pick(pick):
            self._with(one, 0, os.fdatasync if data_only else os.fsync)

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, mode=modes)
    def fchmod(self, pick: int, user: int, mode: int) -> None:
        if one := self._pick_with_way(pick, user):
            self._with(one, user, lambda fd: os.fchmod(fd, mode))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, uid=ids, gid=ids)
    def fchown(self, pick: int, user: int, uid: int, gid: int) -> None:
        if (uid, gid) != (-1, -1) and (one := self._pick_with_way(pick, user)):
            self._with(one, user, lambda fd: os.fchown(fd, uid, gid))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, times=st.tuples(st.integers(0, 2**33), st.integers(0, 2**33)))
    def futimens(self, pick: int, user: int, times: tuple[int, int]) -> None:
        if (one := self._pick_with_way(pick, user)) and not failed(
            self._with(one, user, lambda fd: os.utime(fd, ns=times))
        ):
            found = os.fstat(one.there)
            assert (found.st_atime_ns, found.st_mtime_ns) == times

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, place=paths)
    def name_it(self, pick: int, user: int, place: str) -> None:
        """A name for what is open, and may have none."""
        one = self._pick_with_way(pick, user)
        if one is None or self._mount(one.mount, place) != one.mount:
            return
        sides = {one.there: self.there[one.mount], one.here: self.here}
        self._with(
            one,
            user,
            lambda fd: link_descriptor(fd, sides[fd] + place),
            more=self._twins(one.mount, [place]),
        )

    @precondition(lambda self: self.opened)
    @rule(
        pick=picks,
        name=st.sampled_from(NAMES),
        what=st.sampled_from(["list", "mkdir", "stat", "unlink", "rmdir"]),
    )
    def below(self, pick: int, name: str, what: str) -> None:
        """An open directory may have another name by now, or none."""
        one = self._pick(pick, folders=True)
        if one is None:
            return
        calls: dict[str, Callable[[int], object]] = {
            "list": lambda fd: sorted(os.listdir(fd)),
            "mkdir": lambda fd: os.mkdir(name, dir_fd=fd),
            "stat": lambda fd: stat.S_IFMT(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode),
            "unlink": lambda fd: os.unlink(name, dir_fd=fd),
            "rmdir": lambda fd: os.rmdir(name, dir_fd=fd),
        }
        if what in ("unlink", "rmdir"):
            with suppress(OSError):
                self.identities.pop(os.stat(name, dir_fd=one.here, follow_symlinks=False).st_ino, None)
        self._with(one, 0, calls[what])
