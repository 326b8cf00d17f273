"""The directory's storage with a clock that stands and file servers that are only spoken for."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, insert, select, update

from servers.database import Database, sqlite_url
from servers.directory import chunks
from servers.directory.config import DirectoryConfig
from servers.directory.schema import chunks as chunk_rows
from servers.directory.schema import extents, inodes, metadata, versions
from servers.directory.storage import Storage
from servers.keys import ServiceKeys
from wire.messages.directory import (
    Heartbeat,
    Register,
    ServerState,
    Tasks,
)
from wire.tickets import Receipt

GIB = 2**30


START = 1_700_000_000.0


REPAIR_DELAY = 60.0


GRACE = 3600.0


DAY = 86400.0


def new_id() -> bytes:
    return os.urandom(48)


class World:
    """A storage over a real database, its file servers, and a clock that stands still until told."""

    def __init__(self, path: Path, replicas: int = 2, keys: ServiceKeys | None = None) -> None:
        self.now = START
        self.config = DirectoryConfig(
            keys or ServiceKeys("test", {}),
            sqlite_url(path / "directory.db"),
            replicas=replicas,
            repair_delay_seconds=REPAIR_DELAY,
            grace_seconds=GRACE,
            retention_seconds=DAY,
            clock_ns=lambda: int(self.now * 1e9),
        )
        self.identities: dict[int, bytes] = {}
        self.next_ino = 100
        self.last_version = 0
        self.open()

    def open(self) -> None:
        self.database = Database(self.config.database, metadata)
        self.storage = Storage(self.database, self.config)

    def version(self) -> int:
        self.last_version = max(self.config.clock_ns(), self.last_version + 1)
        return self.last_version

    def close(self) -> None:
        self.storage.close()
        self.database.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def join(self, free: int = 100 * GIB, identity: bytes | None = None) -> int:
        identity = identity or os.urandom(16)
        message = Register(identity, "files", "http://files", 100 * GIB, free, 7)
        server = self.storage.register(message).id
        self.identities[server] = identity
        return server

    def beat(
        self,
        server: int,
        free: int = 100 * GIB,
        *,
        deleted: Sequence[bytes] = (),
        copied: Sequence[bytes] = (),
        missing: Sequence[bytes] = (),
    ) -> Tasks:
        message = Heartbeat(
            100 * GIB, free, deleted=list(deleted), copied=list(copied), missing=list(missing)
        )
        return self.storage.heartbeat(server, message)

    def sleep(self, seconds: float, beating: Sequence[int] = ()) -> None:
        """Time passes in steps; the servers that are ``beating`` live through it."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 4.0, end)
            for server in beating:
                self.beat(server)

    def file(self, *ids: bytes, on: Sequence[int]) -> int:
        """A file with these chunks, committed now."""
        ino, self.next_ino = self.next_ino, self.next_ino + 1
        version = self.version()

        def change(connection: Connection) -> None:
            connection.execute(insert(inodes), inode_row(ino, version))
            connection.execute(insert(versions), {"ino": ino, "version": version, "size": 1, "until": None})
            chunks.add_chunks(connection, [Receipt(chunk, 4096, list(on), self.now) for chunk in ids])
            for index, chunk in enumerate(ids):
                row = {"ino": ino, "index": index, "since": version, "until": None, "chunk": chunk}
                connection.execute(insert(extents), row)
            chunks.reference(connection, Counter(ids))

        self.database.write(change)
        return ino

    def replace(self, ino: int) -> None:
        """The file becomes empty; its old version is retained."""
        version = self.version()

        def change(connection: Connection) -> None:
            for table in (extents, versions):
                old = (table.c.ino == ino) & table.c.until.is_(None)
                connection.execute(update(table).where(old).values(until=version))
            connection.execute(insert(versions), {"ino": ino, "version": version, "size": 0, "until": None})

        self.database.write(change)

    def unlink(self, ino: int) -> None:
        values = {"nlink": 0, "ctime": self.version()}
        self.database.write(lambda c: c.execute(update(inodes).where(inodes.c.ino == ino).values(values)))

    def condemn(self, ino: int) -> None:
        """Replaces the file and lets the retention pass, after which its chunks are condemned."""
        self.replace(ino)
        self.now += DAY + 1
        self.storage.maintain()

    def locations(self, chunk: bytes) -> list[int]:
        with self.database.read() as connection:
            return chunks.locations(connection, [chunk])[chunk]

    def chunk(self, chunk: bytes) -> tuple[int, int, bool] | None:
        """refs, copies, whether condemned; None if it is not known."""
        with self.database.read() as connection:
            row = connection.execute(select(chunk_rows).where(chunk_rows.c.id == chunk)).one_or_none()
        return None if row is None else (row.refs, row.copies, row.condemned_at is not None)

    def usable(self, chunk: bytes) -> bool:
        with self.database.read() as connection:
            return chunk in chunks.usable(connection, [chunk])

    def state(self, server: int) -> ServerState:
        return next(state for state in self.storage.servers().servers if state.id == server)


def inode_row(ino: int, now: int) -> dict[str, object]:
    zeros = dict.fromkeys(("uid", "gid", "rdev", "size", "xattrs", "token"), 0)
    times = dict.fromkeys(("atime", "mtime", "ctime", "version", "change"), now)
    nothing = {"parent": None, "target": None, "acl": b"", "holes": 0}
    return {"ino": ino, "mode": 0o100644, "nlink": 1, **nothing, **zeros, **times}
