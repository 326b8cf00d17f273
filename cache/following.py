"""A copy whose file is read past this process moves on in place (rule 9 of cache.lending)."""

from cache.changes import Changes
from cache.chunks import ChunkMap
from cache.lending import Lendable
from cache.succession import Successor


class Following(Lendable):
    """A lendable copy that brings newer versions to who reads it."""

    def is_used_past_us(self, with_writers: bool = False) -> bool:
        """Whether somebody reads the copy's file, and nobody writes it: a newer version must be brought to
        him, by ``successor`` and ``follow``. ``with_writers``: also if somebody can write it, who does so
        only while nobody else makes versions, and has written nothing that ``rescan`` has not seen."""
        with self._lock:
            return self._is_used_past_us(with_writers)

    def successor(self, version: int, size: int, *, with_writers: bool = False) -> Successor | None:
        """What a newer version is brought together in; the caller closes it. None if ``is_used_past_us`` is
        not so, or it is this version already. Raises OSError."""
        with self._lock:
            if version == self.version or not self._is_used_past_us(with_writers):
                return None
            held = dict(self._chunks.held)
            return Successor(f"{self._path}.next", self.version, self.size, held, version, size)

    def follow(self, successor: Successor, *, with_writers: bool = False) -> bool:
        """Moves to a version that was brought together. False, and nothing has happened, if the copy is not
        any more as it was then. After an OSError nothing of the old version is here either, and the borrowers
        are left with what they have."""
        with self._lock:
            if self.version != successor.base or not self._is_used_past_us(with_writers, even_by_nobody=True):
                return False
            self._records.forget()  # rules 1 and 2
            try:
                successor.write_over(self._file)
            except OSError:
                self._lose_all()
                raise
            self._chunks = ChunkMap()
            self._chunks.held.update(successor.chunks)
            self._changes = Changes(successor.size)
            self.version, self.size = successor.version, successor.size
            if self._past_us:  # rule 7
                self._save_both()
                self._file.mark()
            growth = self._measure()
        self._on_growth(growth)
        return True

    # With the lock held

    def _is_used_past_us(self, with_writers: bool, *, even_by_nobody: bool = False) -> bool:
        if not self._is_whole() or (self._past_us and not with_writers):
            return False
        return even_by_nobody or bool(self._file.is_borrowed())

    def _lose_all(self) -> None:
        """Of a file with something of two versions, which no record names. Rules 3 and 6."""
        self._chunks.held.clear()
        self._chunks.forget_version(self.size)
        try:
            self._file.leave_empty()
        except OSError:
            self._file.resize(0)
        self._file.resize(self.size)
