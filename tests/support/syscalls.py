"""What Linux has and Python has not: rename flags, parts of times left alone, links of what has no name."""

import ctypes
import os
from collections.abc import Callable
from typing import NoReturn

AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW = -100, 0x100, 0x400
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
"""<fcntl.h>, <sys/stat.h>, <linux/fs.h>"""

_libc = ctypes.CDLL(None, use_errno=True)
_Times = ctypes.c_long * 4


def _check(result: int) -> None:
    if result:
        _fail()


def _fail() -> NoReturn:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def renameat2(old: str, new: str, flags: int) -> None:
    """renameat2(2) of paths. Raises OSError, as all here."""
    _check(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def link_descriptor(descriptor: int, path: str) -> None:
    """A name for an open file, also for one that has none, as open(2) says under O_TMPFILE."""
    source = os.fsencode(f"/proc/self/fd/{descriptor}")
    _check(_libc.linkat(AT_FDCWD, source, AT_FDCWD, os.fsencode(path), AT_SYMLINK_FOLLOW))


def link_followed(old: str, new: str) -> None:
    """link(2), but of what a symlink leads to."""
    _check(_libc.linkat(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), AT_SYMLINK_FOLLOW))


def utimensat(path: str, atime: tuple[int, int], mtime: tuple[int, int], *, follow: bool = True) -> None:
    """utimensat(2); a time is ``(seconds, nanoseconds)``, the latter also UTIME_NOW and UTIME_OMIT."""
    times = _Times(*atime, *mtime)
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    _check(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


def as_user(uid: int, gids: tuple[int, ...]) -> Callable[[], None]:
    """This process is another user, its primary group first in ``gids``, until what is returned is called.
    Needs root."""
    before = os.geteuid(), os.getegid(), os.getgroups()
    os.setgroups(gids)
    os.setegid(gids[0])
    os.seteuid(uid)

    def back() -> None:
        os.seteuid(before[0])
        os.setegid(before[1])
        os.setgroups(before[2])

    return back
