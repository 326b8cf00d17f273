"""POSIX ACLs as mode and extension, so that mode and ACL cannot disagree; pure, for both sides.

An ACL has an entry for the owner, one for the owning group and one for all others, as a mode has; an
*extended* one has entries for users and groups by number besides, and a mask that bounds all but the owner
and the others. Of an inode with an extended ACL the group's bits of the mode *are* the mask (acl(5)). So what
the mode does not say is the extension alone: the entries of users, of the owning group and of groups. It is
kept beside the mode, empty for an inode without an extended ACL. chmod changes the mode, and nothing else.

Programs and kernels see attributes of the two ``NAMES``, in the form of <linux/posix_acl_xattr.h>: a version,
then entries of tag, permissions and number.
"""

import errno
import struct
from collections.abc import Callable, Collection
from typing import NamedTuple

from wire.errors import fail
from wire.limits import ACL_ENTRIES_MAX

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
NAMES = (ACCESS, DEFAULT)

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
"""<linux/posix_acl.h>"""

NOBODY = 0xFFFFFFFF
"""The number in entries that name nobody, and a number that nobody has."""

_EXTENDING = (USER, GROUP_OBJ, GROUP)
_NAMING = (USER, GROUP)

_FOLLOWERS = {
    None: {USER_OBJ},
    USER_OBJ: {USER, GROUP_OBJ},
    USER: {USER, GROUP_OBJ},
    GROUP_OBJ: {GROUP, MASK, OTHER},
    GROUP: {GROUP, MASK},
    MASK: {OTHER},
}
"""Which entries may come after which."""

_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")


class Acl(NamedTuple):
    """``permissions`` are the nine bits of a mode (the group's are the mask, if there is an extension)."""

    permissions: int
    extension: bytes


def parse(value: bytes) -> Acl | None:
    """The ACL in an attribute's value, None if there is none in it: to set that is to remove the ACL.

    Raises what Linux does (posix_acl_from_xattr(), posix_acl_valid() of fs/posix_acl.c): EOPNOTSUPP for
    another version, EINVAL for what is no ACL; ENOSPC for more than ACL_ENTRIES_MAX entries.
    """
    if not value:
        return None
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise fail(errno.EINVAL, "this is no ACL")
    if _HEADER.unpack_from(value)[0] != _VERSION:
        raise fail(errno.EOPNOTSUPP, f"only version {_VERSION} of ACLs is known")
    entries = list(_ENTRY.iter_unpack(value[_HEADER.size :]))
    if not entries:
        return None
    if len(entries) > ACL_ENTRIES_MAX:
        raise fail(errno.ENOSPC, f"an ACL has at most {ACL_ENTRIES_MAX} entries")
    _check(entries)
    found = {tag: permissions for tag, permissions, _ in entries}
    permissions = found[USER_OBJ] << 6 | found.get(MASK, found[GROUP_OBJ]) << 3 | found[OTHER]
    if MASK not in found:
        return Acl(permissions, b"")
    return Acl(permissions, b"".join(_packed(entry) for entry in entries if entry[0] in _EXTENDING))


def _check(entries: list[tuple[int, int, int]]) -> None:
    """Raises EINVAL unless the entries are in order and whole: who names somebody has a mask."""
    before = None
    for tag, permissions, number in entries:
        if tag not in _FOLLOWERS.get(before, ()) or permissions > 7 or (tag in _NAMING and number == NOBODY):
            raise fail(errno.EINVAL, "this is no ACL")
        before = tag
    tags = {tag for tag, _, _ in entries}
    if before != OTHER or (USER in tags and MASK not in tags):
        raise fail(errno.EINVAL, "this is no ACL")


def _packed(entry: tuple[int, int, int]) -> bytes:
    tag, permissions, number = entry
    return _ENTRY.pack(tag, permissions, number if tag in _NAMING else NOBODY)


def build(mode: int, extension: bytes) -> bytes:
    """The attribute's value: the other way round."""
    owner = _ENTRY.pack(USER_OBJ, mode >> 6 & 7, NOBODY)
    group = mode >> 3 & 7
    middle = (
        extension + _ENTRY.pack(MASK, group, NOBODY) if extension else _ENTRY.pack(GROUP_OBJ, group, NOBODY)
    )
    return _HEADER.pack(_VERSION) + owner + middle + _ENTRY.pack(OTHER, mode & 7, NOBODY)


def allows(
    extension: bytes, mode: int, uid: int, gids: Collection[int], owning_gid: int, wanted: int
) -> bool:
    """Whether an extended ACL gives all of the ``wanted`` bits to one who does not own the inode: the
    algorithm of acl(5). His own entry decides alone; of those of his groups one must give everything; only
    who is in none of them is one of the others. All but the latter are bounded by the mask."""
    mask = mode >> 3
    is_member = False
    for tag, permissions, number in _ENTRY.iter_unpack(extension):
        if tag == USER:
            if number == uid:
                return bool(permissions & mask & wanted == wanted)
        elif (owning_gid if tag == GROUP_OBJ else number) in gids:
            if permissions & wanted == wanted:
                return mask & wanted == wanted
            is_member = True
    return not is_member and mode & wanted == wanted


def renumbered(value: bytes, uid: Callable[[int], int], gid: Callable[[int], int]) -> bytes:
    """An attribute's value with other numbers of users and groups; what is no ACL stays as it is."""
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        return value
    entries = [value[: _HEADER.size]]
    for tag, permissions, number in _ENTRY.iter_unpack(value[_HEADER.size :]):
        if tag in _NAMING and number != NOBODY:
            number = uid(number) if tag == USER else gid(number)
        entries.append(_ENTRY.pack(tag, permissions, number))
    return b"".join(entries)
