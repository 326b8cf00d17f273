"""Uploads of dirty chunks: early, while a sequential writer goes on, and all that a commit needs.

An upload is of the chunk as it is when it is read. Whoever changes a chunk forgets its upload afterwards
(``Node.note_write``), so one that is still known when a snapshot is made has all that the snapshot has. Of
what the kernel changes past us nobody says anything: such files are looked at now and then while they grow,
and before a snapshot each upload is compared with what is there (``Node.rescan``).
"""

import logging
import threading
from collections.abc import Iterable
from concurrent.futures import Future, wait

from cache.copies import Dirty, LocalCopy
from mount.nodes import Node
from mount.proxy import Proxy
from wire.chunking import fits
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ChunkAt, ChunkChange

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
"""How often it is looked whether a file grows that the kernel writes past us."""


class Uploads:
    """Those of a mount; each chunk is uploaded once, unless it is changed or that failed. ``start`` and
    ``close`` are for ``watch``."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._fail = False
        self._watched: set[Node] = set()
        self._guard = threading.Condition()
        self._stopping = False
        self._looks = threading.Thread(target=self._look_loop, name="early-uploads", daemon=True)

    def start(self) -> None:
        """Starts the thread that looks at growing files."""
        self._looks.start()

    def close(self) -> None:
        """Ends it."""
        with self._guard:
            self._stopping = True
            self._guard.notify_all()
        self._looks.join()

    def begin_early(self, node: Node, index: int) -> None:
        """Under guard: begins to upload a chunk that a sequential writer has filled. While uploads fail, the
        commit will tell; nothing is queued that its deadline would have to wait for."""
        if not self._fail:
            self._begin(node, index, CHUNK_BYTES)

    @staticmethod
    def is_stored(node: Node, index: int, chunk: ChunkAt) -> bool:
        """Under guard: whether a chunk has the very content of one that the directory knows; then the commit
        names that one, and nothing is uploaded."""
        data = node.copy.chunk_bytes(index)
        if len(data) != chunk.size or not fits(chunk.id, data):
            return False
        stored = node.uploaded[index] = Future()
        stored.set_result(ChunkChange(index, chunk.id, chunk.size))
        return True

    def watch(self, node: Node) -> None:
        """Has what the kernel appends to the copy uploaded early, until nobody writes it past us any more."""
        node.seen_chunks = node.copy.size // CHUNK_BYTES
        with self._guard:
            self._watched.add(node)
            self._guard.notify_all()

    def _look_loop(self) -> None:
        while True:
            with self._guard:
                self._guard.wait_for(lambda: self._watched or self._stopping)
                if self._guard.wait_for(lambda: self._stopping, LOOK_SECONDS):
                    return
                watched = list(self._watched)
            for node in watched:
                try:
                    self._look(node)
                except Exception:
                    log.exception("inode %d is not looked at any more", node.ino)
                    self._unwatch(node)

    def _look(self, node: Node) -> None:
        with node.guard:
            node.copy.look()
            filled = node.copy.size // CHUNK_BYTES
            for index in node.copy.chunks_with_data(node.seen_chunks, filled):
                self.begin_early(node, index)
            node.seen_chunks = filled
            if not node.copy.is_past_us or not node.writers:
                self._unwatch(node)

    def _unwatch(self, node: Node) -> None:
        with self._guard:
            self._watched.discard(node)

    @staticmethod
    def wait_for_early(node: Node) -> None:
        """Until what was begun early of a file that the kernel writes past us is stored, or has failed."""
        if node.copy.is_past_us:
            with node.guard:
                early = list(node.uploaded.values())
            wait(early)

    def upload_ahead(self, node: Node, indices: Iterable[int]) -> None:
        """Uploads these chunks for the commit that follows. Raises what the servers said."""
        with node.guard:
            uploads = [self._begin(node, index, CHUNK_BYTES) for index in indices]
        for upload in uploads:
            upload.result()

    def upload_all(self, node: Node, snapshot: Dirty) -> list[ChunkChange]:
        """What a commit says of the snapshot's chunks, when all are stored. Raises what the servers said."""
        lengths = {index: min(CHUNK_BYTES, snapshot.size - index * CHUNK_BYTES) for index in snapshot.chunks}
        if len(lengths) == 1 and not node.uploaded:  # a small file: another thread would only cost time
            return [self._upload(node.copy, index, length) for index, length in lengths.items()]
        with node.guard:
            uploads = {index: self._begin(node, index, length) for index, length in lengths.items()}
        try:
            return [upload.result() for upload in uploads.values()]
        except BaseException:
            for upload in uploads.values():
                upload.cancel()
            raise

    def _begin(self, node: Node, index: int, length: int) -> Future[ChunkChange]:
        """Under guard: the upload of the chunk as it is now, which may be under way or done already; of at
        most ``length`` bytes, because the file may grow before they are read."""
        known = node.uploaded.get(index)
        if known is not None and not (known.done() and (known.cancelled() or known.exception())):
            return known
        future = node.uploaded[index] = self._proxy.uploads.submit(self._upload, node.copy, index, length)
        return future

    def _upload(self, copy: LocalCopy, index: int, length: int) -> ChunkChange:
        data = copy.chunk_bytes(index)[: max(length, 0)]
        if not data:
            return ChunkChange(index)
        try:
            change = self._proxy.upload(data, index)
        except OSError:
            self._fail = True
            raise
        self._fail = False
        return change
