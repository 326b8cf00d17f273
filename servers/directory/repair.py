"""Keeps every chunk at its wanted number of replicas.

- Write-off: the replica rows of a server that stays dead go, batch by batch, where another replica is
  left on a living server. The last one stays: should the server come back, the chunk is found there.
- Copies: a chunk with fewer rows than wanted is copied to a living server that has it not. The new row
  is written on that server's word.
- Trimming: where more living servers than wanted have a chunk (one came back), the row of the last rank
  goes first and the server is told to delete afterwards, so a row never promises what may be gone.

The work is proportional to what is amiss: each step walks an index with a cursor.
"""

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import Connection, func, select, tuple_

from servers.database import Database
from servers.directory import fileserver_rows
from servers.directory.chunks import locations, remove_replicas
from servers.directory.config import DirectoryConfig
from servers.directory.fileservers import FileServer, FileServers
from servers.directory.placement import choose
from servers.directory.schema import chunks, replicas
from servers.directory.tasks import COPY_BYTES_MAX, COPY_COST_BYTES, TaskBook
from wire.messages.directory import CopyTask

ROWS_MAX = 500
"""The most rows that a step looks at in one round."""


_FIRST = (1, b"")
"""Before all chunks that have a copy; those that have none cannot be copied."""


class Repair:
    """The steps; one thread calls them."""

    def __init__(
        self, database: Database, servers: FileServers, tasks: TaskBook, config: DirectoryConfig
    ) -> None:
        self._database = database
        self._servers = servers
        self._tasks = tasks
        self._replicas = config.replicas
        self._copy_cursor = _FIRST
        self._write_off_cursors: dict[int, tuple[int, bytes]] = {}

    def write_off(self, now: float) -> None:
        """Stops counting on the replicas of servers that have been dead for too long."""
        written_off = self._servers.write_off(now)
        if not written_off:
            return
        living = {server.id for server in self._servers.living(now)}

        def change(connection: Connection) -> None:
            fileserver_rows.write_off(connection, written_off)
            for server in written_off:
                self._write_off_batch(connection, server, living)

        self._database.write(change)

    def _write_off_batch(self, connection: Connection, server: int, living: set[int]) -> None:
        place = (replicas.c.inventory, replicas.c.chunk)
        cursor = self._write_off_cursors.get(server, (-1, b""))
        rows = connection.execute(
            select(*place, chunks.c.condemned_at)
            .join(chunks, chunks.c.id == replicas.c.chunk)
            .where(replicas.c.server == server, tuple_(*place) > tuple_(*cursor))
            .order_by(*place)
            .limit(ROWS_MAX)
        ).all()
        elsewhere = locations(connection, [row.chunk for row in rows])
        safe = [row.chunk for row in rows if row.condemned_at or living.intersection(elsewhere[row.chunk])]
        remove_replicas(connection, server, safe)
        last = rows[-1] if len(rows) == ROWS_MAX else None
        self._write_off_cursors[server] = (last.inventory, last.chunk) if last else (-1, b"")

    def plan_copies(self, now: float) -> None:
        """Gives living servers the chunks that lack a replica."""
        alive = self._servers.alive(now)
        wanted = min(self._replicas, len(alive))
        if wanted < 2:
            return
        with self._database.read() as connection:
            lacking = self._next_lacking(connection, wanted)
            has = locations(connection, list(lacking))
        room = {server.id: COPY_BYTES_MAX - self._tasks.load(server.id) for server in alive}
        copied = self._tasks.copied()
        for chunk, size in lacking.items():
            if chunk not in copied:
                self._plan_copy(chunk, size, has[chunk], alive, room)

    def _next_lacking(self, connection: Connection, wanted: int) -> dict[bytes, int]:
        """The next ones with their sizes; after the last, from the beginning again."""
        place = (chunks.c.copies, chunks.c.id)
        rows = connection.execute(
            select(*place, chunks.c.size)
            .where(
                chunks.c.copies < wanted,
                chunks.c.condemned_at.is_(None),
                tuple_(*place) > tuple_(*self._copy_cursor),
            )
            .order_by(*place)
            .limit(ROWS_MAX)
        ).all()
        last = rows[-1] if len(rows) == ROWS_MAX else None
        self._copy_cursor = (last.copies, last.id) if last else _FIRST
        return {row.id: row.size for row in rows}

    def _plan_copy(
        self, chunk: bytes, size: int, has: list[int], alive: list[FileServer], room: dict[int, int]
    ) -> None:
        sources = [server.address for server in alive if server.id in has]
        cost = size + COPY_COST_BYTES
        targets = choose([s for s in alive if s.id not in has and room[s.id] >= cost], 1)
        if sources and targets:
            room[targets[0].id] -= cost
            self._tasks.add_copy(targets[0].id, CopyTask(chunk, size, sources))

    def trim(self, now: float) -> None:
        """Takes surplus replicas away from the living servers of the last ranks."""
        with self._database.read() as connection:
            surplus = connection.scalars(
                select(chunks.c.id)
                .where(chunks.c.copies > self._replicas, chunks.c.condemned_at.is_(None))
                .order_by(chunks.c.copies)
                .limit(ROWS_MAX)
            ).all()
        if not surplus:
            return
        alive = {server.id for server in self._servers.alive(now)}
        dropped = self._database.write(lambda connection: self._drop(connection, surplus, alive))
        for server, ids in dropped.items():
            self._tasks.add_deletes(server, ids)

    def _drop(
        self, connection: Connection, surplus: Sequence[bytes], alive: set[int]
    ) -> dict[int, list[bytes]]:
        dropped: dict[int, list[bytes]] = defaultdict(list)
        for chunk, has in locations(connection, surplus).items():
            for server in [server for server in has if server in alive][self._replicas :]:
                dropped[server].append(chunk)
        for server, ids in dropped.items():
            remove_replicas(connection, server, ids)
        return dropped


def count_lacking(connection: Connection, wanted: int, dead: Sequence[int]) -> int:
    """How many chunks have fewer than ``wanted`` replicas on servers that are not ``dead``."""
    kept = chunks.c.condemned_at.is_(None)
    few = connection.scalar(select(func.count()).select_from(chunks).where(kept, chunks.c.copies < wanted))
    if not dead:
        return few or 0
    only_rows = (
        select(chunks.c.id)
        .join(replicas, replicas.c.chunk == chunks.c.id)
        .where(kept, chunks.c.copies >= wanted, replicas.c.server.in_(dead))
        .group_by(chunks.c.id, chunks.c.copies)
        .having(chunks.c.copies - func.count() < wanted)
    ).subquery()
    on_dead = connection.scalar(select(func.count()).select_from(only_rows))
    return (few or 0) + (on_dead or 0)
