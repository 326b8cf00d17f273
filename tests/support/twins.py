"""A local directory and the same one as two mounts show it: what is done to both, and what must be the same.

What must be the same of an inode: type, permission bits, owner, group, links, device, the size of what has
one, the identity (two names of one inode), the ACLs, and by what the times move: what moves mtime and ctime
of a local file must do so here, though by another clock. Not compared: blocks, and atime unless it was set
(DFS moves no atime for reading).
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.support.acls import ACCESS, DEFAULT


@dataclass(frozen=True)
class World:
    """A folder on a local file system, and the folders of mounts that show the same realm: two, unless they
    are not written in turn."""

    local: Path
    mounts: tuple[Path, ...]


class Look(NamedTuple):
    """An inode on one side."""

    shown: tuple[int, ...]
    ino: int
    mtime: int
    ctime: int
    acls: tuple[object, ...]


def shown(status: os.stat_result) -> tuple[int, ...]:
    """What is the same on both sides."""
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return (status.st_mode, status.st_nlink, status.st_uid, status.st_gid, size, status.st_rdev)


def look(place: str | int) -> Look:
    """As ``Look`` has it. Raises OSError."""
    status = os.fstat(place) if isinstance(place, int) else os.lstat(place)
    acls = () if stat.S_ISLNK(status.st_mode) else tuple(_acl(place, name) for name in (ACCESS, DEFAULT))
    return Look(shown(status), status.st_ino, status.st_mtime_ns, status.st_ctime_ns, acls)


def _acl(place: str | int, name: str) -> object:
    return outcome(lambda: os.getxattr(place, name))


def outcome(run: Callable[[], object]) -> object:
    """The result, or the errno's name in brackets."""
    try:
        return run()
    except OSError as error:
        return f"[{errno.errorcode[error.errno or 0]}]"


def failed(result: object) -> bool:
    """Whether an outcome is an errno."""
    return isinstance(result, str) and result.startswith("[")


class Twin(NamedTuple):
    """Where one inode is to be looked at: paths or descriptors."""

    there: str | int
    here: str | int


def looks(twin: Twin) -> tuple[Look | str, Look | str]:
    """There and here."""
    there, here = (_look_at(place) for place in twin)
    return there, here


def _look_at(place: str | int) -> Look | str:
    try:
        return look(place)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


class Watch:
    """What some places were before a call, to be compared with what they are afterwards. Raises
    AssertionError at once if the two sides differ.

    ``identities`` says which inode there stands for one here; it grows. ``vague``: local inodes whose times
    move when the kernel sees fit (written maps).
    """

    def __init__(self, twins: Sequence[Twin], identities: dict[int, int], vague: set[int]) -> None:
        self._twins = twins
        self._identities = identities
        self._vague = vague
        self._before = self._look(twins)

    def _look(self, twins: Sequence[Twin]) -> dict[int, tuple[Look, Look]]:
        """By the local inode number."""
        found = {}
        for twin in twins:
            there, here = looks(twin)
            if isinstance(here, str) or isinstance(there, str):
                assert there == here, f"{twin.here}: {there} in place of {here}"
                continue
            assert there.shown == here.shown, f"{twin.here}: {_say(there)} in place of {_say(here)}"
            assert there.acls == here.acls, f"{twin.here}: ACLs {there.acls} in place of {here.acls}"
            same = self._identities.setdefault(here.ino, there.ino)
            assert same == there.ino, f"{twin.here} is inode {there.ino}, which was {same}"
            found[here.ino] = there, here
        return found

    def check(self, more: Sequence[Twin] = ()) -> None:
        """Looks again, also at what there is only now."""
        for ino, (there, here) in self._look([*self._twins, *more]).items():
            if ino in self._before and ino not in self._vague:
                was_there, was_here = self._before[ino]
                moved = (there.mtime != was_there.mtime, there.ctime != was_there.ctime)
                wanted = (here.mtime != was_here.mtime, here.ctime != was_here.ctime)
                assert moved == wanted, f"(mtime, ctime) moved: {moved} in place of {wanted}, {_say(here)}"

    def forget_gone(self) -> None:
        """Local inode numbers are used again: what is not where it was is no identity any more."""
        now = {here.ino for _, here in map(looks, self._twins) if isinstance(here, Look)}
        for ino in self._before.keys() - now:
            self._identities.pop(ino, None)


def _say(found: Look) -> str:
    mode, nlink, uid, gid, size, rdev = found.shown
    return f"{stat.filemode(mode)} nlink {nlink} {uid}:{gid} size {size} rdev {rdev:x}"
