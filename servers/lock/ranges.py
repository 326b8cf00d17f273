"""What ranges are: whose, which are in conflict, and what is left of them when others take their place.

The rules of fcntl(2) and flock(2), as fs/locks.c of Linux has them, with one addition: exclusive ranges of
two sessions are in conflict wherever they are, because a file's content is one session's to change. Pure: no
rows, no clock.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wire.errors import BadMessage
from wire.messages.lock import Range
from wire.ranges import in_order, merged, overlap


class Owner(NamedTuple):
    """Whose a range is. The same number may be two owners', one of each kind of range."""

    session: int
    is_flock: bool
    number: int


class Claim(NamedTuple):
    """A range that somebody of ``session`` has, or wants."""

    session: int
    range: Range

    @property
    def owner(self) -> Owner:
        """Whose it is."""
        return Owner(self.session, self.range.is_flock, self.range.owner)


def in_conflict(one: Claim, other: Claim) -> bool:
    """Whether not both can be had at the same time."""
    first, second = one.range, other.range
    if first.is_flock != second.is_flock or one.owner == other.owner:
        return False
    if first.is_exclusive and second.is_exclusive and one.session != other.session:
        return True
    return (first.is_exclusive or second.is_exclusive) and overlap(first, second)


def conflict_of(held: Iterable[Claim], wanted: Claim) -> Claim | None:
    """The first of ``held`` that stands against ``wanted``; one that overlaps it, if there is such."""
    conflicts = [claim for claim in held if in_conflict(claim, wanted)]
    return min(conflicts, key=lambda claim: _nearness(claim.range, wanted.range), default=None)


def _nearness(held: Range, wanted: Range) -> tuple[bool, int]:
    return not overlap(held, wanted), held.first


def of_owner(held: Iterable[Claim], owner: Owner) -> list[Range]:
    """The ranges of ``held`` that are ``owner``'s, in order."""
    return in_order(claim.range for claim in held if claim.owner == owner)


def covers(mine: Sequence[Range], wanted: Range) -> bool:
    """Whether ``mine``, one owner's ranges in order, have every byte of ``wanted``, as strong or stronger."""
    missing = wanted.first
    for range in mine:
        if range.first <= missing <= range.last and (range.is_exclusive or not wanted.is_exclusive):
            missing = range.last + 1
    return missing > wanted.last


def in_normal_form(ranges: Iterable[Range]) -> list[Range]:
    """Ranges of any owners, with neighbours of one owner that are alike made one. Raises BadMessage if two of
    one owner overlap."""
    of_owners: defaultdict[tuple[bool, int], list[Range]] = defaultdict(list)
    for range in in_order(ranges):
        mine = of_owners[range.is_flock, range.owner]
        if mine and overlap(mine[-1], range):
            raise BadMessage(f"two ranges of owner {range.owner} overlap")
        mine.append(range)
    return [range for mine in of_owners.values() for range in merged(mine)]


class Stock:
    """Many claims, in which few steps find what covers another one or stands against it."""

    def __init__(self, claims: Iterable[Claim]) -> None:
        self.claims = list(claims)
        self._of_kind: defaultdict[object, _Spans] = defaultdict(_Spans)
        for claim in sorted(self.claims, key=lambda claim: claim.range.first):
            range = claim.range
            for kind in (range.is_flock, claim.owner):
                self._of_kind[kind, False].add(range)
                if range.is_exclusive:
                    self._of_kind[kind, True].add(range)

    def covers(self, claim: Claim) -> bool:
        """Whether its owner has every byte of it, as strong or stronger."""
        return self._of_kind[claim.owner, claim.range.is_exclusive].contain(claim.range)

    def is_against(self, claim: Claim) -> bool:
        """Whether anything is in conflict with it. All that is here must be of other sessions."""
        exclusive = self._of_kind[claim.range.is_flock, True]
        if claim.range.is_exclusive:
            return bool(exclusive) or self._of_kind[claim.range.is_flock, False].touch(claim.range)
        return exclusive.touch(claim.range)


class _Spans:
    """All bytes of some ranges, which are added in order."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def add(self, range: Range) -> None:
        if self._lasts and range.first <= self._lasts[-1] + 1:
            self._lasts[-1] = max(self._lasts[-1], range.last)
        else:
            self._firsts.append(range.first)
            self._lasts.append(range.last)

    def touch(self, range: Range) -> bool:
        before = bisect_right(self._firsts, range.last)
        return before > 0 and self._lasts[before - 1] >= range.first

    def contain(self, range: Range) -> bool:
        before = bisect_right(self._firsts, range.first)
        return before > 0 and self._lasts[before - 1] >= range.last
