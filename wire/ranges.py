"""What an owner has of a file after he has locked or freed a part of it: fcntl(2), "Record locks".

A list of ranges is sorted, and no two of them overlap. Both sides keep such lists: the lock server of all
owners, a mount of its own.
"""

from collections.abc import Iterable

import msgspec

from wire.messages.lock import Range


def taken(ranges: Iterable[Range], new: Range) -> list[Range]:
    """``ranges`` of one owner, and ``new`` of his in place of what he had of these bytes. What touches it and
    differs in nothing else becomes one with it."""
    first, last = new.first, new.last
    rest = []
    for old in freed(ranges, new):
        is_same = (old.is_exclusive, old.pid) == (new.is_exclusive, new.pid)
        if is_same and old.last + 1 == first:
            first = old.first
        elif is_same and last + 1 == old.first:
            last = old.last
        else:
            rest.append(old)
    return sorted([*rest, msgspec.structs.replace(new, first=first, last=last)], key=_first)


def freed(ranges: Iterable[Range], gone: Range) -> list[Range]:
    """``ranges`` of one owner without the bytes of ``gone``."""
    return [piece for old in ranges for piece in _without(old, gone)]


def overlap(one: Range, other: Range) -> bool:
    """Whether there is a byte that both lock."""
    return one.is_flock == other.is_flock and one.first <= other.last and other.first <= one.last


def _first(one: Range) -> int:
    return one.first


def _without(old: Range, gone: Range) -> list[Range]:
    if not overlap(old, gone):
        return [old]
    pieces = []
    if old.first < gone.first:
        pieces.append(msgspec.structs.replace(old, last=gone.first - 1))
    if gone.last < old.last:
        pieces.append(msgspec.structs.replace(old, first=gone.last + 1))
    return pieces
