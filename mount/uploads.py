"""Uploads of dirty chunks: early, while a sequential writer goes on, and all that a commit needs.

An upload is of the chunk as it is when it is read. Whoever changes a chunk forgets its upload afterwards
(``Node.note_write``), so one that is still known when a snapshot is made has all that the snapshot has.
"""

from collections.abc import Iterable
from concurrent.futures import Future

from cache.copies import Dirty, LocalCopy
from mount.nodes import Node
from mount.proxy import Proxy
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ChunkChange


class Uploads:
    """Those of a mount; each chunk is uploaded once, unless it is changed or that failed."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._fail = False

    def begin_early(self, node: Node, index: int) -> None:
        """Under guard: begins to upload a chunk that a sequential writer has filled. While uploads fail, the
        commit will tell; nothing is queued that its deadline would have to wait for."""
        if not self._fail:
            self._begin(node, index, CHUNK_BYTES)

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
