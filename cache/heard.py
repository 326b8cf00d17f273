"""What was heard of inodes, and when: by that it is told which answers to believe.

Answers may arrive in another order than they were given, and some are on their way while we hear that they
hold no more. So all that is heard has a number. A question notes the last one that there was when it was
asked, and its answer is believed only if nothing has been heard of the inode since. The order of this mount's
own changes is told by the directory's clock (``change``): of two answers that of the later change is right.
"""

from typing import NamedTuple

from cache.bounded import Bounded

EVENTS_MAX = 10_000
"""Inodes of which it is remembered when something was heard last. Questions that are older than what was
forgotten get no answer that is believed."""


class _Last(NamedTuple):
    """What was heard last of an inode: when (a number) anything, when a doubt, and the latest change."""

    number: int
    doubt: int
    change: int


class Heard:
    """Not thread-safe. ``number`` counts all that was heard."""

    def __init__(self, events_max: int = EVENTS_MAX) -> None:
        self.number = 0
        self._floor = 0  # what was asked before this was heard may be old, whatever it is about
        self._last: Bounded[int, _Last] = Bounded(events_max, self._forget)

    def nothing_since(self, ino: int, number: int) -> bool:
        """Whether an answer may be believed that was asked for when ``number`` was the last."""
        last = self._last.get(ino)
        return number >= (self._floor if last is None else last.number)

    def is_doubted_since(self, ino: int, number: int) -> bool:
        """Whether somebody else may have changed the inode after this mount has asked for a change."""
        last = self._last.get(ino)
        return (self._floor if last is None else last.doubt) > number

    def doubt(self, ino: int) -> None:
        """What was known of it may be true no more."""
        self.number += 1
        last = self._last.get(ino)
        self._last.put(ino, _Last(self.number, self.number, 0 if last is None else last.change))

    def doubt_all(self) -> None:
        """What was known of any may be true no more."""
        self.number += 1
        self._floor = self.number
        self._last.clear()

    def change(self, ino: int, change: int) -> bool:
        """This mount has changed it. False if a later change has been answered before."""
        last = self._last.get(ino) or _Last(0, self._floor, 0)
        if change < last.change:
            return False
        self.number += 1
        self._last.put(ino, _Last(self.number, last.doubt, change))
        return True

    def _forget(self, last: _Last) -> None:
        self._floor = max(self._floor, last.number)
