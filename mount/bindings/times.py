"""Which moments can be stored: nanoseconds in 64 bits, 1677 to 2262."""

TIME_MIN, TIME_MAX = -(2**63), 2**63 - 1


def storable(nanoseconds: int) -> int:
    """What cannot be stored becomes the last moment that can, as on disks (timestamp_truncate() of the
    kernel's fs/inode.c)."""
    return max(TIME_MIN, min(nanoseconds, TIME_MAX))
