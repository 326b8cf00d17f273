"""A newer version of a file that programs read past this process (cache.lending), before they see it.

It is brought together in a file of its own, and only when nothing of it is missing is it written over the
file that is read. So a fetch that fails changes nothing, and the moment in which a reader sees something of
both versions is that of a local write, not of a transfer. What did not change is not touched.
"""

import os
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from cache.sparse import SparseFile
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ChunkAt

Held = dict[int, tuple[bytes, int]]
"""Chunks by their indices: id and size."""

WRITTEN_AT_ONCE = 1024 * 1024


class Successor:
    """``version``, of ``size`` bytes, of a copy that has all of version ``base``; to be used in a ``with``
    block. ``fill`` may be called by several threads at once. Methods raise OSError as the disk does."""

    def __init__(self, path: str, base: int, base_size: int, held: Held, version: int, size: int) -> None:
        """``held`` are the chunks of the base. The file at ``path`` has a name
        only for a moment: nobody needs it after this process."""
        self.base, self.version, self.size = base, version, size
        self.chunks: Held = {}
        """The chunks of the version that were learned."""
        self.wanted: list[ChunkAt] = []
        """Those of them that are to be filled in."""
        self._held = held
        self._common_size = min(base_size, size)
        self._file = SparseFile(path)
        os.unlink(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def bytes_wanted(self) -> int:
        """How much is to be filled in."""
        return sum(chunk.size for chunk in self.wanted)

    def learn(self, chunks: Iterable[ChunkAt]) -> None:
        """Takes a part of the manifest."""
        for chunk in chunks:
            self.chunks[chunk.index] = chunk.id, chunk.size
            if not self._is_held(chunk):
                self.wanted.append(chunk)

    def _is_held(self, chunk: ChunkAt) -> bool:
        held_id, _ = self._held.get(chunk.index, (b"", 0))
        return held_id == chunk.id and chunk.index * CHUNK_BYTES + chunk.size <= self._common_size

    def fill(self, chunk: ChunkAt, data: bytes) -> None:
        """Takes a wanted chunk."""
        self._file.write(chunk.index * CHUNK_BYTES, data)

    def write_over(self, file: SparseFile) -> None:
        """Makes the base's file this version's: every byte goes from the old to the new, and is never
        anything else in between."""
        for index in self._held.keys() - self.chunks.keys():
            file.punch(index * CHUNK_BYTES, CHUNK_BYTES)
        for chunk in self.wanted:
            start = chunk.index * CHUNK_BYTES
            end = min(start + chunk.size, self.size)
            for at in range(start, end, WRITTEN_AT_ONCE):
                file.write(at, self._file.read(at, min(WRITTEN_AT_ONCE, end - at)))
            file.punch(end, start + CHUNK_BYTES - end)
        file.resize(self.size)
