"""Lending: the kernel reads a copy's file itself, and writes it, past this process (FUSE passthrough).

A *borrower* is whoever else has the file open or mapped: the kernel on behalf of a program, and a map
outlives the program's descriptor. Nobody counts them here: the file system knows
(``SparseFile.is_borrowed``), also after this process was killed. The rules, beside those of cache.local:

5. Only a complete copy is lent: nothing is left to be fetched into the file, nor to be learned.
6. A borrowed file loses nothing but what this mount's own programs take out of it, and what a newer version
   replaces as a whole (rule 9). Before it would lose more (a discard, a version that is not here), it is
   left to its borrowers, and the copy goes on with another file under the same path. Either that has the
   same content, and the same records are true of it; or the records go first.
7. Before a borrower may write, both records are on disk, and the dirty one says ``past_us``: any chunk may
   be changed that it does not name. As long as it says so, the clean record names all that is held, and is
   only a claim: at load, and by ``rescan``, each chunk is compared with its id. The length is the file's
   own.
8. ``past_us`` ends when nobody can write to the file any more, and after that it was looked through once
   more: when nobody has it, or all are back (``take_back``) and none of them could have a map.

Why no change is lost. A write takes the file's mark away (``SparseFile.mark``). ``rescan`` puts the mark
back *before* it looks, so what is written while it looks, or later, shows next time. What it looks for is
whether the file fits the ids, not what was written when: bytes that change after the snapshot, or after
the upload, are in no chunk under the id that was committed, so they are found dirty next time. Between a
snapshot and the record of its commit there are no ids yet to compare with: a rescan then is not the last
one. An upload reads its bytes once and hashes those, so no id names what was not uploaded. And there is a
next time: rule 8, or the next load. Maps may be written to without taking the mark away: where they are
possible (a borrower that reads and writes) each rescan looks.
"""

import itertools
import os
import threading
import time
from collections.abc import Callable

from cache.changes import Changes
from cache.chunks import ChunkMap
from cache.index import CleanRecord, DirtyRecord, Index
from cache.indices import END
from cache.records import Records
from cache.sparse import SparseFile
from wire.chunking import chunk_count, fits
from wire.limits import CHUNK_BYTES

RECORD_CHUNKS_MAX = 1024
"""A copy that holds more chunks than this stores its clean record at the last close only."""

LEND_WRITES_MAX = 64 * 1024 * 1024
"""Larger copies are not lent for writing: what was changed is found by hashing, at some 4 GB/s, so a flush
of a file in which anything was written costs 15 ms at most. One that grows while it is lent costs more."""

COPY_OVER_MAX = 64 * 1024 * 1024
"""A borrowed file that takes more is not copied when the copy moves on: what is needed again is fetched."""

NO_LIMIT = 2**62


class Lendable:
    """What a local copy is made of, and its lending. See cache.local for the state."""

    def __init__(self, ino: int, path: str, index: Index, on_growth: Callable[[int], None]) -> None:
        self.ino = ino
        self._path = path
        self.size = 0
        self.version = 0
        self._era = index.era
        self._records = Records(ino, index)
        self._on_growth = on_growth
        self._lock = threading.Lock()
        self._chunks = ChunkMap()
        self._changes = Changes()
        self._origin: tuple[int, bytes] | None = None
        self._exact = False
        self._allocated = 0
        self._is_back = True
        """Whether all that was opened for writing through lent descriptors is closed; maps may be left."""
        self._past_us = False
        self._mapped = False
        """Whether some borrower may write through a map."""
        self._unscanned = 0
        """When the last write past us was that no scan has dealt with; 0: none is known."""
        self._look_again = False
        """Whether the last scan could not tell what became of some chunk."""
        self._file = SparseFile(path)

    # Lending

    def lend(self, flags: int, *, at_any_size: bool = False) -> int | None:
        """A descriptor of the copy's file, for the kernel to serve an open with these ``flags`` (of open(2))
        from; the caller closes it. None if the copy is not complete, or too large to be written past us (but
        for ``at_any_size``), or if maps of earlier borrowers may be left: new ones would keep us from seeing
        those end.

        Who holds it, or what was opened or mapped through it, is a borrower; ``fstat`` of it tells the
        ``file_number``. Raises OSError if the index fails, or there are no descriptors left.
        """
        access = flags & os.O_ACCMODE
        writes = access != os.O_RDONLY
        with self._lock:
            if not self._can_be_lent(writes and not at_any_size):
                return None
            self._is_back = self._is_back and not writes
            if writes:
                self._begin_past_us(maps=access == os.O_RDWR)
            elif self._records.is_old and len(self._chunks.held) <= RECORD_CHUNKS_MAX:
                # The next process believes the file too, and shares it with the borrowers of this one.
                self._records.save_clean(self._clean_record())
            return self._file.reopened(writes=writes)

    def lent_before(self, *, writes: bool, maps: bool) -> None:
        """For a copy that was loaded: an earlier process has lent it, and its borrowers have it still."""
        with self._lock:
            self._is_back = self._is_back and not writes
            self._mapped = self._past_us and maps

    def take_back(self) -> bool:
        """To be called when every open for writing that was lent to is closed. What the kernel has of them
        may go a little later, and maps much later.

        True as long as there may be a map that is written through: the copy must stay open and locked until
        another call says False.
        """
        with self._lock:
            self._is_back = True
            return self._has_writing_maps()

    @property
    def file_number(self) -> int:
        """The file's own inode number. If it is not that of a borrower's file, that was left to him."""
        return self._file.number()

    def is_borrowed(self) -> bool:
        """Whether anybody else has the copy's file open or mapped."""
        with self._lock:
            return bool(self._file.is_borrowed())

    @property
    def is_past_us(self) -> bool:
        """Whether the copy may be changed by others than this process."""
        return self._past_us

    def look(self) -> int:
        """Brings ``size`` up to date, and tells when the last write past us was that no ``rescan`` has seen,
        in nanoseconds since the epoch; 0: there was none."""
        if not self._past_us:
            return 0
        with self._lock:
            if self._file.is_closed:
                return 0
            self._take_size()
            return self._file.written_at() or self._unscanned

    def chunks_with_data(self, first: int, end: int) -> list[int]:
        """Which of these chunks the file has anything of but holes: there may be very many without."""
        with self._lock:
            if self._file.is_closed:
                return []
            found = self._file.chunks_with_data(CHUNK_BYTES, first)
            return list(itertools.takewhile(lambda index: index < end, found))

    def rescan(self) -> int:
        """Finds out what was changed past us: ``size`` and what is dirty are true as of now. Returns when
        that was last written, 0 if nothing was. Raises OSError; the next one then finds the same."""
        if not self._past_us:
            return 0
        with self._lock:
            written_at = self._rescan()
            growth = self._measure()
        self._on_growth(growth)
        return written_at

    def take_home(self) -> int:
        """As ``rescan``, and from here on nobody changes the copy past us: what borrowers still write goes
        into a file that is theirs alone."""
        if not self._past_us:
            return 0
        with self._lock:
            if self._file.is_borrowed():
                self._unscanned = self._file.written_at() or self._unscanned
                self._file.leave(NO_LIMIT)
                self._look_again = True
                self._file.mark()
            written_at = self._rescan()
            growth = self._measure()
        self._on_growth(growth)
        return written_at

    # With the lock held

    def _can_be_lent(self, writes: bool) -> bool:
        small = not writes or self._past_us or self.size <= LEND_WRITES_MAX
        if not self._is_complete() or not small or self._file.is_closed or self._file.is_borrowed() is None:
            return False
        return not (self._is_back and self._has_writing_maps())

    def _is_complete(self) -> bool:
        """Rule 5."""
        count = chunk_count(self.size)
        return not count or self._chunks.ready.covers(0, count)

    def _is_whole(self) -> bool:
        """All of its version and nothing else."""
        is_changed = self._changes.any(self.size) or self._changes.pending is not None
        return self._is_complete() and not is_changed and not self._file.is_closed

    def _has_writing_maps(self) -> bool:
        """Who only reads is no reason to wait: he may have the file open for days."""
        if not self._past_us or not self._mapped or not self._file.is_borrowed():
            return False
        return self._file.is_written_by_others()

    def _begin_past_us(self, maps: bool) -> None:
        """Rule 7."""
        if not self._past_us:
            was_exact = self._exact
            self._past_us, self._exact, self._unscanned = True, False, time.time_ns()
            try:
                self._save_both()
            except OSError:
                self._past_us, self._exact = False, was_exact
                raise
            self._file.mark()
            self._unscanned = 0
        self._mapped = self._mapped or maps

    def _rescan(self) -> int:
        if not self._past_us or self._file.is_closed:
            return 0
        # First: if nobody has it for writing now, nobody writes after the scan. Who could not have a map and
        # is back cannot write any more either, though the kernel may still be about to close it.
        borrowed = self._has_writing_maps() if self._is_back else self._file.is_borrowed()
        self._unscanned = self._file.written_at() or self._unscanned
        if self._unscanned or self._mapped or self._look_again:
            self._file.mark()
            self._take_size()
            self._note_changed(self._changed_past_us())
            # Of a snapshot that is being uploaded nobody knows yet which bytes it has got.
            sent = self._sent()
            self._look_again = any(index not in sent for index in self._changes.frozen)
        written_at, self._unscanned = self._unscanned, 0
        if not borrowed and not self._look_again:
            self._end_past_us()
        return written_at

    def _end_past_us(self) -> None:
        """Rule 8. The dirty record names all that is changed now, or goes."""
        self._past_us = False
        try:
            self._save_both()
        except OSError:
            self._past_us = True
            raise
        self._mapped = False

    def _take_size(self) -> None:
        self.size = max(self.size, self._file.size())

    def _changed_past_us(self) -> list[int]:
        """The chunks that do not fit what is known of them, of those that are not known to be dirty."""
        fresh, frozen, sent = self._changes.fresh, self._changes.frozen, self._sent()
        expected = {**self._chunks.held, **sent}
        return [
            index
            for index in sorted(expected.keys() | set(self._file.chunks_with_data(CHUNK_BYTES)))
            if index < chunk_count(self.size)
            and index not in fresh
            and (index in sent or index not in frozen)
            and not self._fits(index, *expected.get(index, (b"", 0)))
        ]

    def _sent(self) -> dict[int, tuple[bytes, int]]:
        """What the commit that is under way says of its chunks; holes have an empty id."""
        pending = self._changes.pending
        return {index: (chunk_id, size) for index, chunk_id, size in pending.chunks} if pending else {}

    def _fits(self, index: int, chunk_id: bytes, size: int) -> bool:
        start = index * CHUNK_BYTES
        data = memoryview(self._file.read(start, min(CHUNK_BYTES, self.size - start)))
        if chunk_id and not fits(chunk_id, data[:size]):
            return False
        return data[size:] == bytes(max(len(data) - size, 0))

    def _note_changed(self, chunks: list[int]) -> None:
        # No record needs to name them: as long as it says ``past_us`` they are found again.
        if chunks:
            self._unscanned = self._unscanned or time.time_ns()
        for index in chunks:
            self._changes.fresh.add(index)
            self._chunks.take_over(index)

    def _go_on_alone(self) -> None:
        """Rule 6: from here on the file may lose anything. What was changed past us and not found is gone."""
        if self._file.is_borrowed() and not self._file.leave(COPY_OVER_MAX):
            self._records.forget()
            self._chunks.give_up(self._changes.keep_size)
            self._file.leave_empty()
        self._past_us = self._mapped = False

    # Records

    def _save_dirty(self) -> None:
        self._records.save_dirty(self._dirty_record())

    def _save_both(self) -> None:
        still_dirty = self._changes.any(self.size)
        must_stay = still_dirty or self._changes.pending is not None or self._past_us
        self._exact = self._exact and still_dirty
        small = self._past_us or len(self._chunks.held) <= RECORD_CHUNKS_MAX
        self._records.save_both(
            self._clean_record() if small else None, self._dirty_record() if must_stay else None
        )

    def _dirty_record(self) -> DirtyRecord:
        return self._changes.record(self.version, self.size, self._exact, self._origin, self._past_us)

    def _clean_record(self) -> CleanRecord:
        changes = self._changes
        verified = self._chunks.ready.copy()
        verified.remove(chunk_count(changes.keep_size), END)
        verified.difference_update(changes.dirty)
        return self._chunks.record(self._era, self.version, changes.base_size, verified)

    def _measure(self) -> int:
        before, self._allocated = self._allocated, self._file.allocated()
        return self._allocated - before
