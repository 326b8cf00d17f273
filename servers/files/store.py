"""The chunks of one file server: a row each, and the content in the row or, if large, in a file.

What always holds:

* A row means that the content is on disk: a file is written, named and synced before its row.
* A file without a row was never acknowledged, or its database was lost. The start looks at each: one
  that fits its name gets a row (the next inventory tells whether anybody wants it), others go.
* Who names or removes a file holds the lock of its folder until the row says so too.
"""

import errno
import logging
import math
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import islice

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    bindparam,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert

from servers.database import Database, Prepared, sqlite_url
from servers.files.config import FilesConfig
from servers.files.disk import ChunkFiles
from wire.chunking import CHUNK_ID_BYTES, fits
from wire.errors import fail

log = logging.getLogger(__name__)

_IDS_MAX = 1000
"""The most ids in one statement."""

_metadata = MetaData()
_chunks = Table(
    "chunks",
    _metadata,
    Column("number", Integer, primary_key=True),
    Column("id", LargeBinary, nullable=False, unique=True),
    Column("size", Integer, nullable=False),
    Column("stored_at", Float, nullable=False),  # the last put, in seconds since the epoch
    Column("data", LargeBinary, nullable=True),  # NULL: it is a file
)
Index("chunks_sizes", _chunks.c.size)

# On the way of every put and get.
_ADD = Prepared(insert(_chunks).on_conflict_do_nothing(), ["id", "size", "stored_at", "data"])
_RENEW = Prepared(update(_chunks).where(_chunks.c.id == bindparam("of")), ["size", "stored_at", "data"])
_FIND = Prepared(select(_chunks.c.size, _chunks.c.data).where(_chunks.c.id == bindparam("of")))

# 256 times at a start.
_FILES = Prepared(
    select(_chunks.c.id).where(
        _chunks.c.id.between(bindparam("first"), bindparam("last")), _chunks.c.data.is_(None)
    )
)


class State(Enum):
    """What a look at a chunk on disk found."""

    OK = "ok"
    MISSING = "missing"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Space:
    """What the server offers."""

    total_bytes: int
    free_bytes: int


class ChunkStore:
    """The chunks below ``config.root``. Thread-safe. Raises EBUSY if another process has the root."""

    def __init__(self, config: FilesConfig) -> None:
        self._config = config
        self._files = ChunkFiles(config.root)
        self._database = Database(sqlite_url(config.root / "chunks.db"), _metadata)
        self._folders = [threading.Lock() for _ in range(256)]
        self._totals = threading.Lock()
        self._reconcile()
        with self._database.read() as connection:
            count, used = connection.execute(select(func.count(), func.sum(_chunks.c.size))).one()
        self.count: int = count
        self.used_bytes: int = used or 0

    def close(self) -> None:
        """Closes the database and lets others have the root."""
        self._database.close()
        self._files.close()

    def put(self, chunk_id: bytes, data: bytes) -> None:
        """Returns when the chunk is on disk. EBADMSG if ``data`` does not fit the id, ENOSPC if there is no
        room; then nothing is left behind. Of a chunk that is there already only the age begins again."""
        verify(chunk_id, data)
        self.put_verified(chunk_id, data)

    def put_verified(self, chunk_id: bytes, data: bytes) -> None:
        """As ``put``, after ``verify``."""
        inline = len(data) <= self._config.inline_bytes_max
        with self._folders[chunk_id[0]]:
            if not inline and self._renew_file(chunk_id, len(data)):
                return
        if self.space().free_bytes < len(data):
            raise fail(errno.ENOSPC, "the file server is full")
        if inline:
            self._record(chunk_id, len(data), data)
        else:
            self._put_file(chunk_id, data)

    def get(self, chunk_id: bytes) -> bytes:
        """The chunk's bytes, not hashed. ENOENT if it is not here, EIO if it is not as long as it was."""
        if (row := self._row(chunk_id)) is None:
            raise _no_such(chunk_id)
        return self._content(chunk_id, row, from_disk=False)

    def size(self, chunk_id: bytes) -> int:
        """How many bytes the chunk has. ENOENT if it is not here."""
        with self._database.read() as connection:
            size: int | None = connection.execute(
                select(_chunks.c.size).where(_chunks.c.id == chunk_id)
            ).scalar_one_or_none()
        if size is None:
            raise _no_such(chunk_id)
        return size

    def has(self, chunk_id: bytes) -> bool:
        """Whether the chunk is here."""
        try:
            self.size(chunk_id)
        except FileNotFoundError:
            return False
        return True

    def delete(self, chunk_id: bytes) -> bool:
        """Whether the chunk was here; when this returns it is not, also after a crash."""
        with self._folders[chunk_id[0]]:
            found = self._forget(chunk_id)
            # After a crash here the file comes back at the start, and the next inventory asks for it.
            self._files.remove(chunk_id)
        return found

    def page(self, after: bytes, limit: int) -> list[bytes]:
        """The next ids after ``after``, in order."""
        query = select(_chunks.c.id).where(_chunks.c.id > after).order_by(_chunks.c.id).limit(limit)
        with self._database.read() as connection:
            return [bytes(chunk_id) for chunk_id in connection.execute(query).scalars()]

    def present(self, chunk_ids: Iterable[bytes]) -> set[bytes]:
        """Those of ``chunk_ids`` that are here."""
        return set(self.stored_before(chunk_ids, math.inf))

    def stored_before(self, chunk_ids: Iterable[bytes], moment: float) -> list[bytes]:
        """Those of ``chunk_ids`` that are here and were last put before ``moment`` (the config's clock)."""
        found: list[bytes] = []
        ids = iter(chunk_ids)
        with self._database.read() as connection:
            while some := list(islice(ids, _IDS_MAX)):
                query = select(_chunks.c.id).where(_chunks.c.id.in_(some), _chunks.c.stored_at < moment)
                found += connection.execute(query).scalars()
        return found

    def space(self) -> Space:
        """What the disk has, less the reserve, and not more than the capacity that was set."""
        disk = os.statvfs(self._config.root)
        total = disk.f_blocks * disk.f_frsize
        free = disk.f_bavail * disk.f_frsize - self._config.reserve_bytes
        if self._config.capacity_bytes:
            total = min(total, self._config.capacity_bytes)
            free = min(free, self._config.capacity_bytes - self.used_bytes)
        return Space(total, max(free, 0))

    def check(self, chunk_id: bytes) -> State:
        """Reads the chunk from disk and hashes it. Raises OSError if something else than damage keeps it from
        being read."""
        if (row := self._row(chunk_id)) is None:
            return State.MISSING
        try:
            data = self._content(chunk_id, row, from_disk=True)
        except FileNotFoundError:
            return State.MISSING
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            log.info("chunk %s cannot be read: %s", chunk_id.hex(), error)
            return State.DAMAGED
        return State.OK if fits(chunk_id, data) else State.DAMAGED

    def set_aside_damaged(self, chunk_id: bytes) -> State:
        """As ``check``; a damaged chunk is moved to the folder ``damaged`` and is not here any more."""
        state = self.check(chunk_id)
        if state is not State.DAMAGED:
            return state
        with self._folders[chunk_id[0]]:
            state = self.check(chunk_id)  # a put may have written its row anew
            if state is State.DAMAGED:
                _, data = self._row(chunk_id) or (0, None)
                self._files.set_aside(chunk_id, data)
                self._forget(chunk_id)
        return state

    def _put_file(self, chunk_id: bytes, data: bytes) -> None:
        staged = self._files.stage(data)
        with self._folders[chunk_id[0]]:
            if self._renew_file(chunk_id, len(data)):  # another put was faster: its file was acknowledged
                self._files.drop(staged)
                return
            self._files.publish(staged, chunk_id)
            try:
                self._record(chunk_id, len(data), None)
            except OSError:
                self._files.remove(chunk_id)
                raise

    def _renew_file(self, chunk_id: bytes, size: int) -> bool:
        """With the folder's lock held: whether the chunk is a file already; then its age begins again."""
        if self._files.size(chunk_id) != size or self._row(chunk_id) != (size, None):
            return False
        self._record(chunk_id, size, None)
        return True

    def _record(self, chunk_id: bytes, size: int, data: bytes | None) -> None:
        """Makes the row, or makes it as if it were new: what a client puts again it may commit later."""
        values = {"size": size, "stored_at": self._config.clock(), "data": data}

        def change(connection: Connection) -> bool:
            if _ADD.run(connection, id=chunk_id, **values).rowcount:
                return True
            _RENEW.run(connection, of=chunk_id, **values)
            return False

        if self._database.write(change):
            with self._totals:
                self.count += 1
                self.used_bytes += size

    def _forget(self, chunk_id: bytes) -> bool:
        def change(connection: Connection) -> int | None:
            gone = delete(_chunks).where(_chunks.c.id == chunk_id).returning(_chunks.c.size)
            return connection.execute(gone).scalar_one_or_none()

        size = self._database.write(change)
        if size is None:
            return False
        with self._totals:
            self.count -= 1
            self.used_bytes -= size
        return True

    def _row(self, chunk_id: bytes) -> tuple[int, bytes | None] | None:
        """Its size, and the content if that is not a file."""
        with self._database.read() as connection:
            row = _FIND.run(connection, of=chunk_id).fetchone()
        if row is None:
            return None
        size, data = row
        return size, data

    def _content(self, chunk_id: bytes, row: tuple[int, bytes | None], *, from_disk: bool) -> bytes:
        """EIO if the disk does not give the file back whole, ENOENT if the chunk was deleted meanwhile."""
        size, data = row
        if data is not None:
            return data
        try:
            return self._files.read(chunk_id, size, from_disk=from_disk)
        except FileNotFoundError as error:
            if not self.has(chunk_id):  # it was deleted in between
                raise _no_such(chunk_id) from error
            raise fail(errno.EIO, f"the file of chunk {chunk_id.hex()} is gone") from error

    def _reconcile(self) -> None:
        """Makes rows and files agree, a folder at a time."""
        with self._database.read() as connection:
            for first_byte in range(256):
                self._reconcile_folder(
                    set(self._files.ids(first_byte)), _ids_of_files(connection, first_byte)
                )

    def _reconcile_folder(self, on_disk: set[bytes], in_rows: set[bytes]) -> None:
        for chunk_id in on_disk - in_rows:
            self._adopt(chunk_id)
        for chunk_id in in_rows - on_disk:
            log.warning("the file of chunk %s is gone; the inventory will say so", chunk_id.hex())
            gone = delete(_chunks).where(_chunks.c.id == chunk_id)
            self._database.write(partial(Connection.execute, statement=gone))

    def _adopt(self, chunk_id: bytes) -> None:
        size = self._files.size(chunk_id) or 0
        written_at = self._files.written_at(chunk_id)
        row = {"id": chunk_id, "size": size, "stored_at": written_at}

        def change(connection: Connection) -> int:
            return connection.execute(insert(_chunks).values(row).on_conflict_do_nothing()).rowcount

        adopted = fits(chunk_id, self._files.read(chunk_id, size)) and self._database.write(change)
        if adopted:
            self._files.sync(chunk_id)  # the crash may have come before its name was on disk
        else:  # it is damaged, or a row has its content
            self._files.remove(chunk_id)
        log.info("a file without a row was %s: %s", "kept" if adopted else "removed", chunk_id.hex())


def _ids_of_files(connection: Connection, first_byte: int) -> set[bytes]:
    first = bytes([first_byte])
    found = _FILES.run(connection, first=first, last=first + b"\xff" * CHUNK_ID_BYTES)
    return {chunk_id for (chunk_id,) in found.fetchall()}


def verify(chunk_id: bytes, data: bytes) -> None:
    """Raises EBADMSG if ``data`` does not fit the id."""
    if not fits(chunk_id, data):
        raise fail(errno.EBADMSG, f"these {len(data)} bytes are not chunk {chunk_id.hex()}")


def _no_such(chunk_id: bytes) -> OSError:
    return fail(errno.ENOENT, f"chunk {chunk_id.hex()} is not here")
