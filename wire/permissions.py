"""Who may do what: the POSIX rules, pure, for the directory (which enforces them) and the client.

Sources: POSIX.1-2017, Base Definitions 4.5 (file access permissions) and XSH chmod(), chown(),
unlink(); Linux inode(7) for the sticky bit and for set-group-id directories.
"""

import stat
from typing import Protocol

import msgspec

READ, WRITE, SEARCH = 4, 2, 1

SET_IDS = stat.S_ISUID | stat.S_ISGID
CAPABILITIES = b"security.capability"
"""The extended attribute that gives a program capabilities (capabilities(7))."""


class Owned(Protocol):
    """Anything with a mode and owners."""

    @property
    def mode(self) -> int:
        """Type and permission bits, as st_mode."""

    @property
    def uid(self) -> int:
        """Owner."""

    @property
    def gid(self) -> int:
        """Group."""


class Identity(msgspec.Struct, frozen=True):
    """On whose behalf something is done. ``gids`` has the primary group first."""

    uid: int
    gids: tuple[int, ...]

    @property
    def is_root(self) -> bool:
        """uid 0 passes every permission check."""
        return self.uid == 0

    @property
    def gid(self) -> int:
        """The primary group."""
        return self.gids[0]


def may(who: Identity, what: Owned, wanted: int) -> bool:
    """Whether ``who`` has all of the ``wanted`` bits (READ | WRITE | SEARCH) on ``what``."""
    if who.is_root:
        executable = what.mode & 0o111 or stat.S_ISDIR(what.mode)
        return not wanted & SEARCH or bool(executable)
    if who.uid == what.uid:
        bits = what.mode >> 6
    elif what.gid in who.gids:
        bits = what.mode >> 3
    else:
        bits = what.mode
    return bits & wanted == wanted


def may_remove(who: Identity, parent: Owned, child: Owned) -> bool:
    """Whether ``parent``'s sticky bit lets ``who`` remove or rename ``child`` (write permission apart)."""
    return not parent.mode & stat.S_ISVTX or who.is_root or who.uid in (parent.uid, child.uid)


def is_owner(who: Identity, what: Owned) -> bool:
    """Whether ``who`` may change mode and explicit times of ``what``."""
    return who.is_root or who.uid == what.uid


def may_chown(who: Identity, what: Owned, uid: int | None, gid: int | None) -> bool:
    """Only root gives files away; an owner may choose among his own groups."""
    if who.is_root:
        return True
    if uid is not None and uid != what.uid:
        return False
    if who.uid != what.uid:
        return False
    return gid is None or gid == what.gid or gid in who.gids


def mode_after_chmod(who: Identity, what: Owned, mode: int) -> int:
    """The whole new st_mode: set-group-id is dropped where ``who`` is not in the file's group."""
    new = stat.S_IFMT(what.mode) | (mode & 0o7777)
    if not who.is_root and what.gid not in who.gids and not stat.S_ISDIR(what.mode):
        new &= ~stat.S_ISGID
    return new


def mode_without_privileges(mode: int) -> int:
    """The mode after a write by an ordinary user, or a chown by anybody: set-id bits are cleared, except a
    directory's (chown_common() of Linux's fs/open.c)."""
    if stat.S_ISDIR(mode):
        return mode
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


def owner_of_new(who: Identity, parent: Owned, mode: int) -> tuple[int, int, int]:
    """``(mode, uid, gid)`` of an inode that ``who`` creates: a set-group-id directory passes its group on."""
    if not parent.mode & stat.S_ISGID:
        return mode, who.uid, who.gid
    if stat.S_ISDIR(mode):
        mode |= stat.S_ISGID
    elif mode & stat.S_ISGID and mode & stat.S_IXGRP and not who.is_root and parent.gid not in who.gids:
        mode &= ~stat.S_ISGID
    return mode, who.uid, parent.gid
