"""Repair: chunks that have too few copies, or too many."""

import logging
import os
from pathlib import Path

import pytest
from sqlalchemy import Connection

from servers.directory import store
from servers.directory.tasks import TaskBook
from tests.support.storage import DAY, REPAIR_DELAY, START, World, new_id
from wire.messages.directory import (
    CopyTask,
    Inventory,
    Tasks,
)


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
