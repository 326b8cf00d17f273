"""Completing: of a file that was read in part, the rest is fetched when it is closed.

The kernel serves a file itself only if the local copy has all of it (cache.lending, rule 5). Who reads a part
of a file today has it open again tomorrow: that open shall find a complete copy. So this begins where an open
could not be passed on for that one reason, and something was read through it. It is a guess, which must cost
nobody anything:

* one file at a time, ``PARALLEL`` chunks of it, and none is begun while programs wait for chunks of theirs or
  are run ahead of (``Demand``);
* of a large file the rest is fetched only if most of it is here (``is_worth_it``), and no copy takes much of
  the cache: what it drives out was used by somebody;
* it ends when the copy moves to another version, when the file has lost its last name, when somebody wants
  the copies gone, and at the first failure. Nothing is tried again, until the file is read again.

A file that is worked on has a node as if it were open; one that waits has none. Locks: the demand's is last
of all, and nothing is called under it.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from cache.copies import LocalCopy
from mount.node_table import NodeTable
from mount.nodes import Handle, Node
from mount.reading import Reader
from wire.errors import Unavailable
from wire.limits import CHUNK_BYTES
from wire.messages.common import Caller
from wire.messages.directory import Attr

log = logging.getLogger(__name__)

PARALLEL = 2
"""Chunks under way at the same time: programs always find other threads to download with."""

SMALL_BYTES = 64 * 1024 * 1024
"""Up to this size a file is fetched whole, however little of it was read."""

REST_BYTES_MAX = 256 * 1024 * 1024
"""The most that is fetched of a larger one, and never more than what is here already."""

CACHE_SHARE = 8
"""No file that takes more than this part of the cache."""

WAITING_MAX = 64
"""Files that wait for their turn. Beyond that the one that was closed longest ago is given up."""


@dataclass(frozen=True)
class _Wanted:
    """A file, as it was when it was closed, and for whom it was open."""

    attr: Attr
    version: int
    who: Caller | None


class Completer:
    """The thread that completes the copies of a mount; ``start`` and ``close``. ``unpin`` gives back what
    ``NodeTable.pin`` has given. ``cache_bytes`` is the cache's limit."""

    def __init__(
        self, table: NodeTable, reader: Reader, unpin: Callable[[Node], None], cache_bytes: int
    ) -> None:
        self._table = table
        self._reader = reader
        self._unpin = unpin
        self._cache_bytes = cache_bytes
        self._demand = reader.demand
        self._waiting: OrderedDict[int, _Wanted] = OrderedDict()
        self._current: _Wanted | None = None
        """What is worked on, until it is given up."""
        self._is_working = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="completing", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends it at once: nothing is waited for."""
        with self._demand.changed:
            self._stopping = True
        self.give_up()
        self._thread.join()

    def give_up(self) -> None:
        """Forgets all that is to be completed. From the return on no copy is open for it."""
        with self._demand.changed:
            self._waiting.clear()
            self._current = None
            self._demand.changed.notify_all()
            self._demand.changed.wait_for(lambda: not self._is_working)

    def closed(self, handle: Handle) -> None:
        """To be told of each handle while its node is still pinned."""
        node = handle.node
        if not handle.is_incomplete or not handle.next_read or not self._is_worth_it(node.copy):
            return
        with self._demand.changed:
            self._waiting[node.ino] = _Wanted(node.attr, node.copy.version, handle.caller)
            self._waiting.move_to_end(node.ino)
            if len(self._waiting) > WAITING_MAX:
                self._waiting.popitem(last=False)
            self._demand.changed.notify_all()

    def _is_worth_it(self, copy: LocalCopy) -> bool:
        return is_worth_it(copy.size, copy.lacking * CHUNK_BYTES, self._cache_bytes)

    def _run(self) -> None:
        while (wanted := self._next()) is not None:
            try:
                self._complete(wanted)
            except OSError as error:
                log.info("inode %d is not completed: %s", wanted.attr.ino, error)
                if isinstance(error, Unavailable):  # it would be the same with the others
                    with self._demand.changed:
                        self._waiting.clear()
            except Exception:
                log.exception("inode %d is not completed", wanted.attr.ino)
            finally:
                with self._demand.changed:
                    self._is_working = False
                    self._demand.changed.notify_all()

    def _next(self) -> _Wanted | None:
        """What was closed last; None at the end."""
        with self._demand.changed:
            self._demand.changed.wait_for(lambda: self._waiting or self._stopping)
            if self._stopping:
                return None
            _, self._current = self._waiting.popitem()
            self._is_working = True
            return self._current

    def _complete(self, wanted: _Wanted) -> None:
        node = self._table.pin(wanted.attr)
        try:
            while self._may_go_on(node, wanted):
                chunks = self._reader.fetch_some(node, PARALLEL, wanted.who)
                if not chunks:
                    log.debug("inode %d is complete", node.ino)
                    return
                self._wait_for(chunks, wanted)
        finally:
            self._unpin(node)

    def _may_go_on(self, node: Node, wanted: _Wanted) -> bool:
        """Waits until no program needs what this would take."""
        with self._demand.changed:
            self._demand.changed.wait_for(lambda: not self._demand.count or self._current is not wanted)
            is_wanted = self._current is wanted
        return is_wanted and node.copy.version == wanted.version and node.attr.nlink > 0

    def _wait_for(self, chunks: list[Future[bool]], wanted: _Wanted) -> None:
        """Until they are here, or nobody wants them any more: then who has asked for them besides gets
        them, and a copy that is closed takes none. Raises what the last replica said."""
        for chunk in chunks:
            chunk.add_done_callback(self._note_done)
        with self._demand.changed:
            self._demand.changed.wait_for(
                lambda: self._current is not wanted or all(chunk.done() for chunk in chunks)
            )
        for chunk in chunks:
            if chunk.done() and not chunk.cancelled():
                chunk.result()

    def _note_done(self, _: Future[bool]) -> None:
        with self._demand.changed:
            self._demand.changed.notify_all()


def is_worth_it(size: int, lacking: int, cache_bytes: int) -> bool:
    """Whether a file of ``size`` bytes, of which ``lacking`` are not here, shall be completed in a cache of
    ``cache_bytes``."""
    if not lacking or size * CACHE_SHARE > cache_bytes:
        return False
    return size <= SMALL_BYTES or lacking <= min(REST_BYTES_MAX, size // 2)
