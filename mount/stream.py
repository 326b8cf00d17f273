"""Directory streams: how a program gets through a directory that changes meanwhile.

An entry's place is its cookie, which it has as long as it is there. So whoever goes on after a cookie is told
of what was there before and stays exactly once, whatever has come or gone meanwhile, and whoever has told the
cookies before it: readdir(3) asks for no less. Names that are made after the beginning are not told, or a
program that renames what it is told of would never come to an end.
"""

import errno
from bisect import bisect_right
from collections import deque
from collections.abc import Callable

import msgspec

from mount.names import Names
from wire.errors import fail
from wire.messages.common import Caller
from wire.messages.directory import Attr, Entry, Listing

FIRST_ENTRIES = 32
"""How many come with the beginning: most directories are short, and some are opened only for fsync(2)."""

PAGE_ENTRIES = 1000
"""How many are asked for at a time, and kept."""


class Stream:
    """A place in a directory, with at most a page of what comes next (all, if it was known). Not
    thread-safe.

    ``change`` is the directory's as of the last page: all entries that were shown since are as of it.
    """

    def __init__(
        self,
        names: Names,
        show: Callable[[Attr], Attr],
        known: Callable[[], Listing | None],
        ino: int,
        who: Caller | None,
    ) -> None:
        """``known`` tells all of the directory as it is now, if that needs no question."""
        self._names = names
        self._show = show
        self._known = known
        self._ino = ino
        self._who = who
        self._page: deque[Entry] = deque()
        self._more = True
        self._place = 0
        self._until = 0  # later names are not told; 0 while nothing was asked
        self._is_new = False
        self._mark = 0.0
        self.change = 0

    def begin(self, change: int = 0) -> bool:
        """Goes to the first entry of the directory as it is now. True if it is as of ``change`` still; then
        nothing is read ahead. Raises EACCES, and ESTALE if it is gone."""
        self._until = 0
        try:
            is_unchanged = self._ask(0, FIRST_ENTRIES, change)
        except FileNotFoundError:
            raise fail(errno.ESTALE, f"inode {self._ino} is gone") from None
        self._is_new = not is_unchanged
        return is_unchanged

    def begin_unchanged(self, change: int) -> None:
        """As ``begin``, of a directory that is known to be as of ``change``."""
        self._until = self.change = change
        self._page.clear()
        self._place, self._more, self._is_new = 0, True, False

    def rewind(self) -> None:
        """As ``begin``, unless it was begun just now and nothing newer is known."""
        if not (self._is_new and self._names.is_as_of(self._ino, self.change)):
            self.begin()

    def go_to(self, cookie: int) -> None:
        """The next entry is the first one after ``cookie``."""
        if cookie != self._place:
            self._page.clear()
            self._place, self._more, self._is_new = cookie, True, False

    def peek(self) -> Entry | None:
        """The next entry, None at the end. Where ``attr.change`` is 0, name, inode and type are all that may
        be known: so of all that has been changed here since the page came, or that is older than what is
        believed otherwise. Nobody shall believe it for longer."""
        if self._page and self._names.is_over(self._mark):
            self._page.clear()  # nobody would believe the rest; whoever asked name by name would ask long
            self._more = True
        if not self._page and self._more:
            self._ask(self._place, PAGE_ENTRIES)
        if not self._page:
            return None
        entry = self._page[0]
        return self._as_believed(entry) if entry.attr.change else entry

    def advance(self) -> None:
        """Past what ``peek`` has shown."""
        self._place = self._page.popleft().cookie
        self._is_new = False

    def _ask(self, after: int, limit: int, change: int = 0) -> bool:
        self._mark = self._names.mark()
        page = self._known_page(after, change) or self._names.page(self._ino, after, limit, change, self._who)
        self.change = page.attr.change
        self._until = self._until or self.change
        told = [entry for entry in page.entries if entry.cookie <= self._until]
        self._page = deque(told)
        self._place = after
        self._more = page.unchanged or (page.more and len(told) == len(page.entries))
        return page.unchanged

    def _known_page(self, after: int, change: int) -> Listing | None:
        """As ``Names.page``, with all that is left."""
        known = self._known()
        if known is None:
            return None
        if change == known.attr.change:
            return Listing(known.attr, 0, unchanged=True)
        first = bisect_right(known.entries, after, key=lambda entry: entry.cookie)
        return Listing(known.attr, 0, known.entries[first:])

    def _as_believed(self, entry: Entry) -> Entry:
        attr = self._names.believed_child(self._ino, entry.name)
        if attr is None or attr.ino != entry.attr.ino:
            return msgspec.structs.replace(entry, attr=msgspec.structs.replace(entry.attr, change=0))
        return msgspec.structs.replace(entry, attr=self._show(attr))
