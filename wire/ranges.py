"""What an owner has of a file after he has locked or freed a part of it: fcntl(2), "Record locks".

Lists of ranges are in order, and of one owner no two overlap. The lock server keeps such lists of all owners,
a mount of its own.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from wire.messages.lock import Range

WHOLE = 2**63 - 1
"""The last byte that a range can have: with 0 as the first, all of the file."""


def overlap(one: Range, other: Range) -> bool:
    """Whether they have a byte in common."""
    return one.first <= other.last and other.first <= one.last


def without(mine: Iterable[Range], freed: Range) -> list[Range]:
    """What an owner has left of ``mine`` without the bytes of ``freed``, in order."""
    left: list[Range] = []
    for range in mine:
        if not overlap(range, freed):
            left.append(range)
            continue
        if range.first < freed.first:
            left.append(replace(range, last=freed.first - 1))
        if range.last > freed.last:
            left.append(replace(range, first=freed.last + 1))
    return in_order(left)


def with_range(mine: Iterable[Range], put: Range) -> list[Range]:
    """``mine`` with ``put`` in place of what the owner had of its bytes, in order; neighbours that are alike
    become one."""
    return merged(in_order([*without(mine, put), put]))


def merged(mine: Iterable[Range]) -> list[Range]:
    """One owner's ranges, which are in order, with neighbours that are alike made one."""
    found: list[Range] = []
    for range in mine:
        if found and _are_one(found[-1], range):
            found[-1] = replace(found[-1], last=range.last)
        else:
            found.append(range)
    return found


def _are_one(lower: Range, upper: Range) -> bool:
    alike = lower.is_exclusive == upper.is_exclusive and lower.pid == upper.pid
    return alike and lower.last + 1 == upper.first


def in_order(ranges: Iterable[Range]) -> list[Range]:
    """By their first bytes."""
    return sorted(ranges, key=lambda range: range.first)
