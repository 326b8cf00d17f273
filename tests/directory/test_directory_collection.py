"""Retention and collection: what is replaced or has no name goes in time, and not before."""

import errno
import itertools
import threading
from dataclasses import replace

from sqlalchemy import Connection, func, insert, select

from servers.directory import chunks
from servers.directory.schema import extents, holds, inodes, versions, xattrs
from servers.directory.storage import Storage
from tests.support.storage import DAY, GRACE, START, World, new_id
from wire.tickets import Receipt


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
