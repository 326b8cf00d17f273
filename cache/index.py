"""The index of a cache folder: what is known of each local copy, in rows that survive the process.

A row is written to disk (SQLite's write-ahead log) before a method returns, so it outlives a killed
process. Keys are integers and values are messages of this module: nothing here is ever pickled, and a
row that somebody planted is not unpickled either.

======  ============  =================================================================
key     value         says
======  ============  =================================================================
``0``     Mark          under which boot the folder was used, and whether it was closed
``ino``   CleanRecord   which committed chunks the file holds
``-ino``  DirtyRecord   what was changed here and is not committed; overrides the other
======  ============  =================================================================
"""

import errno
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import diskcache
import msgspec

from wire import codec
from wire.errors import BadMessage, fail

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MARK = 0


class Mark(msgspec.Struct, frozen=True):
    """Another ``era`` (a random number) disbelieves all clean records at once."""

    boot: str
    closed: bool
    era: int


class CleanRecord(msgspec.Struct, frozen=True, array_like=True):
    """The chunks that the file holds, by id: ``ids`` and ``sizes`` in the order of the indices in ``held``.

    ``verified`` (edges of an IndexSet) is where that is known to be what ``version`` has; where nothing
    is held there, the version has a hole. The rest is of earlier versions.
    """

    era: int
    version: int
    size: int
    held: list[int]
    ids: bytes
    sizes: list[int]
    verified: list[int]


class PendingRecord(msgspec.Struct, frozen=True, array_like=True):
    """A commit that was begun: what it sends of ``base``, and under which ids its chunks are stored."""

    commit_id: bytes
    size: int
    keep_size: int
    chunks: list[tuple[int, bytes, int]]
    """Index, id (empty for a hole), size."""


class DirtyRecord(msgspec.Struct, frozen=True, array_like=True):
    """See cache.changes for what the fields mean. With ``exact`` the copy has ``size`` bytes whatever the
    file's length is; without, the file may have grown since. With ``past_us`` any chunk may have been changed
    that the record does not name (see cache.lending)."""

    base: int
    base_size: int
    size: int
    exact: bool
    keep_size: int
    keep_since: int
    frozen: list[int]
    fresh: list[int]
    parent: int
    name: bytes
    pending: PendingRecord | None
    past_us: bool = False


class _Foreign(ValueError):
    """A row that this module did not write."""


class _BytesDisk(diskcache.Disk):  # type: ignore[misc]  # it has neither types nor stubs
    """Stores integers as keys and bytes as values, and reads nothing else."""

    def store(self, value: bytes, read: bool, key: Any = None) -> tuple[int, int, None, Any]:
        if not isinstance(value, bytes) or read:
            raise TypeError("only bytes are stored")
        return 0, diskcache.core.MODE_RAW, None, sqlite3.Binary(value)

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> bytes:
        if mode != diskcache.core.MODE_RAW or not isinstance(value, bytes):
            # No OSError: diskcache would take it for a missing row.
            raise _Foreign("a row of the cache's index is none of ours")
        return value

    def put(self, key: int) -> tuple[int, bool]:
        if not isinstance(key, int):
            raise TypeError("keys are integers")
        return key, True

    def get(self, key: Any, raw: bool) -> int:
        if not raw or not isinstance(key, int):
            raise _Foreign("a key of the cache's index is none of ours")
        return key

    def remove(self, file_path: str) -> None:
        """Values are never in files, whatever a row says."""


class Index:
    """Thread-safe. Raises OSError (ENOSPC, EIO) when the database fails."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / diskcache.core.DBNAME).touch(mode=0o600)
        # One writer at a time: SQLite would make the second one sleep.
        self._lock = threading.Lock()
        self._cache = diskcache.Cache(
            str(folder),
            disk=_BytesDisk,
            eviction_policy="none",
            statistics=0,
            tag_index=0,
            cull_limit=0,
            size_limit=2**62,
            disk_min_file_size=2**62,
            sqlite_auto_vacuum=0,
            sqlite_cache_size=512,
            sqlite_mmap_size=0,
            sqlite_synchronous=1,
            sqlite_wal_autocheckpoint=8000,
        )
        self.era = self._begin()

    def close(self, all_true: bool) -> None:
        """With ``all_true`` the caller has seen to it that all records are true of what is on the disk."""
        self._put(_MARK, Mark(_boot_id(), all_true, self.era))
        self._cache.close()

    def clean(self, ino: int, *, any_era: bool = False) -> CleanRecord | None:
        """The clean record, if there is one that can be believed; with ``any_era`` also if not."""
        try:
            record = self._get(ino, CleanRecord)
        except BadMessage as error:
            log.warning("inode %d: %s", ino, error.detail)
            return None
        return record if record is not None and (any_era or record.era == self.era) else None

    def dirty(self, ino: int) -> DirtyRecord | None:
        """The dirty record. Raises EIO if it is there and cannot be read: what is dirty is not given up."""
        try:
            return self._get(-ino, DirtyRecord)
        except BadMessage as error:
            raise fail(errno.EIO, f"what is dirty in inode {ino} is not known: {error.detail}") from error

    def dirty_inos(self) -> list[int]:
        """The inodes that have a dirty record."""
        found = []
        with self._guarded():
            # In the order of keys the dirty ones, being negative, come first.
            for key in self._cache.iterkeys():
                if key >= _MARK:
                    break
                found.append(-key)
        return found

    def put_clean(self, ino: int, record: CleanRecord) -> None:
        """Stores a clean record."""
        self._put(ino, record)

    def put_dirty(self, ino: int, record: DirtyRecord) -> None:
        """Stores a dirty record."""
        self._put(-ino, record)

    def forget_clean(self, ino: int) -> None:
        """Removes a clean record."""
        with self._guarded():
            self._cache.delete(ino)

    def replace(self, ino: int, clean: CleanRecord | None, dirty: DirtyRecord | None) -> None:
        """Both records at once; None removes."""
        with self._guarded(), self._cache.transact():
            for key, record in ((ino, clean), (-ino, dirty)):
                if record is None:
                    self._cache.delete(key)
                else:
                    self._cache.set(key, codec.encode(record))

    def forget(self, inos: list[int]) -> None:
        """Removes all records of these inodes, in one transaction."""
        with self._guarded(), self._cache.transact():
            for ino in inos:
                self._cache.delete(ino)
                self._cache.delete(-ino)

    def _begin(self) -> int:
        """The era of this session. What a machine that lost its power wrote last is not believed."""
        try:
            mark = self._get(_MARK, Mark)
        except BadMessage:
            mark = None
        believed = mark is not None and (mark.closed or mark.boot == _boot_id())
        era = mark.era if mark is not None and believed else int.from_bytes(os.urandom(7))
        self._put(_MARK, Mark(_boot_id(), False, era))
        return era

    def _get(self, key: int, kind: type[T]) -> T | None:
        with self._guarded():
            try:
                data = self._cache.get(key)
            except _Foreign as error:
                raise BadMessage(str(error)) from error
        return None if data is None else codec.decode(data, kind)

    def _put(self, key: int, record: msgspec.Struct) -> None:
        with self._guarded():
            self._cache.set(key, codec.encode(record))

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (sqlite3.Error, diskcache.Timeout) as error:
                self._cache.close()  # also ends a transaction that could not be committed
                full = "full" in str(error)
                number = errno.ENOSPC if full else errno.EIO
                raise fail(number, f"the cache's index failed: {error or 'it is locked'}") from error


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()
