"""Which chunks of its version a local copy has, and where the others are. Pure: no file, no index.

An index is in one of four states:

===========  =====================================================================================
ready        the file has what is to be read: a held chunk, a hole's zeros, or content changed here
wanted       the manifest is known here, and the chunk must be fetched
unverified   a chunk of an earlier version is held; the manifest of this one is not known here
unknown      nothing is held and the manifest is not known
===========  =====================================================================================

What is beyond the end of the base is ready: it is zeros until somebody writes.
"""

from collections.abc import Mapping

from cache.index import CleanRecord
from cache.indices import END, IndexSet
from wire.chunking import CHUNK_ID_BYTES, chunk_count
from wire.messages.directory import ChunkAt


class NeedsManifest(LookupError):
    """The manifest of the copy's version must be learned at ``index`` first."""

    def __init__(self, index: int) -> None:
        super().__init__(f"the manifest is not known at chunk {index}")
        self.index = index


class ChunkMap:
    """The states of a copy's chunks. Not thread-safe."""

    def __init__(self, keep_size: int = 0) -> None:
        self.held: dict[int, tuple[bytes, int]] = {}
        """Index to the id and the size of the chunk that the file has there; never of a dirty one."""
        self.wanted: dict[int, ChunkAt] = {}
        self.ready = IndexSet((chunk_count(keep_size), END))

    def chunk_at(self, index: int) -> ChunkAt | None:
        """What the manifest says of ``index``; None for a hole and for what was changed here."""
        if index in self.wanted:
            return self.wanted[index]
        if index not in self.ready:
            raise NeedsManifest(index)
        held = self.held.get(index)
        return ChunkAt(index, held[0], held[1], []) if held else None

    def missing(self, first: int, end: int) -> list[int]:
        """The wanted indices of the range. Raises NeedsManifest."""
        found: list[int] = []
        if self.ready.covers(first, end):
            return found
        for gap, gap_end in self.ready.gaps(first, end):
            for index in range(gap, gap_end):
                if index not in self.wanted:
                    raise NeedsManifest(index)
                found.append(index)
        return found

    def learn(self, first: int, end: int, chunks: Mapping[int, ChunkAt]) -> list[int]:
        """Takes a range of the manifest. Returns the indices whose held chunk is of the past: the file must
        be punched there."""
        outdated = []
        for gap, gap_end in self.ready.gaps(first, end):
            for index in range(gap, gap_end):
                chunk, held = chunks.get(index), self.held.get(index)
                if held is not None and (chunk is None or held[0] != chunk.id):
                    del self.held[index]
                    outdated.append(index)
                    held = None
                if chunk is None or held is not None:
                    self.ready.add(index)
                else:
                    self.wanted[index] = chunk
        return outdated

    def hold(self, index: int, chunk_id: bytes, size: int) -> None:
        """The file has this chunk of the version now."""
        self.wanted.pop(index, None)
        self.held[index] = chunk_id, size
        self.ready.add(index)

    def take_over(self, index: int) -> None:
        """The content at ``index`` is this copy's own now."""
        self.wanted.pop(index, None)
        self.held.pop(index, None)
        self.ready.add(index)

    def cut(self, count: int) -> None:
        """From index ``count`` on there is nothing but zeros."""
        for chunks in (self.held, self.wanted):
            for index in _from(chunks, count):
                del chunks[index]
        self.ready.add(count, END)

    def forget_version(self, size: int) -> None:
        """Another version, of ``size`` bytes: what is held is unverified."""
        self.wanted.clear()
        self.ready = IndexSet()
        self.cut(chunk_count(size))

    def forget(self, first: int, end: int) -> None:
        """What is at these indices must be learned again."""
        self.ready.remove(first, end)

    def give_up(self, keep_size: int) -> None:
        """The file has nothing any more of a base that is kept up to ``keep_size``."""
        self.held.clear()
        self.ready = IndexSet((chunk_count(keep_size), END))

    def is_hole(self, index: int, dirty: bool) -> bool:
        """Whether there are only zeros here. Raises NeedsManifest."""
        if index in self.ready:
            return not dirty and index not in self.held
        if index not in self.wanted:
            raise NeedsManifest(index)
        return False

    def record(self, era: int, version: int, size: int, verified: IndexSet) -> CleanRecord:
        """What is stored; ``verified`` are the ready indices that are the base's own."""
        indices = sorted(self.held)
        held = IndexSet()
        for index in indices:
            held.add(index)
        ids = b"".join(self.held[index][0] for index in indices)
        sizes = [self.held[index][1] for index in indices]
        return CleanRecord(era, version, size, held.edges, ids, sizes, verified.edges)

    def restore(self, record: CleanRecord, version: int, count: int, dirty: IndexSet) -> None:
        """Takes from a record what is true of the first ``count`` chunks that are not dirty."""
        held = IndexSet(record.held)
        for place, (index, size) in enumerate(zip(held, record.sizes, strict=True)):
            if index < count and index not in dirty:
                chunk_id = record.ids[place * CHUNK_ID_BYTES : (place + 1) * CHUNK_ID_BYTES]
                self.held[index] = chunk_id, size
        if record.version == version:
            verified = IndexSet(record.verified)
            verified.remove(count, END)
            self.ready.update(verified)


def _from(chunks: Mapping[int, object], count: int) -> list[int]:
    return [index for index in chunks if index >= count]
