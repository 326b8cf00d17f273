"""The storage side of the directory: file servers, placement, repair, inventories, retention, collection."""

import errno
import itertools
import logging
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import Connection, func, insert, select, update

from clients.session import Channel, Keyring
from servers.database import Database, sqlite_url
from servers.directory import chunks, store
from servers.directory.config import DirectoryConfig
from servers.directory.fileservers import FileServer
from servers.directory.placement import choose_sets, distinct_bytes
from servers.directory.schema import chunks as chunk_rows
from servers.directory.schema import extents, holds, inodes, metadata, replicas, versions, xattrs
from servers.directory.storage import Storage
from servers.directory.storage_routes import add_storage_routes
from servers.directory.tasks import TaskBook
from servers.keys import ServiceKeys, new_realm_keys
from servers.web import Door
from tests.support.inprocess import InProcessWire, all_ticket_keys, make_keyring
from wire.errors import Replayed, TicketRefused, Unavailable
from wire.messages.common import ServerAddress
from wire.messages.directory import (
    CopyTask,
    GetPlacement,
    Heartbeat,
    Inventory,
    Placement,
    Register,
    Registered,
    Servers,
    ServerState,
    Statfs,
    Tasks,
)
from wire.tickets import Receipt, Role

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
    return {"ino": ino, "mode": 0o100644, "nlink": 1, "parent": None, "target": None, **zeros, **times}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


# File servers


def test_a_silent_server_is_suspect_then_dead_then_alive_again(world: World) -> None:
    server = world.join()
    seen = []
    for second in (0, 4, 5, 9, 10, 60):
        world.now = START + second
        seen.append(world.state(server).state)
    assert seen == ["alive", "alive", "suspect", "suspect", "dead", "dead"]
    assert world.state(server).heartbeat_age_seconds == 60
    world.beat(server)
    assert world.state(server).state == "alive"


def test_the_same_identity_keeps_its_id_and_brings_a_new_address(world: World) -> None:
    first, second = world.join(), world.join()
    assert first != second
    moved = Register(world.identities[first], "new", "http://new", 9, 8, 7)
    assert world.storage.register(moved) == Registered(first, world.config.heartbeat_seconds)
    assert [(a.id, a.url) for a in world.storage.addresses([second, first, 99])] == [
        (second, "http://files"),
        (first, "http://new"),
    ]
    world.restart()
    assert (world.state(first).name, world.state(first).pid, world.state(first).free_bytes) == ("new", 7, 8)


def test_an_unknown_server_is_told_to_register(world: World) -> None:
    for call in (lambda: world.beat(5), lambda: world.storage.inventory(5, Inventory([]))):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ENOENT


def test_after_a_restart_servers_are_suspect_until_heard_and_not_dead_too_soon(world: World) -> None:
    server = world.join()
    world.now += 1000
    world.restart()
    assert world.state(server).state == "suspect"
    with pytest.raises(Unavailable):
        world.storage.placement(1)
    world.now += 9
    assert world.state(server).state == "suspect"
    world.now += 1
    assert world.state(server).state == "dead"
    world.beat(server)
    assert world.state(server).state == "alive"


def test_space_is_stored_when_it_has_changed_much(world: World) -> None:
    server = world.join(free=50 * GIB)
    world.beat(server, free=50 * GIB - GIB // 2)
    world.restart()
    assert world.state(server).free_bytes == 50 * GIB
    world.beat(server, free=20 * GIB)
    world.restart()
    assert world.state(server).free_bytes == 20 * GIB


def test_alive_servers_are_read_from_first(world: World) -> None:
    a, b, c = (world.join() for _ in range(3))
    world.sleep(6, beating=[b, c])
    assert world.storage.order([a, c, b]) == [c, b, a]


# Placement and space


def test_a_placement_names_different_servers_and_spreads(world: World) -> None:
    servers = {world.join() for _ in range(4)}
    placement = world.storage.placement(64)
    assert len(placement.sets) == 64
    assert all(len({address.id for address in some}) == 2 for some in placement.sets)
    assert {some[0].id for some in placement.sets} == servers
    assert 0 < placement.valid_seconds <= world.config.dead_seconds


def test_a_placement_leaves_out_full_and_silent_servers(world: World) -> None:
    full, silent, good = world.join(free=64 * 2**20), world.join(), world.join()
    world.sleep(6, beating=[good])
    world.beat(full, free=64 * 2**20)
    assert {address.id for some in world.storage.placement(20).sets for address in some} == {good}
    world.beat(silent)
    assert all(len(some) == 2 for some in world.storage.placement(20).sets)


def test_without_a_living_server_or_room_there_is_no_placement(world: World) -> None:
    with pytest.raises(Unavailable):
        world.storage.placement(1)
    world.join(free=0)
    with pytest.raises(OSError, match="room") as caught:
        world.storage.placement(1)
    assert caught.value.errno == errno.ENOSPC


def test_who_has_more_room_is_given_more() -> None:
    small = FileServer(1, "", "", 0, 2**52, 2**50, False)
    large = FileServer(2, "", "", 0, 2**52, 3 * 2**50, False)
    sets = choose_sets([small, large], 1, 4000, random.Random(1).random)
    share = sum(some[0] is large for some in sets) / 4000
    assert 0.70 < share < 0.80


@pytest.mark.parametrize(
    ("sizes", "copies", "fits"),
    [([], 2, 0), ([9], 2, 9), ([4, 4], 2, 4), ([10, 1], 2, 1), ([3, 3, 3], 2, 4), ([9, 2, 2], 2, 4)],
)
def test_space_counts_replicas_once(sizes: list[int], copies: int, fits: int) -> None:
    assert distinct_bytes(sizes, copies) == fits


def test_statfs_counts_what_lives(world: World) -> None:
    a, b, c = (world.join(free=60 * GIB) for _ in range(3))
    world.file(on=[a])
    assert world.storage.statfs() == Statfs(150 * GIB, 90 * GIB, 1)
    world.sleep(11, beating=[a, b])
    assert world.storage.statfs().total_bytes == 100 * GIB
    assert world.state(c).state == "dead"


# Chunks


def test_a_receipt_makes_a_chunk_known_with_its_replicas_in_order(world: World) -> None:
    a, b, c = (world.join() for _ in range(3))
    chunk = new_id()
    world.file(chunk, on=[b, a])
    assert (world.locations(chunk), world.chunk(chunk)) == ([b, a], (1, 2, False))
    world.file(chunk, on=[c, b])
    assert (world.locations(chunk), world.chunk(chunk)) == ([b, a, c], (2, 3, False))
    assert world.usable(chunk)


def test_a_receipt_of_nobody_known_makes_nothing_usable(world: World) -> None:
    chunk = new_id()
    world.database.write(lambda c: chunks.add_chunks(c, [Receipt(chunk, 1, [77], START)]))
    assert world.chunk(chunk) is None
    assert not world.usable(chunk)


def test_a_condemned_chunk_is_not_usable_and_no_receipt_revives_it(world: World) -> None:
    a, b = world.join(), world.join()
    chunk = new_id()
    world.condemn(world.file(chunk, on=[a]))
    world.database.write(lambda c: chunks.add_chunks(c, [Receipt(chunk, 1, [a, b], world.now)]))
    assert world.chunk(chunk) == (0, 1, True)
    assert not world.usable(chunk)


# Repair


def copies_of(tasks: Tasks) -> list[bytes]:
    return [task.chunk for task in tasks.copy]


def test_the_chunks_of_a_dead_server_are_copied_after_the_delay_and_not_before(world: World) -> None:
    a, b, c = (world.join() for _ in range(3))
    chunk = new_id()
    world.file(chunk, on=[a, b])
    world.sleep(10 + REPAIR_DELAY - 1, beating=[b, c])
    world.storage.maintain()
    assert not world.beat(c).copy
    assert world.storage.servers().lacking == 1
    world.sleep(1, beating=[b, c])
    world.storage.maintain()
    (task,) = world.beat(c).copy
    assert (task.chunk, task.size, [source.id for source in task.sources]) == (chunk, 4096, [b])
    assert not world.beat(b).copy
    world.beat(c, copied=[chunk])
    assert (world.locations(chunk), world.chunk(chunk)) == ([b, c], (1, 2, False))
    assert world.storage.servers().lacking == 0
    assert (world.state(b).primaries, world.state(c).secondaries) == (1, 1)


def test_a_copy_that_is_not_reported_is_given_again(world: World) -> None:
    a, b = world.join(), world.join()
    chunk = new_id()
    world.file(chunk, on=[a])
    world.storage.maintain()
    assert copies_of(world.beat(b)) == [chunk]
    world.sleep(28, beating=[a])
    world.storage.maintain()  # b is silent: its task is forgotten
    assert not world.beat(b).copy
    world.storage.maintain()
    assert copies_of(world.beat(b)) == [chunk]
    for _ in range(7):
        world.sleep(4, beating=[a])
        assert not world.beat(b).copy
        world.storage.maintain()
    world.sleep(4, beating=[a, b])
    world.storage.maintain()
    assert copies_of(world.beat(b)) == [chunk]


def test_holds_and_reserved_numbers_that_are_not_renewed_go_after_a_week(world: World) -> None:
    def change(connection: Connection) -> None:
        store.reserve(connection, [5], 1, world.now)
        store.hold(connection, [7, 8], 1, world.now)

    world.database.write(change)
    world.now += 6 * DAY
    world.database.write(lambda connection: store.hold(connection, [8], 1, world.now))
    for days, held, used_up in ((0, {7, 8}, True), (2, {8}, False), (6, set(), False)):
        world.now += days * DAY
        world.storage.maintain()
        with world.database.read() as connection:
            assert store.held(connection, [7, 8], 1) == held
        assert world.database.write(lambda connection: store.use_up(connection, 5, 1)) == used_up
        if used_up:
            world.database.write(lambda c: store.reserve(c, [5], 1, world.now - 6 * DAY))


def test_what_took_long_to_count_is_used_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    on = [world.join()]
    assert world.storage.servers().chunks == 0
    world.file(os.urandom(48), on=on)
    monkeypatch.setattr("servers.directory.storage.COUNTING_SECONDS", -1)
    monkeypatch.setattr("servers.directory.storage.COUNTING_REST", 10**9)
    assert world.storage.servers().chunks == 1
    world.file(os.urandom(48), on=on)
    assert world.storage.servers().chunks == 1
    assert world.storage.servers().servers[0].state == "alive"


def test_what_a_server_shall_get_it_shall_delete_no_more() -> None:
    tasks = TaskBook()
    kept, goes = os.urandom(48), os.urandom(48)
    tasks.add_deletes(1, [kept, goes])
    tasks.add_copy(1, CopyTask(kept, 1, []))
    assert tasks.take(1, START).delete == [goes]


def test_a_heartbeat_is_told_where_chunks_may_be_forwarded_to(world: World) -> None:
    servers = [world.join() for _ in range(3)]
    assert [server.id for server in world.beat(servers[0]).servers] == servers
    world.sleep(REPAIR_DELAY + 20, beating=servers[:2])
    world.storage.maintain()
    assert [server.id for server in world.beat(servers[0]).servers] == servers[:2]


def test_no_more_copies_are_planned_than_servers_live(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=3)
    a, b = world.join(), world.join()
    chunk = new_id()
    world.file(chunk, on=[a, b])
    world.storage.maintain()
    assert not world.beat(a).copy
    assert not world.beat(b).copy
    assert world.storage.servers().lacking == 1
    world.close()


def test_nothing_is_copied_to_a_full_server(world: World) -> None:
    a, b = world.join(), world.join(free=0)
    world.file(new_id(), on=[a])
    world.storage.maintain()
    assert not world.beat(b).copy


def test_a_damaged_replica_is_replaced(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a, b = world.join(), world.join()
    chunk = new_id()
    world.file(chunk, on=[a, b])
    world.beat(a, missing=[chunk])
    assert world.chunk(chunk) == (1, 1, False)
    world.storage.maintain()
    assert copies_of(world.beat(a)) == [chunk]
    world.beat(a, copied=[chunk])
    assert world.locations(chunk) == [b, a]
    caplog.clear()
    world.beat(a, missing=[chunk])
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    world.beat(b, missing=[chunk])
    assert chunk.hex() in caplog.text
    assert world.chunk(chunk) == (1, 0, False)
    assert not world.usable(chunk)


def test_a_dead_server_keeps_what_only_it_has_and_returns_with_its_inventory(world: World) -> None:
    a, b = world.join(), world.join()
    only, both = new_id(), new_id()
    world.file(only, on=[a])
    world.file(both, on=[a, b])
    world.sleep(10 + REPAIR_DELAY, beating=[b])
    world.storage.maintain()
    assert (world.locations(only), world.locations(both)) == ([a], [b])
    for _ in range(2):  # also the directory's restart does not make it forget
        with pytest.raises(OSError, match="register"):
            world.beat(a)
        world.restart()
    world.beat(b)
    assert world.join(identity=world.identities[a]) == a
    world.storage.inventory(a, Inventory([only, both], first=True, last=True))
    assert (world.locations(only), world.locations(both)) == ([a], [b, a])
    assert world.usable(only)


def test_when_all_are_dead_nothing_is_given_up(world: World) -> None:
    a, b = world.join(), world.join()
    chunk = new_id()
    world.file(chunk, on=[a, b])
    world.now += 1000
    world.storage.maintain()
    assert world.locations(chunk) == [a, b]
    assert world.storage.servers().lacking == 1
    world.beat(a)


def test_surplus_replicas_are_taken_from_the_last_rank(world: World) -> None:
    a, b, c = (world.join() for _ in range(3))
    chunk = new_id()
    world.file(chunk, on=[a, b, c])
    world.storage.maintain()
    assert (world.locations(chunk), world.chunk(chunk)) == ([a, b], (1, 2, False))
    assert world.beat(c).delete == [chunk]
    world.beat(c, deleted=[chunk])
    assert world.locations(chunk) == [a, b]


def test_a_surplus_replica_stays_while_another_is_not_alive(world: World) -> None:
    a, b, c = (world.join() for _ in range(3))
    chunk = new_id()
    world.file(chunk, on=[a, b, c])
    world.sleep(6, beating=[b, c])
    world.storage.maintain()
    assert world.locations(chunk) == [a, b, c]


def test_a_write_off_goes_in_batches_and_copies_are_bounded(world: World) -> None:
    a, b, c = (world.join() for _ in range(3))
    many = [new_id() for _ in range(1100)]
    world.file(*many, on=[a, b])
    world.sleep(10 + REPAIR_DELAY, beating=[b, c])
    left = []
    for _ in range(4):
        world.storage.maintain()
        left.append(world.state(a).chunks)
    assert left == [600, 100, 0, 0]
    got = copies_of(world.beat(c))
    assert 0 < len(got) < 1100
    done: set[bytes] = set()
    while got:
        done.update(got)
        world.beat(c, copied=got)
        world.storage.maintain()
        world.storage.maintain()
        world.beat(b)
        got = copies_of(world.beat(c))
    assert done == set(many)
    assert world.storage.servers().lacking == 0


def test_what_cannot_be_repaired_does_not_stop_what_can(world: World) -> None:
    a, b, c = (world.join() for _ in range(3))
    world.file(*[new_id() for _ in range(600)], on=[a])
    good = b"\xff" * 48  # the last in the order of ids
    world.sleep(10, beating=[b, c])
    world.file(good, on=[b])
    for _ in range(3):
        world.storage.maintain()
    assert copies_of(world.beat(c)) == [good]


def test_what_cannot_be_written_off_does_not_stop_what_can(world: World) -> None:
    a, b = world.join(), world.join()
    last = b"\xff" * 48
    world.file(*[new_id() for _ in range(600)], on=[a])
    world.file(last, on=[a, b])
    world.sleep(10 + REPAIR_DELAY, beating=[b])
    for _ in range(2):
        world.storage.maintain()
    assert world.locations(last) == [b]


# Inventories


def test_an_inventory_finds_what_is_missing_and_what_is_unknown(world: World) -> None:
    a, b = world.join(), world.join()
    kept, lost, found, stray = (new_id() for _ in range(4))
    world.file(kept, lost, on=[a, b])
    world.file(found, on=[b])
    first = world.storage.inventory(a, Inventory([kept, stray], first=True))
    assert (first.unknown, first.older_than_seconds) == ([stray], 2 * GRACE)
    assert world.locations(lost) == [a, b]
    assert world.storage.inventory(a, Inventory([found], last=True)).unknown == []
    assert (world.locations(kept), world.locations(lost), world.locations(found)) == ([a, b], [b], [b, a])
    assert world.chunk(lost) == (1, 1, False)


def test_what_is_stored_during_an_inventory_is_not_missing(world: World) -> None:
    a, b = world.join(), world.join()
    world.storage.inventory(a, Inventory([], first=True, last=True))
    world.storage.inventory(a, Inventory([], first=True))
    put, copied = new_id(), new_id()
    world.file(put, on=[a, b])
    world.file(copied, on=[b])
    world.beat(a, copied=[copied])
    world.restart()
    world.beat(a)
    world.storage.inventory(a, Inventory([], last=True))
    assert (world.locations(put), world.locations(copied)) == ([a, b], [b, a])
    world.storage.inventory(a, Inventory([put], first=True, last=True))
    assert (world.locations(put), world.locations(copied)) == ([a, b], [b])


def test_a_large_inventory_may_be_repeated(world: World) -> None:
    a = world.join()
    many = [new_id() for _ in range(600)]
    world.file(*many, on=[a])
    for _ in range(2):
        world.storage.inventory(a, Inventory(many[:300], first=True))
        world.storage.inventory(a, Inventory(many[:300]))
        world.storage.inventory(a, Inventory([], last=True))
        assert world.state(a).chunks == 300


# Retention and collection


def test_a_replaced_version_is_kept_for_the_retention_time(world: World) -> None:
    a = world.join()
    chunk = new_id()
    ino = world.file(chunk, on=[a])
    world.replace(ino)
    world.now += DAY - 1
    world.storage.maintain()
    assert world.chunk(chunk) == (1, 1, False)
    world.now += 2
    world.storage.maintain()
    assert world.chunk(chunk) == (0, 1, True)
    with world.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(versions)) == 1
        assert connection.scalar(select(func.count()).select_from(extents)) == 0


def test_a_condemned_chunk_is_deleted_after_the_grace_time(world: World) -> None:
    a, b = world.join(), world.join()
    chunk = new_id()
    world.condemn(world.file(chunk, on=[a, b]))
    world.now += GRACE - 1
    world.beat(a), world.beat(b)
    world.storage.maintain()
    assert not world.beat(a).delete
    world.now += 2
    world.beat(a), world.beat(b)
    world.storage.maintain()
    assert (world.beat(a).delete, world.beat(b).delete) == ([chunk], [chunk])
    assert not world.beat(a).delete
    world.beat(a, deleted=[chunk])
    world.storage.maintain()
    assert world.chunk(chunk) == (0, 1, True)
    world.beat(b, deleted=[chunk])
    world.storage.maintain()
    assert world.chunk(chunk) is None
    assert world.storage.servers().chunks == 0


def test_a_deletion_that_is_not_reported_is_given_again_also_after_a_restart(world: World) -> None:
    a = world.join()
    chunk = new_id()
    world.condemn(world.file(chunk, on=[a]))
    world.now += GRACE + 1
    world.beat(a)
    world.storage.maintain()
    assert world.beat(a).delete == [chunk]
    world.sleep(28, beating=[a])
    assert not world.beat(a).delete
    world.now += 2
    assert world.beat(a).delete == [chunk]
    world.restart()
    world.beat(a)
    world.storage.maintain()
    assert world.beat(a).delete == [chunk]


def test_a_condemned_chunk_is_not_repaired(world: World) -> None:
    a, b = world.join(), world.join()
    chunk = new_id()
    world.condemn(world.file(chunk, on=[a]))
    world.beat(a), world.beat(b)
    world.storage.maintain()
    assert not world.beat(b).copy
    assert (world.storage.servers().lacking, world.storage.servers().condemned) == (0, 1)


def test_an_orphan_goes_after_the_retention_unless_it_is_held(world: World) -> None:
    a = world.join()
    held, free, linked = new_id(), new_id(), new_id()
    held_ino, free_ino, linked_ino = (world.file(chunk, on=[a]) for chunk in (held, free, linked))

    def hold(connection: Connection) -> None:
        connection.execute(insert(holds), {"ino": held_ino, "session": 1, "at": world.now + DAY})
        connection.execute(insert(xattrs), {"ino": free_ino, "name": b"user.x", "value": b"1"})

    world.database.write(hold)
    world.unlink(held_ino)
    world.unlink(free_ino)
    world.now += DAY - 1
    world.storage.maintain()
    assert world.chunk(free) == (1, 1, False)
    world.now += 2
    world.storage.maintain()
    assert [world.chunk(chunk) for chunk in (held, free, linked)] == [
        (1, 1, False),
        (0, 1, True),
        (1, 1, False),
    ]
    with world.database.read() as connection:
        assert set(connection.scalars(select(inodes.c.ino))) == {held_ino, linked_ino}
        assert set(connection.scalars(select(versions.c.ino))) == {held_ino, linked_ino}
        assert not connection.scalars(select(xattrs.c.ino)).all()
    world.now += 8 * DAY  # the session that held it was not heard any more
    world.storage.maintain()
    world.storage.maintain()
    assert world.chunk(held) == (0, 1, True)


def test_collection_goes_in_batches_and_a_listed_version_has_its_extents(world: World) -> None:
    a = world.join()
    first = world.version()
    replaced = {number: new_id() for number in range(first, first + 700)}

    def change(connection: Connection) -> None:
        chunks.add_chunks(connection, [Receipt(chunk, 1, [a], world.now) for chunk in replaced.values()])
        chunks.reference(connection, dict.fromkeys(replaced.values(), 1))
        for number, chunk in replaced.items():
            life = {"ino": number, "until": number + 1000}
            connection.execute(insert(versions), {"version": number, "size": 1, **life})
            connection.execute(insert(extents), {"index": 0, "since": number, "chunk": chunk, **life})

    world.database.write(change)
    world.now += DAY + 1
    left = []
    for _ in range(3):
        world.storage.maintain()
        with world.database.read() as connection:
            listed = set(connection.scalars(select(versions.c.ino).where(versions.c.until.is_not(None))))
            kept = set(connection.scalars(select(extents.c.ino)))
        assert listed <= kept
        left.append((len(listed), len(kept)))
    assert left == [(200, 201), (0, 0), (0, 0)]


def test_a_large_orphan_goes_in_batches(world: World) -> None:
    a = world.join()
    ino = world.file(*[new_id() for _ in range(1200)], on=[a])
    world.unlink(ino)
    world.now += DAY + 1
    left = []
    for _ in range(3):
        world.storage.maintain()
        with world.database.read() as connection:
            rows = connection.scalar(select(func.count()).select_from(extents))
            left.append((rows, connection.scalar(select(func.count()).select_from(inodes))))
    assert left == [(700, 1), (200, 1), (0, 0)]


def test_further_jobs_are_done_once_a_minute(world: World) -> None:
    done: list[float] = []
    storage = Storage(world.database, world.config, [lambda _: done.append(world.now)])
    for _ in range(130):
        world.now += 1
        storage.maintain()
    assert done == [START + 60, START + 120]


def test_the_thread_does_rounds_until_it_is_closed(world: World) -> None:
    seconds = itertools.count(int(START), 61)
    config = replace(world.config, maintenance_seconds=0.001, clock_ns=lambda: next(seconds) * 10**9)
    worked = threading.Event()

    def work(_: Connection) -> None:
        worked.set()
        raise OSError(errno.EIO, "a round that fails is not the last")

    storage = Storage(world.database, config, [work])
    storage.start()
    assert worked.wait(10)
    worked.clear()
    assert worked.wait(10)
    storage.close()
    worked.clear()
    assert not worked.wait(0.05)


# What holds whatever happens


class StorageMachine(RuleBasedStateMachine):
    """Four file servers with simulated disks, which die, come back, lose replies and damage chunks."""

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.world = World(Path(self.folder.name))
        self.disks: dict[int, set[bytes]] = {self.world.join(): set() for _ in range(4)}
        self.silent: set[int] = set()
        self.deleted: dict[int, set[bytes]] = {server: set() for server in self.disks}
        self.copied: dict[int, set[bytes]] = {server: set() for server in self.disks}
        self.files: list[int] = []
        self.numbers = itertools.count()

    def new_id(self) -> bytes:
        """Not a random one: Hypothesis wants the same again."""
        return next(self.numbers).to_bytes(48)

    def beat(self, server: int, missing: Sequence[bytes] = (), lost: bool = False) -> None:
        try:
            tasks = self.world.beat(
                server,
                deleted=list(self.deleted[server]),
                copied=list(self.copied[server]),
                missing=missing,
            )
        except FileNotFoundError:
            self.world.join(identity=self.world.identities[server])
            self.inventory(server, {self.new_id(): False})
            return
        self.deleted[server].clear()
        self.copied[server].clear()
        if lost:
            return
        self.deleted[server].update(tasks.delete)
        self.disks[server].difference_update(tasks.delete)
        for task in tasks.copy:
            if any(task.chunk in self.disks[source.id] for source in task.sources):
                self.disks[server].add(task.chunk)
                self.copied[server].add(task.chunk)

    def inventory(self, server: int, put: dict[bytes, bool]) -> None:
        """While it runs, the chunks of ``put`` are stored, before (True) or after the listing."""
        storage = self.world.storage
        storage.inventory(server, Inventory([], first=True))
        self.put([chunk for chunk, early in put.items() if early], [server])
        listed = list(self.disks[server])
        self.put([chunk for chunk, early in put.items() if not early], [server])
        answer = storage.inventory(server, Inventory(listed, last=True))
        self.disks[server].difference_update(answer.unknown)

    def put(self, ids: Sequence[bytes], on: Sequence[int]) -> None:
        for server in on:
            self.disks[server].update(ids)
        self.files.append(self.world.file(*ids, on=on))

    @rule(count=st.integers(1, 3), data=st.data())
    def commit(self, count: int, data: st.DataObject) -> None:
        on = data.draw(st.lists(st.sampled_from(sorted(self.disks)), min_size=1, max_size=3, unique=True))
        self.put([self.new_id() for _ in range(count)], on)

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def copy(self, data: st.DataObject) -> None:
        with self.world.database.read() as connection:
            named = connection.scalars(select(extents.c.chunk).where(extents.c.until.is_(None))).all()
        if usable := [chunk for chunk in named if self.world.usable(chunk)]:
            self.put([data.draw(st.sampled_from(sorted(usable)))], [])

    @precondition(lambda self: self.files)
    @rule(data=st.data(), whole=st.booleans())
    def remove(self, data: st.DataObject, whole: bool) -> None:
        ino = self.files.pop(data.draw(st.integers(0, len(self.files) - 1)))
        self.world.unlink(ino) if whole else self.world.replace(ino)

    @rule(data=st.data())
    def go_silent_or_return(self, data: st.DataObject) -> None:
        self.silent ^= {data.draw(st.sampled_from(sorted(self.disks)))}

    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        server = data.draw(st.sampled_from(sorted(self.disks)))
        spare = [chunk for chunk in self.disks[server] if self.elsewhere(chunk, server)]
        if spare and server not in self.silent:
            chunk = data.draw(st.sampled_from(sorted(spare)))
            self.disks[server].discard(chunk)
            self.copied[server].discard(chunk)
            self.beat(server, missing=[chunk])

    def elsewhere(self, chunk: bytes, server: int) -> bool:
        return any(chunk in self.disks[other] for other in self.world.locations(chunk) if other != server)

    @rule(data=st.data(), early=st.booleans())
    def take_inventory(self, data: st.DataObject, early: bool) -> None:
        server = data.draw(st.sampled_from(sorted(self.disks)))
        if server not in self.silent:
            self.beat(server)
            self.inventory(server, {self.new_id(): early})

    @rule(seconds=st.sampled_from([2, 20, 100, 4000, 90000]), rounds=st.integers(1, 3), lost=st.booleans())
    def live(self, seconds: int, rounds: int, lost: bool) -> None:
        self.world.now += seconds
        for _ in range(rounds):
            for server in self.disks.keys() - self.silent:
                self.beat(server, lost=lost)
            self.world.storage.maintain()

    @rule()
    def restart(self) -> None:
        self.world.restart()

    @invariant()
    def counts_are_right(self) -> None:
        with self.world.database.read() as connection:
            rows = connection.execute(select(chunk_rows)).all()
            refs = Counter(connection.scalars(select(extents.c.chunk)))
            places = connection.execute(select(replicas.c.chunk, replicas.c.server, replicas.c.rank)).all()
        copies = Counter(place.chunk for place in places)
        assert {row.id: row.refs for row in rows if row.refs} == refs
        assert {row.id: row.copies for row in rows if row.copies} == copies
        assert all((row.refs == 0) == (row.condemned_at is not None) for row in rows)
        assert len({(place.chunk, place.rank) for place in places}) == len(places)
        for place in places:
            assert place.chunk in self.disks[place.server] | self.deleted[place.server]
        stored = set().union(*self.disks.values())
        assert stored >= set(refs)  # nothing that a version names was lost
        assert {row.id for row in rows if row.refs and not row.copies} == set()

    def teardown(self) -> None:
        self.world.close()
        self.folder.cleanup()


StorageMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestStorageMachine = StorageMachine.TestCase


# Routes


def said(keyring: Keyring, number: int) -> str:
    """The id of an earlier request."""
    return f"{keyring.session.session:x}.{number}"


def test_file_servers_join_and_clients_look_but_do_not_join(tmp_path: Path) -> None:
    realm = new_realm_keys()
    world = World(tmp_path, keys=realm["directory"])
    door = Door("directory", world.config.keys.tickets)
    add_storage_routes(door, world.storage)
    wire = InProcessWire()
    wire.apps["http://directory"] = door.app
    keyring = make_keyring(all_ticket_keys(realm))
    server = Channel(wire, "http://directory", Role.JOIN, keyring, deadline_seconds=1)
    client = Channel(wire, "http://directory", Role.DIRECTORY, keyring, deadline_seconds=0.1)
    registration = Register(b"i" * 16, "one", "http://one", 100 * GIB, 50 * GIB)
    with pytest.raises(TicketRefused):
        client.call("POST", "/v1/servers", registration, Registered)
    with pytest.raises(Unavailable):
        client.call("POST", "/v1/placement", GetPlacement(3), Placement)
    number = server.mutate("/v1/servers", lambda _: registration, Registered).id
    beat = Heartbeat(100 * GIB, 50 * GIB)
    assert server.mutate(f"/v1/servers/{number}/heartbeat", lambda _: beat, Tasks) == Tasks(
        servers=[ServerAddress(number, "http://one")]
    )
    with pytest.raises(Replayed):
        server.call("POST", f"/v1/servers/{number}/heartbeat", beat, Tasks, request_id=said(keyring, 1))
    for path, message in (("heartbeat", beat), ("inventory", Inventory([]))):
        with pytest.raises(TicketRefused):
            client.call("POST", f"/v1/servers/{number}/{path}", message, Tasks)
    with pytest.raises(OSError) as caught:
        server.mutate(f"/v1/servers/{number + 1}/heartbeat", lambda _: beat, Tasks)
    assert caught.value.errno == errno.ENOENT
    assert client.call("GET", "/v1/servers", None, Servers).servers[0].name == "one"
    assert client.call("GET", "/v1/statfs", None, Statfs).free_bytes == 50 * GIB
    placement = client.call("POST", "/v1/placement", GetPlacement(3), Placement)
    assert [[address.id for address in some] for some in placement.sets] == [[number]] * 3
    world.close()
