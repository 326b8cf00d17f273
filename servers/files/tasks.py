"""What the directory asked this server to do, and what is to be reported about it.

A task may be named again until its report has arrived: one that is under way is not begun twice, and
one that was done is done again without harm. What could not be done is not reported; the directory
asks again. A report is kept until a heartbeat that carried it was answered.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from clients.files import ChunkClient
from servers.files.store import ChunkStore
from wire.messages.directory import CopyTask, Tasks

log = logging.getLogger(__name__)

WORKERS = 4
REPORT_MAX = 20000
"""The longest list of a heartbeat (wire.messages.directory)."""


class Work:
    """Carries tasks out in threads of its own; calls ``done`` when there is something to report."""

    def __init__(self, store: ChunkStore, peers: ChunkClient, done: Callable[[], None]) -> None:
        self._store = store
        self._peers = peers
        self._done = done
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="task")
        self._lock = threading.Lock()
        self._under_way: set[bytes] = set()
        # Reports in order, each once: dicts are ordered sets here.
        self._deleted: dict[bytes, None] = {}
        self._copied: dict[bytes, None] = {}
        self._missing: dict[bytes, None] = {}

    def close(self) -> None:
        """Drops what was not begun and waits for the rest."""
        self._workers.shutdown(cancel_futures=True)

    def take(self, tasks: Tasks) -> None:
        """Begins what is not under way."""
        for chunk_id in tasks.delete:
            self._begin(chunk_id, partial(self._delete, chunk_id))
        for task in tasks.copy:
            self._begin(task.chunk, partial(self._copy, task))

    def lost(self, chunk_id: bytes) -> None:
        """Reports a chunk that the server has no more."""
        self._report(self._missing, chunk_id)

    def gone(self, chunk_ids: Iterable[bytes]) -> None:
        """Reports chunks that were deleted, perhaps once more."""
        for chunk_id in chunk_ids:
            self._report(self._deleted, chunk_id)

    def reports(self) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """What was deleted, copied and lost and is not confirmed yet, as far as it is true still: a chunk
        may have been copied and deleted since the last report, and only the later word may be said."""
        with self._lock:
            deleted, copied, missing = (
                list(some)[:REPORT_MAX] for some in (self._deleted, self._copied, self._missing)
            )
        here = self._store.present([*deleted, *copied, *missing])
        _forget(self._lock, self._deleted, here)
        _forget(self._lock, self._copied, set(copied) - here)
        _forget(self._lock, self._missing, here)
        return (
            [chunk_id for chunk_id in deleted if chunk_id not in here],
            [chunk_id for chunk_id in copied if chunk_id in here],
            [chunk_id for chunk_id in missing if chunk_id not in here],
        )

    def confirmed(self, deleted: Iterable[bytes], copied: Iterable[bytes], missing: Iterable[bytes]) -> None:
        """These reports have arrived."""
        _forget(self._lock, self._deleted, deleted)
        _forget(self._lock, self._copied, copied)
        _forget(self._lock, self._missing, missing)

    def _begin(self, chunk_id: bytes, run: Callable[[], None]) -> None:
        with self._lock:
            if chunk_id in self._under_way:
                return
            self._under_way.add(chunk_id)

        def guarded() -> None:
            try:
                run()
            except OSError as error:
                log.info("a task for chunk %s failed: %s", chunk_id.hex(), error)
            except Exception:
                log.exception("a task for chunk %s failed unforeseen", chunk_id.hex())
            finally:
                with self._lock:
                    self._under_way.discard(chunk_id)

        self._workers.submit(guarded)

    def _delete(self, chunk_id: bytes) -> None:
        self._store.delete(chunk_id)
        self._report(self._deleted, chunk_id)

    def _copy(self, task: CopyTask) -> None:
        if not self._store.has(task.chunk):
            self._store.put(task.chunk, self._peers.get(task.sources, task.chunk))
        self._report(self._copied, task.chunk)

    def _report(self, reports: dict[bytes, None], chunk_id: bytes) -> None:
        with self._lock:
            reports[chunk_id] = None
        self._done()


def _forget(lock: threading.Lock, reports: dict[bytes, None], chunk_ids: Iterable[bytes]) -> None:
    with lock:
        for chunk_id in chunk_ids:
            reports.pop(chunk_id, None)
