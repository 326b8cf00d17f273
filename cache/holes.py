"""Where a local copy has data and where holes, also of what has not been fetched."""

import os

from cache.chunks import ChunkMap
from cache.sparse import SparseFile
from wire.limits import CHUNK_BYTES


def next_place(chunks: ChunkMap, file: SparseFile, size: int, offset: int, whence: int) -> int:
    """The next data (``os.SEEK_DATA``) or hole (``os.SEEK_HOLE``) from ``offset`` on; ``size`` if there is
    none before it. Raises NeedsManifest.

    Where chunks are ready the file's own holes count. A chunk that is still to be fetched is data as far
    as it is long, and a hole from there on.
    """
    while offset < size:
        index = offset // CHUNK_BYTES
        is_ready, end = chunks.ready.stretch(index)
        if is_ready:
            border, found = end * CHUNK_BYTES, file.seek(offset, whence)
        else:
            border, found = (index + 1) * CHUNK_BYTES, _in_chunk(chunks, index, offset, whence)
        if found is not None and found < border:
            return min(found, size)
        offset = border
    return size


def _in_chunk(chunks: ChunkMap, index: int, offset: int, whence: int) -> int | None:
    chunk = chunks.chunk_at(index)
    assert chunk is not None, "what is not ready has a place in the manifest"
    data_end = index * CHUNK_BYTES + chunk.size
    if whence == os.SEEK_HOLE:
        return max(offset, data_end)
    return offset if offset < data_end else None
