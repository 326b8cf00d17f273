"""The kernel's structures made of the directory's attributes."""

import errno
import os

from mount.bindings.native import protocol
from mount.bindings.times import storable
from mount.owners import Owners
from wire.errors import fail
from wire.messages.directory import Attr, Statfs

BLOCK_BYTES = 4096
BILLION = 10**9

UINT64_MAX = 2**64 - 1
"""As a mask: the structures have a time_t before 1970 as its two's complement."""

STATX_BASIC_STATS = 0x7FF
"""<linux/stat.h>"""

FREE_INODES = 2**32
"""There is no limit, but df(1) wants one."""


def since_epoch(seconds: int, nanoseconds: int) -> int:
    """Nanoseconds, of a time_t that came as a uint64_t."""
    if seconds >= 2**63:
        seconds -= 2**64
    return storable(seconds * BILLION + nanoseconds)


def as_large_as(size: int, value: bytes) -> bytes:
    """The answer to GETXATTR and LISTXATTR. Raises ERANGE."""
    if not size:
        return protocol.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise fail(errno.ERANGE)
    return value


def decode_device(number: int) -> int:
    """new_decode_dev() of the kernel's <linux/kdev_t.h>, as stat(2) tells it."""
    return os.makedev((number & 0xFFF00) >> 8, (number & 0xFF) | (number >> 12 & 0xFFF00))


def _encode_device(number: int) -> int:
    """new_encode_dev(): the other way round."""
    major, minor = os.major(number), os.minor(number)
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12 & 0xFFFFFFFF


def attr(of: Attr, owners: Owners) -> bytes:
    """fuse_attr."""
    return protocol.ATTR.pack(
        of.ino,
        of.size,
        -(-of.stored_bytes // 512),
        of.atime // BILLION & UINT64_MAX,
        of.mtime // BILLION & UINT64_MAX,
        of.ctime // BILLION & UINT64_MAX,
        of.atime % BILLION,
        of.mtime % BILLION,
        of.ctime % BILLION,
        of.mode,
        of.nlink,
        owners.uid(of.uid),
        owners.gid(of.gid),
        _encode_device(of.rdev) if of.rdev else 0,
        BLOCK_BYTES,
        0,
    )


def attr_out(of: Attr, owners: Owners, seconds: float) -> bytes:
    """fuse_attr_out; ``seconds`` is how long it may be believed."""
    return protocol.ATTR_OUT.pack(int(seconds), int(seconds % 1 * BILLION), 0) + attr(of, owners)


def entry_out(of: Attr, owners: Owners, name_seconds: float, attr_seconds: float) -> bytes:
    """fuse_entry_out. The inode's number is also its number for the kernel: no number is given twice, so the
    generation is 0 always."""
    head = protocol.ENTRY_OUT.pack(
        of.ino,
        0,
        int(name_seconds),
        int(attr_seconds),
        int(name_seconds % 1 * BILLION),
        int(attr_seconds % 1 * BILLION),
    )
    return head + attr(of, owners)


def no_entry_out(seconds: float) -> bytes:
    """fuse_entry_out of a name that there is not, to be believed so long."""
    return protocol.ENTRY_OUT.pack(0, 0, int(seconds), 0, int(seconds % 1 * BILLION), 0) + bytes(
        protocol.ATTR.size
    )


def statx_out(of: Attr, owners: Owners, seconds: float) -> bytes:
    """fuse_statx_out, without a time of birth: nobody has written that down."""
    return protocol.STATX_OUT.pack(
        int(seconds),
        int(seconds % 1 * BILLION),
        0,
        STATX_BASIC_STATS,
        BLOCK_BYTES,
        0,
        of.nlink,
        owners.uid(of.uid),
        owners.gid(of.gid),
        of.mode,
        of.ino,
        of.size,
        -(-of.stored_bytes // 512),
        0,
        *divmod(of.atime, BILLION),
        0,
        0,
        *divmod(of.ctime, BILLION),
        *divmod(of.mtime, BILLION),
        os.major(of.rdev),
        os.minor(of.rdev),
        0,
        0,
    )


def statfs_out(space: Statfs) -> bytes:
    """fuse_kstatfs."""
    free = space.free_bytes // BLOCK_BYTES
    return protocol.STATFS_OUT.pack(
        space.total_bytes // BLOCK_BYTES,
        free,
        free,
        FREE_INODES,
        FREE_INODES - space.inodes,
        BLOCK_BYTES,
        255,
        BLOCK_BYTES,
        0,
    )
