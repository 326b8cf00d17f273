"""A local copy: one file's content on this machine, as far as it has been fetched or written here.

The file, the records in the index and what is in memory must fit together whenever the process is
killed. The rules, of which each method says how it keeps them:

1. Before the first change of a chunk, the dirty record names it.
2. Before the file loses a chunk that the clean record names, that record is removed. (Both: cache.records.)
3. The file has zeros wherever no chunk is ready. After a kill it may have more there, so a copy that is
   loaded is punched wherever no record names a chunk.
4. The file's length is the copy's size. Where a kill can come between the two, the record says which
   one is right (``exact``).

What holds when the kernel reads and writes the file itself, past this process: cache.lending, rules 5 to 9.
"""

from collections.abc import Callable, Mapping

from cache.changes import Changes, Dirty, Pending
from cache.chunks import ChunkMap, NeedsManifest
from cache.following import Following
from cache.holes import next_place
from cache.index import CleanRecord, DirtyRecord, Index, PendingRecord
from cache.indices import IndexSet
from cache.lending import NO_LIMIT
from wire.chunking import chunk_count, pieces
from wire.limits import CHUNK_BYTES, MANIFEST_CHUNKS_MAX
from wire.messages.directory import ChunkAt

STAMP_SECONDS = 60.0
"""How exactly the file of a copy that rests says when it was last closed."""


class LocalCopy(Following):
    """One inode's copy; made by ``CopyStore.open``. Thread-safe.

    ``version`` is the version of the base (0: there is none), ``size`` what this copy shows, changes
    included. Offsets and sizes are in bytes, chunks are named by their index. Methods that change the
    file or its records raise OSError (ENOSPC, EFBIG, EIO) and then have changed nothing, except
    that a part of the data of a ``write`` may be in place.
    """

    def __init__(
        self,
        ino: int,
        path: str,
        index: Index,
        *,
        on_close: Callable[["LocalCopy"], None],
        on_growth: Callable[[int], None],
    ) -> None:
        super().__init__(ino, path, index, on_growth)
        self.openers = 0  # the store's
        self._rests_since: float | None = None
        self._stamped_at = 0.0
        self._on_close = on_close
        try:
            self._load(*self._records.load())
            self._allocated = self._file.allocated()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """One opener less; the last one's close stores what is known and gives the descriptor back."""
        self._on_close(self)

    # Versions and what is here of them

    def adopt(self, version: int, size: int) -> None:
        """Moves to a newer version. What is held stays, unverified, until its manifest is learned. Who reads
        the file past us is left with the old one: see ``is_used_past_us``.

        Raises ValueError while dirty.
        """
        with self._lock:
            self._rescan()
            if self._changes.any(self.size):
                raise ValueError("a dirty copy cannot move to another version")
            if (version, size) == (self.version, self.size):
                return
            self._go_on_alone()
            self._records.drop_idle()
            if size < self.size:
                self._records.retract()  # rule 2
                self._forget_last(size)
            self._file.resize(size)
            self._chunks.forget_version(size)
            self._changes = Changes(size)
            self.version, self.size = version, size
            self._records.is_old = True

    def learn(self, first: int, count: int, chunks: Mapping[int, ChunkAt]) -> None:
        """Takes the manifest of this version for ``count`` chunks from ``first`` on; a missing index is a
        hole. Held chunks that it names become ready, others are given up. The caller sees to it that the
        copy has not moved to another version meanwhile."""
        with self._lock:
            end = min(first + count, chunk_count(self._changes.keep_size))
            outdated = self._chunks.learn(first, end, chunks)
            if outdated:  # then the copy is not complete, nor lent: rule 5
                self._records.retract()  # rule 2
            for index in outdated:
                self._file.punch(index * CHUNK_BYTES, CHUNK_BYTES)
            self._records.is_old = True

    def learned(self, index: int) -> bool:
        """Whether the manifest needs not be asked for at ``index``."""
        return index in self._chunks.ready or index in self._chunks.wanted

    def chunk_at(self, index: int) -> ChunkAt | None:
        """The manifest's chunk (without servers if it is here already); None for a hole and for a dirty
        chunk. Raises NeedsManifest."""
        with self._lock:
            return self._chunks.chunk_at(index)

    def missing(self, offset: int, size: int) -> list[int]:
        """The chunks of the range, within the copy's size, that must be fetched. Raises NeedsManifest."""
        end = min(offset + size, self.size)
        if offset >= end:
            return []
        with self._lock:
            return self._chunks.missing(offset // CHUNK_BYTES, chunk_count(end))

    @property
    def lacking(self) -> int:
        """How many chunks must be learned or fetched before the copy is complete."""
        with self._lock:
            gaps = self._chunks.ready.gaps(0, chunk_count(self.size))
        return sum(end - first for first, end in gaps)

    def has(self, offset: int, size: int) -> bool:
        """Whether nothing of the range, within the copy's size, must be learned or fetched first."""
        try:
            return not self.missing(offset, size)
        except NeedsManifest:
            return False

    def fill(self, index: int, chunk_id: bytes, data: bytes) -> bool:
        """Puts a fetched chunk in place. False if it is not wanted (any more)."""
        with self._lock:
            wanted = self._chunks.wanted.get(index)
            if wanted is None or wanted.id != chunk_id:
                return False
            if self._rests_since is not None or self._file.is_closed:
                return False  # fetching ahead may outlast the last close
            start = index * CHUNK_BYTES
            try:
                self._file.write(start, memoryview(data)[: max(self.size - start, 0)])
            except OSError:
                self._file.punch(start, CHUNK_BYTES)  # rule 3
                raise
            self._chunks.hold(index, chunk_id, len(data))
            self._records.is_old = True
            growth = self._measure()
        self._on_growth(growth)
        return True

    # Content

    def read(self, offset: int, size: int) -> bytes:
        """What is there; shorter at the end. The caller has seen to it that nothing is missing."""
        return self._file.read(offset, size)

    def read_into(
        self, offset: int, buffer: memoryview, before_waiting: Callable[[], None] = lambda: None
    ) -> int:
        """As ``read``, into ``buffer``; returns how many bytes. ``before_waiting`` is called before the disk
        is waited for."""
        return self._file.read_into(offset, buffer, before_waiting)

    def seek(self, offset: int, whence: int) -> int:
        """The next data (``os.SEEK_DATA``) or hole (``os.SEEK_HOLE``) from ``offset`` on; the size if
        there is none. Raises NeedsManifest."""
        with self._lock:
            return next_place(self._chunks, self._file, self.size, offset, whence)

    def chunk_bytes(self, index: int) -> bytes:
        """The content of a chunk as it is now, cut at the size; empty if there is nothing but a hole."""
        start = index * CHUNK_BYTES
        with self._lock:  # an early upload may outlast the last close
            length = min(CHUNK_BYTES, self.size - start)
            if length <= 0 or not self._file.has_data(start, length):
                return b""
            return self._file.read(start, length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Writes all of ``data``; the copy grows as needed.

        Raises ValueError if a part of a chunk is written that is not here.
        """
        if not data:
            return
        end = offset + len(data)
        index = offset // CHUNK_BYTES
        growth = 0
        with self._lock:
            if self._past_us:
                self._take_size()
            # Most writes go on in a chunk that is recorded already.
            if index == (end - 1) // CHUNK_BYTES and self._is_recorded(index, end):
                self._file.write(offset, data)
                self.size = max(self.size, end)
            else:
                self._write_pieces(offset, memoryview(data))
                growth = self._measure()
        if growth:
            self._on_growth(growth)

    def punch(self, offset: int, size: int) -> None:
        """Zeros, within the copy's size; they take no room. Raises ValueError as ``write`` does."""
        with self._lock:
            if self._past_us:
                self._take_size()
            for index, start, length in pieces(offset, max(min(size, self.size - offset), 0)):
                is_ready = index in self._chunks.ready and not self._past_us
                if is_ready and self._chunks.is_hole(index, self._is_dirty(index)):
                    continue
                at = index * CHUNK_BYTES + start
                self._check_here(index, at, at + length)
                self._mark(index, 0)
                self._file.punch(at, length)
            growth = self._measure()
        self._on_growth(growth)

    def truncate(self, size: int) -> None:
        """Cuts, or grows with zeros. Raises ValueError if the chunk that is cut in two is not here."""
        with self._lock:
            if self._past_us:
                self._take_size()
            if size < self.size:
                self._shrink(size)
            elif size > self.size:
                self._grow(size)
            growth = self._measure()
        self._on_growth(growth)

    # What is dirty, and commits

    @property
    def dirty(self) -> bool:
        """Whether the copy differs from its base."""
        return self._changes.any(self.size)

    def is_dirty(self, index: int) -> bool:
        """Whether this chunk was changed."""
        with self._lock:
            return self._is_dirty(index)

    def snapshot_dirty(self, chunks_max: int = MANIFEST_CHUNKS_MAX) -> Dirty:
        """What a commit would send now; what is changed afterwards stays dirty. With more dirty chunks than
        ``chunks_max`` the copy is still dirty when the snapshot is committed. Replaces an earlier snapshot;
        raises ValueError between ``begin_commit`` and its end."""
        with self._lock:
            return self._changes.freeze(self.version, self.size, chunks_max)

    def begin_commit(
        self, snapshot: Dirty, commit_id: bytes, chunk_ids: Mapping[int, tuple[bytes, int] | None]
    ) -> None:
        """Stores, before the commit is sent, its id and the ids and sizes of its chunks (None: a hole)."""
        with self._lock:
            self._changes.check(snapshot)
            chunks = [(index, *(chunk_ids[index] or (b"", 0))) for index in snapshot.chunks]
            before = self._changes.pending
            self._changes.pending = PendingRecord(commit_id, snapshot.size, snapshot.keep_size, chunks)
            try:
                self._save_dirty()
            except OSError:
                self._changes.pending = before
                raise

    def begin_anew(self) -> None:
        """The commit that was begun never arrived and another one is made of the same content: until it is
        begun, the record on disk is of the first."""
        with self._lock:
            self._changes.pending = None

    def pending(self) -> Pending | None:
        """The commit that was begun and neither committed nor aborted, also by an earlier process."""
        with self._lock:
            return self._changes.waiting(self.size)

    def committed(self, version: int) -> None:
        """The commit that was begun, also by an earlier process, has become ``version``. What was changed
        since stays dirty, on this new base. Raises ValueError if none was begun."""
        with self._lock:
            for index, chunk_id, size in self._changes.settle():
                self._chunks.hold(index, chunk_id, size)
            self.version = version
            # Rule 2: the old clean record was overridden by the dirty record that goes away here.
            self._save_both()

    def abort_commit(self) -> None:
        """The commit that was begun will never be; its content is dirty as before."""
        with self._lock:
            if self._changes.pending is not None:
                self._changes.pending = None
                self._save_dirty()

    def discard(self) -> None:
        """Gives up what is dirty: the copy shows its base again."""
        with self._lock:
            self._rescan()
            changes = self._changes
            if not self.must_stay:
                return
            self._records.forget()  # rules 1 and 2
            self._exact = False
            self._go_on_alone()
            self._file.resize(min(self.size, changes.base_size))
            self._file.resize(changes.base_size)
            lost = changes.dirty
            lost.add(chunk_count(changes.keep_size), chunk_count(changes.base_size))
            for first, end in lost.runs():
                self._file.punch(first * CHUNK_BYTES, (end - first) * CHUNK_BYTES)
                self._chunks.forget(first, end)
            self.size = changes.base_size
            self._chunks.cut(chunk_count(self.size))
            self._changes = Changes(self.size)
            growth = self._measure()
        self._on_growth(growth)

    def set_origin(self, parent: int, name: bytes) -> None:
        """Where the file was opened for writing: stored while the copy is dirty."""
        with self._lock:
            if self._origin != (parent, name):
                self._origin = parent, name
                if self._records.has_dirty:
                    self._save_dirty()

    def origin(self) -> tuple[int, bytes] | None:
        """The parent and name of ``set_origin``."""
        return self._origin

    # The store's

    def settle(self, seconds: float) -> None:
        """Stores what is known, stamps and closes the file: the copy must not be used any more. Raises
        OSError if the index fails: what was not stored is fetched again."""
        with self._lock:
            try:
                if self._rests_since is None:
                    self._store(seconds)
                else:
                    self._file.stamp(self._rests_since)
            finally:
                self._file.close()

    def rest(self, seconds: float) -> None:
        """Nobody has the copy, which is clean, until ``wake``: stores what is known, so that a kill loses no
        more than after ``settle``. Raises as that does."""
        with self._lock:
            if self._records.is_old or self._records.has_dirty or seconds > self._stamped_at + STAMP_SECONDS:
                self._store(seconds)
            self._rests_since = seconds

    def wake(self) -> None:
        """Somebody opens the copy again."""
        with self._lock:
            self._rests_since = None

    def give_up(self) -> None:
        """Closes the file of a copy that rests, and is to be forgotten."""
        with self._lock:
            self._file.close()

    def _store(self, seconds: float) -> None:
        """With the lock held."""
        self._rescan()
        self._measure()
        self._file.stamp(seconds)
        self._stamped_at = seconds
        if not self.must_stay and not self._past_us:
            self._records.drop_idle()
        if self._records.is_old and not self.is_empty:
            self._records.save_clean(self._clean_record())

    @property
    def must_stay(self) -> bool:
        """Whether only this copy has something: changes, or the id of a commit that was begun."""
        return self.dirty or self._changes.pending is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be lost with this copy, nor need be fetched again."""
        return not self._chunks.held and not self.must_stay

    @property
    def allocated(self) -> int:
        """The bytes on disk as they were last counted."""
        return self._allocated

    # With the lock held

    def _load(self, clean: CleanRecord | None, dirty: DirtyRecord | None) -> None:
        if dirty is None and clean is not None and self._file.size() < clean.size:
            # Rule 4: somebody has taken the file away, and this is another one.
            self._records.retract()
            clean = None
        if dirty is not None:
            self.size = dirty.size if dirty.exact else max(self._file.size(), dirty.size)
            self.version, self._exact = dirty.base, dirty.exact
            self._past_us = self._mapped = dirty.past_us
            self._changes = Changes.restored(dirty, self.size)
            self._origin = (dirty.parent, dirty.name) if dirty.parent else None
        elif clean is not None:
            self.size, self.version = clean.size, clean.version
            self._changes = Changes(self.size)
        changed = self._changes.dirty
        self._chunks = ChunkMap(self._changes.keep_size)
        if clean is not None:
            self._chunks.restore(clean, self.version, chunk_count(self._changes.keep_size), changed)
        self._chunks.ready.update(changed)
        if self._past_us:
            self._unscanned = 1
            if self._file.size() < self.size or self._exact:  # else who has it still may append just now
                self._file.resize(self.size)
            self._rescan()
        else:
            self._clear_away(changed)

    def _clear_away(self, claimed: IndexSet) -> None:
        # Rules 3 and 4.
        for index in self._chunks.held:
            claimed.add(index)
        unclaimed = [
            (first * CHUNK_BYTES, (end - first) * CHUNK_BYTES)
            for first, end in claimed.gaps(0, chunk_count(self.size))
            if self._file.has_data(first * CHUNK_BYTES, (end - first) * CHUNK_BYTES)
        ]
        if not unclaimed and self._file.size() == self.size:
            return
        if self._file.is_borrowed():  # rule 6; by whoever survived the kill
            self._file.leave(NO_LIMIT)
        self._file.resize(self.size)
        for start, length in unclaimed:
            self._file.punch(start, length)

    def _is_dirty(self, index: int) -> bool:
        return index in self._changes.fresh or index in self._changes.frozen

    def _is_recorded(self, index: int, end: int) -> bool:
        return index in self._changes.fresh and not (self._exact and end > self.size)

    def _check_here(self, index: int, start: int, end: int) -> None:
        """A chunk that is not ready may only be replaced as a whole."""
        first, last = index * CHUNK_BYTES, min((index + 1) * CHUNK_BYTES, self.size)
        if index not in self._chunks.ready and (start > first or end < last):
            raise ValueError(f"chunk {index} must be fetched before a part of it is changed")

    def _write_pieces(self, offset: int, data: memoryview) -> None:
        done = 0
        for index, _, length in pieces(offset, len(data)):
            start, end = offset + done, offset + done + length
            self._check_here(index, start, end)
            if index in self._chunks.ready:
                self._mark(index, end)
                self._file.write(start, data[done : done + length])
            else:
                self._replace(index, start, data[done : done + length])
            self.size = max(self.size, end)
            done += length

    def _replace(self, index: int, start: int, data: memoryview) -> None:
        """All of a chunk that is not ready. Once no record names it, a kill before the dirty record leaves it
        as absent as it was."""
        if index in self._chunks.held:  # unverified: an older version's, and perhaps still this one's
            self._records.retract()  # rule 2
            del self._chunks.held[index]
        try:
            self._file.write(start, data)
            self._mark(index, start + len(data))
        except OSError:
            self._file.punch(start, CHUNK_BYTES)  # rule 3
            raise

    def _mark(self, index: int, end: int) -> None:
        """Rule 1, and rule 4 for a write that makes the copy grow to ``end``."""
        if self._is_recorded(index, end):
            return
        changes = self._changes
        known = index in changes.fresh
        grows = self._exact and end > self.size
        if grows or index not in changes.frozen or changes.pending is not None:
            was_exact, self._exact = self._exact, self._exact and not grows
            changes.fresh.add(index)
            try:
                self._save_dirty()
            except OSError:
                self._exact = was_exact
                if not known:
                    changes.fresh.remove(index)
                raise
        changes.fresh.add(index)
        self._chunks.take_over(index)

    def _shrink(self, size: int) -> None:
        boundary, rest = divmod(size, CHUNK_BYTES)
        if rest:
            self._check_here(boundary, size, size)
            if not self._chunks.is_hole(boundary, self._is_dirty(boundary)):
                self._mark(boundary, 0)
        changes, old_size, was_exact = self._changes, self.size, self._exact
        before = changes.keep_size, changes.keep_since
        self.size, self._exact = size, True
        changes.keep_size, changes.keep_since = min(before[0], size), min(before[1], size)
        try:
            self._save_dirty()
        except OSError:
            self.size, self._exact = old_size, was_exact
            changes.keep_size, changes.keep_since = before
            raise
        # Rule 4: from here on the record has the file cut when it is loaded.
        self._file.resize(size)
        changes.limit(size)
        self._chunks.cut(chunk_count(size))
        if self._past_us:  # it may grow past us again: rule 7
            self._exact = False
            self._save_dirty()

    def _grow(self, size: int) -> None:
        # The length comes first: a length that the file system refuses must never be recorded.
        old_size, was_exact = self.size, self._exact
        self._file.resize(size)
        self.size, self._exact = size, False
        if was_exact or not self._records.has_dirty:
            try:
                self._save_dirty()
            except OSError:
                self.size, self._exact = old_size, was_exact
                self._file.resize(old_size)
                raise

    def _forget_last(self, size: int) -> None:
        """Gives up the held chunk that a cut at ``size`` divides."""
        index, rest = divmod(size, CHUNK_BYTES)
        if rest and index in self._chunks.held:
            del self._chunks.held[index]
            self._file.punch(index * CHUNK_BYTES, CHUNK_BYTES)
