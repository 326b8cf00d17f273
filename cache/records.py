"""The two records of a local copy: when they are written, and when they must go.

The file and its records must fit together whenever the process is killed. Two rules see to that:

1. Before the first change of a chunk, the dirty record names it. What a dirty record names is not
   believed of the clean record.
2. Before the file loses a chunk that the clean record names, that record is removed. What the file has
   gained may be missing in the record: it is fetched again.
"""

from cache.index import CleanRecord, DirtyRecord, Index


class Records:
    """One copy's. Not thread-safe. Methods raise OSError if the index fails; then nothing is stored."""

    def __init__(self, ino: int, index: Index) -> None:
        self._ino = ino
        self._index = index
        self._has_clean = False
        self.has_dirty = False
        """Whether there is a dirty record."""
        self.is_old = False
        """Whether the clean record says less than is known."""

    def load(self) -> tuple[CleanRecord | None, DirtyRecord | None]:
        """What was stored."""
        dirty = self._index.dirty(self._ino)
        # What was perhaps written past us is compared with the record: that needs not be believed.
        clean = self._index.clean(self._ino, any_era=dirty is not None and dirty.past_us)
        self._has_clean, self.has_dirty = clean is not None, dirty is not None
        return clean, dirty

    def retract(self) -> None:
        """Rule 2: the clean record goes, before the file loses anything that it names."""
        self.is_old = True
        if self._has_clean:
            self._index.forget_clean(self._ino)
            self._has_clean = False

    def drop_idle(self) -> None:
        """What was changed and changed back leaves a dirty record that says nothing."""
        if self.has_dirty:
            self.forget()

    def forget(self) -> None:
        """Nothing is claimed any more: neither what is clean nor what was changed."""
        self._index.forget([self._ino])
        self._has_clean = self.has_dirty = False
        self.is_old = True

    def save_dirty(self, dirty: DirtyRecord) -> None:
        """Rule 1."""
        self._index.put_dirty(self._ino, dirty)
        self.has_dirty = True

    def save_clean(self, clean: CleanRecord) -> None:
        """At the last close."""
        self._index.put_clean(self._ino, clean)
        self._has_clean, self.is_old = True, False

    def save_both(self, clean: CleanRecord | None, dirty: DirtyRecord | None) -> None:
        """After a commit, at once: when the dirty record goes, the clean one is believed again of the chunks
        that were committed. Without ``clean`` there is none until the last close."""
        self._index.replace(self._ino, clean, dirty)
        self._has_clean, self.has_dirty = clean is not None, dirty is not None
        self.is_old = clean is None
