"""The scrub: reads every chunk again in the background, because disks forget without saying so.

A damaged chunk is set aside and told to the directory, which has it copied again from a replica.
Chunks that a request could not read, or that a client found to be others, are looked at first.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable

from servers.files.store import ChunkStore, State
from wire.chunking import CHUNK_ID_BYTES

log = logging.getLogger(__name__)

DOUBTED_MAX = 1000
_PAGE = 256
_PAUSE_SECONDS_MAX = 60.0
"""Between two chunks: a server with few is scrubbed more often than asked, which costs nothing."""


class Scrub:
    """Checks all of ``store`` once in ``seconds``; ``lost`` is told of each chunk that was set aside."""

    def __init__(self, store: ChunkStore, seconds: float, lost: Callable[[bytes], None]) -> None:
        self._store = store
        self._seconds = seconds
        self._lost = lost
        self._doubted: queue.Queue[bytes | None] = queue.Queue(DOUBTED_MAX)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scrub", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stops the thread, if it was started."""
        self._stopping.set()
        self._wake(None)
        if self._thread.is_alive():
            self._thread.join()

    def doubt(self, chunk_id: bytes) -> None:
        """Has this chunk looked at soon, if not too many are waiting. Anybody may doubt: what counts is what
        the disk says then."""
        self._wake(chunk_id)

    def _wake(self, chunk_id: bytes | None) -> None:
        with contextlib.suppress(queue.Full):
            self._doubted.put_nowait(chunk_id)

    def scrub_once(self) -> list[bytes]:
        """Checks every chunk now, and returns those that were lost."""
        lost = []
        after = b""
        while page := self._store.page(after, _PAGE):
            lost += [chunk_id for chunk_id in page if not self._is_well(chunk_id)]
            after = page[-1]
        return lost

    def _is_well(self, chunk_id: bytes) -> bool:
        """Whether the chunk is here and whole, as far as it could be seen. One that is missing was deleted
        meanwhile."""
        try:
            if self._store.set_aside_damaged(chunk_id) is not State.DAMAGED:
                return True
        except OSError as error:  # of this machine; the others must be looked at nevertheless
            log.warning("chunk %s could not be looked at: %s", chunk_id.hex(), error)
            return True
        log.warning("chunk %s is damaged; it was set aside", chunk_id.hex())
        self._lost(chunk_id)
        return False

    def _run(self) -> None:
        after = os.urandom(CHUNK_ID_BYTES)  # so that restarts do not favour the first ones
        while not self._stopping.is_set():
            try:
                after = self._scrub_page(after)
            except OSError as error:
                log.warning("the scrub pauses: %s", error)
                self._pause(_PAUSE_SECONDS_MAX)

    def _scrub_page(self, after: bytes) -> bytes:
        """Checks the page after ``after``; returns where the next one begins."""
        page = self._store.page(after, _PAGE)
        for chunk_id in page or [b""]:
            self._pause(min(self._seconds / max(self._store.count, 1), _PAUSE_SECONDS_MAX))
            if self._stopping.is_set():
                break
            if chunk_id:
                self._is_well(chunk_id)
        return page[-1] if page else b""

    def _pause(self, seconds: float) -> None:
        """Waits, and looks at doubted chunks meanwhile, at one at least if there is any: however many are
        doubted, the others have their turn. Ends early when the scrub is stopped."""
        until = time.monotonic() + seconds
        left = seconds
        while left >= 0 and not self._stopping.is_set():
            try:
                doubted = self._doubted.get(timeout=left)
            except queue.Empty:
                return
            if doubted:
                self._is_well(doubted)
            left = until - time.monotonic()
