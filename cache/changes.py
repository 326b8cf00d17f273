"""What was changed in a local copy and is not committed. Pure: no file, no index.

A snapshot divides the changes: what it covers is *frozen*; what is written afterwards is *fresh*, also
where it was frozen before. When the snapshot has become a version, its chunks are clean unless they
are fresh. There is at most one snapshot that can still become a version: a new one covers what an
older one did, and none may be made while a commit is under way.
"""

from dataclasses import dataclass

from cache.index import DirtyRecord, PendingRecord
from cache.indices import END, IndexSet
from wire.chunking import chunk_count


@dataclass(frozen=True)
class Dirty:
    """What a commit would send: of version ``base`` the chunks that begin below ``keep_size``, ``chunks``
    (indices, sorted) changed, ``size`` bytes in all."""

    generation: int
    base: int
    size: int
    keep_size: int
    chunks: list[int]


@dataclass(frozen=True)
class Pending:
    """A commit that was begun and not heard of: ``chunk_ids`` are the ids and sizes under which its chunks
    were stored, None for a hole. ``later_changes``: something was changed after its snapshot."""

    commit_id: bytes
    chunk_ids: dict[int, tuple[bytes, int] | None]
    later_changes: bool


class Changes:
    """The changes of one copy since its base version. Not thread-safe."""

    def __init__(self, base_size: int = 0) -> None:
        self.generation = 0
        """The number of the last snapshot."""
        self.base_size = base_size
        self.keep_size = base_size
        """The smallest size since the base."""
        self.keep_since = base_size
        """The smallest size since the snapshot."""
        self.frozen = IndexSet()
        self.fresh = IndexSet()
        self.pending: PendingRecord | None = None

    @property
    def dirty(self) -> IndexSet:
        """All dirty chunks, as a set of its own."""
        both = self.frozen.copy()
        both.update(self.fresh)
        return both

    def any(self, size: int) -> bool:
        """Whether a copy of ``size`` bytes differs from its base."""
        return bool(self.fresh or self.frozen) or self.keep_size < self.base_size or size != self.base_size

    def limit(self, size: int) -> None:
        """The copy was cut to ``size`` bytes."""
        self.keep_size = min(self.keep_size, size)
        self.keep_since = min(self.keep_since, size)
        for chunks in (self.fresh, self.frozen):
            chunks.remove(chunk_count(size), END)

    def freeze(self, base: int, size: int, chunks_max: int) -> Dirty:
        """A snapshot of the first ``chunks_max`` dirty chunks. Raises ValueError if a commit is under way.

        The chunk through which the copy was cut is always one of them: the base's has more than is to be
        kept, and would show it if the file grew again.
        """
        if self.pending is not None:
            raise ValueError("a commit is under way")
        self.frozen.update(self.fresh)
        self.fresh = IndexSet()
        self.keep_since = size
        self.generation += 1
        chunks: list[int] = []
        for index in self.frozen:
            if index >= chunk_count(size) or len(chunks) == chunks_max:
                break
            chunks.append(index)
        last_kept = chunk_count(self.keep_size) - 1
        if self.keep_size < self.base_size and last_kept in self.frozen and chunks[-1] < last_kept:
            chunks[-1] = last_kept
        return Dirty(self.generation, base, size, self.keep_size, chunks)

    def check(self, snapshot: Dirty) -> None:
        """Raises ValueError for a snapshot that a later one has replaced."""
        if snapshot.generation != self.generation:
            raise ValueError("this snapshot was replaced by a later one")

    def settle(self) -> list[tuple[int, bytes, int]]:
        """The commit that is under way has become the base. Returns which of its chunks (not holes) the copy
        still has unchanged: index, id, size. Raises ValueError if none was begun."""
        sent = self.pending
        if sent is None:
            raise ValueError("no commit was begun")
        count = chunk_count(self.keep_since)
        clean = [
            chunk for chunk in sent.chunks if chunk[1] and chunk[0] not in self.fresh and chunk[0] < count
        ]
        for index, _, _ in sent.chunks:
            self.frozen.remove(index)
        self.base_size = sent.size
        self.keep_size = self.keep_since = min(sent.size, self.keep_since)
        self.pending = None
        return clean

    def waiting(self, size: int) -> Pending | None:
        """The commit that is under way."""
        record = self.pending
        if record is None:
            return None
        chunk_ids = {
            index: (chunk_id, length) if chunk_id else None for index, chunk_id, length in record.chunks
        }
        later = bool(self.fresh) or size != record.size or self.keep_since < record.size
        return Pending(record.commit_id, chunk_ids, later)

    def record(
        self, base: int, size: int, exact: bool, origin: tuple[int, bytes] | None, past_us: bool
    ) -> DirtyRecord:
        """What is stored."""
        return DirtyRecord(
            base,
            self.base_size,
            size,
            exact,
            self.keep_size,
            self.keep_since,
            self.frozen.edges,
            self.fresh.edges,
            *(origin or (0, b"")),
            self.pending,
            past_us,
        )

    @classmethod
    def restored(cls, record: DirtyRecord, size: int) -> "Changes":
        """As they were recorded, for a copy that has ``size`` bytes now."""
        changes = cls(record.base_size)
        changes.keep_size, changes.keep_since = record.keep_size, record.keep_since
        changes.frozen, changes.fresh = IndexSet(record.frozen), IndexSet(record.fresh)
        for chunks in (changes.frozen, changes.fresh):
            chunks.remove(chunk_count(size), END)
        changes.pending = record.pending
        return changes
