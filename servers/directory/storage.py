"""The storage side of the directory: which file servers there are, what they have, what they must do.

``maintain`` is one round of everything that happens without being asked: repair, trimming, retention,
collection. Each step does a bounded batch, so that a round never holds the database's writer for long.

What is in memory (heartbeats, tasks) may be lost at any time: servers are suspect until they are heard
again, and tasks are planned again from the rows.
"""

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, func, literal_column, select

from servers.database import Database
from servers.directory import chunks, collection, fileserver_rows, inventories
from servers.directory.collection import Collector
from servers.directory.config import DirectoryConfig
from servers.directory.fileservers import FileServers
from servers.directory.placement import choose_sets, distinct_bytes
from servers.directory.repair import Repair, count_lacking
from servers.directory.schema import inodes
from servers.directory.tasks import TaskBook
from wire.errors import Unavailable, fail
from wire.messages.common import ServerAddress
from wire.messages.directory import (
    Heartbeat,
    Inventory,
    InventoryAnswer,
    KnownServer,
    KnownServers,
    Placement,
    Register,
    Registered,
    Servers,
    ServerState,
    Statfs,
    Tasks,
)

log = logging.getLogger(__name__)

Job = Callable[[Connection], None]
"""Something that is done once a minute, in a transaction of its own."""

JOBS_SECONDS = 60.0
INODES_SECONDS = 10.0
"""How long a count of the inodes is used again."""


COUNTING_SECONDS = 0.1
COUNTING_REST = 20
"""If counting the chunks took longer, it is not done again for so many times as long."""


@dataclass(frozen=True)
class _Counts:
    """Rows, as they were counted. ``held``: of each server, as primary and as secondary."""

    held: dict[int, tuple[int, int]]
    known: int
    condemned: int
    lacking: int
    valid_until: float


class Storage:
    """Thread-safe. ``jobs`` are done once a minute besides."""

    def __init__(self, database: Database, config: DirectoryConfig, jobs: Sequence[Job] = ()) -> None:
        self._database = database
        self._config = config
        self._jobs = [
            *jobs,
            lambda connection: collection.forget_holds(connection, self._now()),
            lambda connection: collection.forget_reserved(connection, self._now()),
        ]
        self._jobs_at = self._now()
        self._inodes = (float("-inf"), 0)
        self._counting = threading.Lock()  # while one counts, others wait for what he finds
        self._counts: _Counts | None = None
        self._registering = threading.Lock()  # a server is never written off while it registers
        self._servers = FileServers(config, self._now())
        with database.read() as connection:
            self._servers.load(fileserver_rows.read_all(connection))
        self._tasks = TaskBook()
        self._repair = Repair(database, self._servers, self._tasks, config)
        self._collector = Collector(database, self._servers, self._tasks, config)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="storage-maintenance", daemon=True)

    def start(self) -> None:
        """Starts the rounds of maintenance."""
        self._thread.start()

    def close(self) -> None:
        """Ends them; the database stays open."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    # What clients ask

    def placement(self, count: int) -> Placement:
        """``count`` sets of replicas. Raises Unavailable if no server is alive, ENOSPC if none has room."""
        alive = self._servers.alive(self._now())
        if not alive:
            raise Unavailable("no file server is alive")
        sets = choose_sets(alive, self._config.replicas, count)
        if not sets:
            raise fail(errno.ENOSPC, "no file server has room")
        addresses = [[server.address for server in some] for some in sets]
        return Placement(addresses, self._config.suspect_seconds)

    def statfs(self) -> Statfs:
        """What living servers can hold, replicas counted once; and the inodes that have a name."""
        now = self._now()
        living = self._servers.living(now)
        counted, number = self._inodes
        if now - counted > INODES_SECONDS:
            with self._database.read() as connection:
                number = _named_inodes(connection)
            self._inodes = (now, number)
        copies = self._config.replicas
        return Statfs(
            distinct_bytes([server.total_bytes for server in living], copies),
            distinct_bytes([server.free_bytes for server in living], copies),
            number,
        )

    def known_servers(self) -> KnownServers:
        """All file servers, from memory."""
        now = self._now()
        return KnownServers(
            [
                KnownServer(server.id, server.name, server.url, self._servers.state(server.id, now))
                for server in self._servers.all()
            ]
        )

    def servers(self) -> Servers:
        """All file servers and how the chunks fare."""
        now = self._now()
        dead = self._servers.dead(now)
        with self._counting:
            if self._counts is None or time.monotonic() > self._counts.valid_until:
                self._counts = self._count([server.id for server in dead])
            counts = self._counts
        states = []
        for server in self._servers.all():
            primaries, secondaries = counts.held.get(server.id, (0, 0))
            states.append(
                ServerState(
                    server.id,
                    server.name,
                    server.url,
                    self._servers.state(server.id, now),
                    server.pid,
                    max(0.0, now - server.heard),
                    server.total_bytes,
                    server.free_bytes,
                    primaries + secondaries,
                    primaries,
                    secondaries,
                )
            )
        return Servers(states, self._config.replicas, counts.known, counts.lacking, counts.condemned)

    def _count(self, dead: Sequence[int]) -> _Counts:
        """Reads every row of chunks and replicas."""
        began = time.monotonic()
        with self._database.read() as connection:
            held = fileserver_rows.count_replicas(connection)
            known, condemned = chunks.count_chunks(connection)
            lacking = count_lacking(connection, self._config.replicas, dead)
        took = time.monotonic() - began
        valid_until = began + took + (COUNTING_REST * took if took > COUNTING_SECONDS else 0.0)
        return _Counts(held, known, condemned, lacking, valid_until)

    def addresses(self, ids: Iterable[int]) -> list[ServerAddress]:
        """Where the servers are reached, in the order of ``ids``; unknown ones are left out."""
        return self._servers.addresses(ids)

    def order(self, server_ids: list[int]) -> list[int]:
        """The alive ones first, otherwise as given."""
        now = self._now()
        return sorted(server_ids, key=lambda id: self._servers.state(id, now) != "alive")

    # What file servers tell

    def register(self, message: Register) -> Registered:
        """A server starts, or comes back; from now on it is alive. The same identity gets the same id."""
        with self._registering:
            server = self._database.write(lambda connection: fileserver_rows.register(connection, message))
            self._tasks.forget_server(server.id)
            self._servers.add(server, self._now())
        return Registered(server.id, self._config.heartbeat_seconds)

    def heartbeat(self, server_id: int, message: Heartbeat) -> Tasks:
        """Records that the server lives, and what it did; answers what it shall do.
        Raises ENOENT if it must register (again)."""
        space_changed = self._servers.hear(server_id, message, self._now())
        gone = [*message.deleted, *message.missing]
        if gone or message.copied or space_changed:

            def record(connection: Connection) -> None:
                chunks.remove_replicas(connection, server_id, gone)
                if message.copied:
                    chunks.add_replicas(connection, server_id, message.copied)
                if space_changed:
                    fileserver_rows.save_space(connection, server_id, message)

            self._database.write(record)
        if message.missing:
            log.warning("file server %d misses %d chunks", server_id, len(message.missing))
        self._tasks.done(server_id, [*gone, *message.copied])
        tasks = self._tasks.take(server_id, self._now())
        return msgspec.structs.replace(tasks, servers=self._servers.usable())

    def inventory(self, server_id: int, message: Inventory) -> InventoryAnswer:
        """Takes in one page. Raises ENOENT if the server must register (again)."""
        self._servers.check(server_id)
        unknown = inventories.take_page(self._database, server_id, message)
        return InventoryAnswer(unknown, 2 * self._config.grace_seconds)

    # What happens by itself

    def maintain(self) -> None:
        """One round."""
        now = self._now()
        with self._registering:
            self._repair.write_off(now)
        self._tasks.expire(now, keep={server.id for server in self._servers.alive(now)})
        self._repair.plan_copies(now)
        self._repair.trim(now)
        self._collector.collect(now)
        if now - self._jobs_at >= JOBS_SECONDS:
            self._jobs_at = now
            for job in self._jobs:
                self._database.write(job)

    def _run(self) -> None:
        while not self._stop.wait(self._config.maintenance_seconds):
            try:
                self.maintain()
            except Exception:
                # The next round begins anew from the rows; without it nothing would ever be repaired.
                log.exception("a round of maintenance failed")

    def _now(self) -> float:
        return self._config.clock_ns() / 1e9


def _named_inodes(connection: Connection) -> int:
    """All but those without a name, for which there is an index."""
    every = select(func.count()).select_from(inodes)
    nameless = every.where(inodes.c.nlink == literal_column("0"))
    return (connection.scalar(every) or 0) - (connection.scalar(nameless) or 0)
