"""What the kernel says of a program's lock, and how the lock server has it."""

import fcntl

from wire.messages.lock import Range

LAST_BYTE = 2**63 - 1
"""OFFSET_MAX of the kernel: to the end of the file, wherever that will be."""

_SIGN = 1 << 63


def range_of(owner: int, first: int, last: int, kind: int, pid: int, *, is_flock: bool) -> Range:
    """A lock of that ``kind`` (F_RDLCK, F_WRLCK; for what is freed F_UNLCK)."""
    return Range(is_flock, signed(owner), first, last, kind == fcntl.F_WRLCK, pid)


def signed(owner: int) -> int:
    """The kernel's number of an owner has 64 bits; on the wire they have a sign."""
    return (owner ^ _SIGN) - _SIGN


def kind_of(found: Range) -> int:
    """F_RDLCK or F_WRLCK."""
    return fcntl.F_WRLCK if found.is_exclusive else fcntl.F_RDLCK
