"""Readers' handles that stay open after their close, for who opens the file next.

To open a file makes a node and a handle, and writes it down for the next worker; its close undoes all of
that. Programs open the same small files again and again only to read them. So what was opened a second time
*rests* when it is closed: for the kernel and for the next worker it is closed, in this process it is as it
was. It wakes as another open file, under the same number.

To all others here it is a file that some program has open for reading. That is never wrong, but it has a
price: local copies of open files stay, stat(2) tells of the version that is open, and a last name is taken
away differently. So a rest ends when its file is opened in any other way, is found to have another version,
or loses its last name here; when copies are to go; and when nobody has wanted it for a while. When all places
are taken they stay taken: who reads through more files than that, one after the other, again and again, finds
some of them resting rather than none.

**One number, several open files.** A call that was not answered comes once more if the worker dies, and the
number in it must still mean what it did. So who lays to rest or wakes has the turn to read
(``mount.bindings.native.turn``) until he has answered: nobody reads the open that wakes before the kernel has
the answer to the close.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from mount.node_table import NodeTable
from mount.nodes import Handle

log = logging.getLogger(__name__)

FILE_BYTES_MAX = 64 * 1024
"""What takes longer to read than to open is not worth a place."""

CACHE_SHARE = 8
"""The files that rest have no more than this part of the cache."""

REST_SECONDS = 30.0
"""Every so often those end that have rested for as long."""


class _Rest(NamedTuple):
    """``since`` on the monotonic clock; the ``room`` that is kept for the copy, in bytes."""

    handle: Handle
    since: float
    room: int


class Resting:
    """The handles that rest, one of an inode, ``places`` at most, with copies of ``bytes_max`` together;
    thread-safe. ``close_handle`` closes one for good. ``start`` before use, ``close`` afterwards."""

    def __init__(
        self, table: NodeTable, places: int, bytes_max: int, close_handle: Callable[[Handle], None]
    ) -> None:
        self._table = table
        self._places = places
        self._bytes_left = bytes_max  # under guard, as what follows
        self.close_handle = close_handle
        self._guard = threading.Lock()
        self._rests: dict[int, _Rest] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resting", daemon=True)

    def start(self) -> None:
        """Starts the thread that ends what nobody wants."""
        self._thread.start()

    def close(self) -> None:
        """Ends all rests, and the thread."""
        with self._guard:
            self._places = 0
        self._stopping.set()
        self._thread.join()
        self.end_all()

    def lay(self, handle: Handle) -> bool:
        """Instead of a close, for who has the turn. False if there is no place."""
        ino, copy = handle.node.ino, handle.node.copy
        room = max(copy.size, copy.allocated)  # a file of one byte takes a block
        with self._guard:
            if ino in self._rests or len(self._rests) >= self._places or room > self._bytes_left:
                return False
            self._table.hide(handle)
            self._rests[ino] = _Rest(handle, time.monotonic(), room)
            self._bytes_left -= room
            return True

    def peek(self, ino: int) -> Handle | None:
        """The handle of an inode that rests, as of now."""
        rest = self._rests.get(ino)
        return rest.handle if rest is not None else None

    def wake(self, handle: Handle, unique: int) -> bool:
        """Instead of an open, by the call ``unique`` of who has the turn. False if it rests no more. Raises
        OSError."""
        with self._guard:
            if self.peek(handle.node.ino) is not handle:
                return False
            self._table.show(handle, unique)
            self._take(handle.node.ino)
            return True

    def end(self, ino: int) -> None:
        """Closes what rests of an inode."""
        if ino in self._rests:
            self._end_since(ino, time.monotonic())

    def end_all(self) -> None:
        """Closes all that rests."""
        self._end_before(time.monotonic())

    def _end_before(self, then: float) -> None:
        for ino in list(self._rests):
            self._end_since(ino, then)

    def _end_since(self, ino: int, then: float) -> None:
        """Closes what rests of an inode, unless it was laid to rest later."""
        with self._guard:
            rest = self._rests.get(ino)
            if rest is None or rest.since > then:
                return
            self._take(ino)
        try:
            self.close_handle(rest.handle)
        except Exception:  # whoever ends it has something else to do
            log.exception("inode %d: a handle at rest cannot be closed", ino)

    def _take(self, ino: int) -> None:
        """Under guard: it rests no more."""
        self._bytes_left += self._rests.pop(ino).room

    def _run(self) -> None:
        while not self._stopping.wait(REST_SECONDS):
            self._end_before(time.monotonic() - REST_SECONDS)
