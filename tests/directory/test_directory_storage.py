"""The storage side of the directory: file servers, placement, chunks, inventories, and what always holds."""

import errno
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import register_random, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select

from clients.session import Channel, Keyring
from servers.directory import chunks, placement
from servers.directory.fileservers import FileServer
from servers.directory.placement import choose_sets, distinct_bytes
from servers.directory.schema import chunks as chunk_rows
from servers.directory.schema import extents, replicas
from servers.directory.storage_routes import add_storage_routes
from servers.keys import new_realm_keys
from servers.web import Door
from tests.support.inprocess import InProcessWire, all_ticket_keys, make_keyring
from tests.support.storage import GIB, GRACE, START, World, new_id
from wire.errors import Replayed, TicketRefused, Unavailable
from wire.messages.common import ServerAddress
from wire.messages.directory import (
    GetPlacement,
    Heartbeat,
    Inventory,
    Placement,
    Register,
    Registered,
    Servers,
    Statfs,
    Tasks,
)
from wire.tickets import Receipt, Role

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
    world.unlink(world.file(on=[a]))
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


# What holds whatever happens


register_random(placement._random)  # by which servers are chosen: Hypothesis wants the same again


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
