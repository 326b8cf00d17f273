"""Listings in the kernel's cache: of which state of a directory they are.

A directory's listing is labelled with the ``change`` that it was begun with. It may be kept by an open that
finds the directory as of the label still: then nothing of the cache, whole or in part (fs/fuse/readdir.c of
Linux), is of another state.

* A handle that may fill the cache is *counted* until it is closed. It was opened as of the label, so what it
  adds is of that state or a later one; and after a later one, no open finds the label's any more.
* A new label is given only while nobody is counted: what others add later could be older than what the open
  has seen. As long as somebody is, a handle that is opened as of another state does not use the cache.
* The kernel drops what was in the cache before the label at the open that the label is given to. It does that
  after it has the answer. So the label is relied on from the first request through that handle on; until then
  other opens drop the pages too.
* The next worker does not know which handles fill the cache, and as of what. Each that it meets is counted,
  and takes the label away.

The kernel goes on with an offset when it has lost pages halfway: offsets last, so that is a listing still.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from mount.bindings.native.protocol import Fopen

LISTINGS_MAX = 10_000

FILLS, KEEPS = int(Fopen.CACHE_DIR), int(Fopen.CACHE_DIR | Fopen.KEEP_CACHE)
"""As numbers: to put two flags together takes a microsecond."""


@dataclass(slots=True)
class _Listing:
    """``change`` is the label, 0 for none. ``open``: counted handles. ``is_dropped``: what was in the cache
    before the label is gone."""

    change: int = 0
    open: int = 0
    is_dropped: bool = False


class Listings:
    """The labels of a mount; thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._listings: OrderedDict[int, _Listing] = OrderedDict()

    def knows(self, ino: int) -> bool:
        """Whether the kernel may have anything of the directory's listing."""
        with self._guard:
            return ino in self._listings

    def label(self, ino: int) -> int:
        """The ``change`` that the kernel's listing is of, 0 if it is of none."""
        with self._guard:
            listing = self._listings.get(ino)
            return listing.change if listing is not None and listing.is_dropped else 0

    def opened(self, ino: int, change: int) -> int:
        """The directory is opened, as of ``change``. How: with CACHE_DIR the handle is counted."""
        with self._guard:
            listing = self._get(ino)
            if listing.change != change:
                if listing.open:
                    return 0
                listing.change, listing.is_dropped = change, False
            listing.open += 1
            return KEEPS if listing.is_dropped else FILLS

    def met(self, ino: int) -> None:
        """A handle of an earlier worker: counted from now on."""
        with self._guard:
            listing = self._get(ino)
            listing.change = 0
            listing.open += 1

    def has_dropped(self, ino: int) -> None:
        """A counted handle without KEEP_CACHE is used: what was in the cache before it was opened is gone."""
        with self._guard:
            self._get(ino).is_dropped = True

    def closed(self, ino: int) -> None:
        """A counted handle is closed."""
        with self._guard:
            self._get(ino).open -= 1

    def _get(self, ino: int) -> _Listing:
        """Under guard. Those that nobody has open may be forgotten: then they have no label."""
        listing = self._listings.get(ino)
        if listing is None:
            listing = self._listings[ino] = _Listing()
        else:
            self._listings.move_to_end(ino)
        if len(self._listings) > LISTINGS_MAX:
            oldest, known = next(iter(self._listings.items()))
            if known.open:
                self._listings.move_to_end(oldest)
            else:
                del self._listings[oldest]
        return listing
