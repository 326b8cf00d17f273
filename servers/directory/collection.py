"""Retention and collection: what nobody can ask for any more goes, a batch each round.

Versions go first and extents after them: a version that is still listed has all of its extents. An
orphan's extents go before its inode, so that what is left of an unfinished one is found again. A chunk
that is not named any more is condemned; after the grace time the servers that have it are told to delete
it, and when the last has said that it did, the chunk's row goes.
"""

from collections import Counter, defaultdict

from sqlalchemy import ColumnElement, Connection, bindparam, delete, literal_column, select, tuple_

from servers.database import Database
from servers.directory.chunks import dereference, locations
from servers.directory.config import DirectoryConfig
from servers.directory.fileservers import FileServers
from servers.directory.schema import chunks, extents, holds, inodes, reserved, versions, xattrs
from servers.directory.tasks import TaskBook

ROWS_MAX = 500
"""The most rows of a table that one round removes."""

HOLD_SECONDS = 7 * 86400.0
"""Mounts say every hour what they hold (mount.vfs); one that was not heard for so long will not come back."""

RESERVED_SECONDS = 7 * 86400.0
"""Mounts use numbers within a day, or give them up (mount.locks)."""


class Collector:
    """One thread calls ``collect``."""

    def __init__(
        self, database: Database, servers: FileServers, tasks: TaskBook, config: DirectoryConfig
    ) -> None:
        self._database = database
        self._servers = servers
        self._tasks = tasks
        self._config = config
        self._cursor = (0.0, b"")

    def collect(self, now: float) -> None:
        """One batch of everything."""
        before = int((now - self._config.retention_seconds) * 1e9)
        self._database.write(lambda connection: expire_versions(connection, before, now))
        self._database.write(lambda connection: remove_orphans(connection, before, now))
        self._collect_condemned(now)

    def _collect_condemned(self, now: float) -> None:
        with self._database.read() as connection:
            condemned = self._next_condemned(connection, now - self._config.grace_seconds)
            has = locations(connection, condemned)
        gone = [chunk for chunk, servers in has.items() if not servers]
        if gone:
            self._database.write(lambda connection: _forget_chunks(connection, gone))
        alive = {server.id for server in self._servers.alive(now)}
        deletes: dict[int, list[bytes]] = defaultdict(list)
        for chunk, servers in has.items():
            for server in alive.intersection(servers):
                deletes[server].append(chunk)
        for server, ids in deletes.items():
            self._tasks.add_deletes(server, ids)

    def _next_condemned(self, connection: Connection, before: float) -> list[bytes]:
        """The next ones whose grace is over; after the last, from the beginning again."""
        place = (chunks.c.condemned_at, chunks.c.id)
        rows = connection.execute(
            select(*place)
            .where(
                chunks.c.condemned_at < before,
                chunks.c.refs == 0,
                tuple_(*place) > tuple_(*self._cursor),
            )
            .order_by(*place)
            .limit(ROWS_MAX)
        ).all()
        last = rows[-1] if len(rows) == ROWS_MAX else None
        self._cursor = (last.condemned_at, last.id) if last else (0.0, b"")
        return [row.id for row in rows]


def expire_versions(connection: Connection, before: int, now: float) -> None:
    """Removes versions that were replaced before the version ``before``, and the extents that only they
    have."""
    old = connection.execute(
        select(versions.c.ino, versions.c.version, versions.c.until)
        .where(versions.c.until < before)
        .order_by(versions.c.until)
        .limit(ROWS_MAX)
    ).all()
    if old:
        connection.execute(
            delete(versions).where(
                versions.c.ino == bindparam("of"), versions.c.version == bindparam("number")
            ),
            [{"of": row.ino, "number": row.version} for row in old],
        )
    if len(old) == ROWS_MAX:
        before = old[-1].until  # later ones are still listed, and need theirs
    _remove_extents(connection, extents.c.until < before, now)


def remove_orphans(connection: Connection, before: int, now: float) -> None:
    """Removes inodes that lost their last name before ``before`` (ns) and that nobody holds."""
    inos = connection.scalars(
        select(inodes.c.ino)
        .where(
            inodes.c.nlink == literal_column("0"),
            inodes.c.ctime < before,
            inodes.c.ino.not_in(select(holds.c.ino)),
        )
        .limit(ROWS_MAX)
    ).all()
    if not inos:
        return
    if _remove_extents(connection, extents.c.ino.in_(inos), now) < ROWS_MAX:  # that was all of it
        for table in (versions, xattrs, inodes):
            connection.execute(delete(table).where(table.c.ino.in_(inos)))


def forget_holds(connection: Connection, now: float) -> None:
    """Removes holds of sessions that must have ended."""
    connection.execute(delete(holds).where(holds.c.at < now - HOLD_SECONDS))


def forget_reserved(connection: Connection, now: float) -> None:
    """Removes a batch of the numbers that nobody will use any more."""
    old = select(reserved.c.ino).where(reserved.c.at < now - RESERVED_SECONDS).limit(ROWS_MAX)
    connection.execute(delete(reserved).where(reserved.c.ino.in_(old)))


def _remove_extents(connection: Connection, which: ColumnElement[bool], now: float) -> int:
    """Removes a batch of these extents, and says how many it had."""
    rows = connection.execute(
        select(extents.c.ino, extents.c.index.label("at"), extents.c.since, extents.c.chunk)
        .where(which)
        .limit(ROWS_MAX)
    ).all()
    if rows:
        connection.execute(
            delete(extents).where(
                extents.c.ino == bindparam("of"),
                extents.c.index == bindparam("at"),
                extents.c.since == bindparam("from"),
            ),
            [{"of": row.ino, "at": row.at, "from": row.since} for row in rows],
        )
        dereference(connection, Counter(row.chunk for row in rows), now)
    return len(rows)


def _forget_chunks(connection: Connection, ids: list[bytes]) -> None:
    connection.execute(delete(chunks).where(chunks.c.id.in_(ids), chunks.c.copies == 0, chunks.c.refs == 0))
