"""A file server's life with its directory: heartbeats, inventories, tasks and reports."""

import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from servers.files.app import FileServer
from servers.files.store import State
from servers.files.tasks import Work
from tests.support.files import DIRECTORY_URL, LARGE, SMALL, FakeDirectory, Realm, chunk, path_of, spoil
from wire.errors import ReplyLost
from wire.messages.directory import (
    CopyTask,
    Inventory,
    Tasks,
)


class Living:
    """A realm with a fake directory, whose servers are really started."""

    def __init__(self, root: Path) -> None:
        self.realm = Realm(root)
        self.directory = FakeDirectory(self.realm.clock)
        self.realm.wire.apps[DIRECTORY_URL] = self.directory.app

    def start(self, **options: int) -> FileServer:
        server = self.realm.add(**options)
        server.agent.id = 0
        server.start()
        return server


@pytest.fixture
def living(tmp_path: Path) -> Iterator[Living]:
    living = Living(tmp_path)
    yield living
    for server in living.realm.servers:
        server.close()


def test_it_registers_and_beats_and_tells_what_it_has(living: Living) -> None:
    server = living.start(capacity_bytes=10**9)
    directory = living.directory
    directory.wait(lambda: len(directory.inventories) == 2)
    assert directory.registered[0].url == "http://files1"
    assert directory.inventories == [Inventory([], first=True), Inventory([], last=True)]
    chunk_id, data = chunk(LARGE)
    assert living.realm.client.put(living.realm.addresses(1), chunk_id, data).servers == [1]
    directory.wait(lambda: directory.heartbeats[-1].free_bytes <= 10**9 - LARGE)
    assert directory.heartbeats[-1].total_bytes == 10**9
    assert directory.heartbeats[-1].free_bytes <= 10**9 - LARGE
    assert server.agent.id == 1


def test_an_inventory_is_sent_though_the_first_heartbeat_fails(living: Living) -> None:
    beats = 0

    def lose_the_first(url: str, _headers: Mapping[str, str]) -> None:
        nonlocal beats
        if url.endswith("heartbeat") and (beats := beats + 1) == 1:
            raise ReplyLost("lost on the way")

    living.realm.wire.before.append(lose_the_first)
    living.start()
    living.directory.wait(lambda: len(living.directory.inventories) == 2)


def test_it_forwards_to_servers_that_the_directory_names(living: Living) -> None:
    realm, directory = living.realm, living.directory
    living.start()
    realm.add()
    directory.servers = realm.addresses(1, 2)
    directory.wait(lambda: len(directory.inventories) == 2)
    assert realm.client.put(realm.addresses(1, 2), *chunk(SMALL)).servers == [1, 2]


def test_it_waits_for_a_directory_that_starts_later(living: Living, caplog: pytest.LogCaptureFixture) -> None:
    del living.realm.wire.apps[DIRECTORY_URL]
    living.start()
    living.realm.wire.apps[DIRECTORY_URL] = living.directory.app
    living.directory.wait(lambda: bool(living.directory.heartbeats))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_forgotten_it_registers_again_with_a_new_inventory(living: Living) -> None:
    directory = living.directory
    living.start()
    directory.wait(lambda: len(directory.inventories) == 2)
    directory.forgotten.add(1)
    directory.wait(lambda: len(directory.registered) == 2 and len(directory.inventories) == 4)
    assert directory.registered[0].identity == directory.registered[1].identity


def test_it_deletes_what_it_is_told_to(living: Living) -> None:
    directory = living.directory
    server = living.start()
    chunks = [chunk(size) for size in (SMALL, LARGE)]
    for chunk_id, data in chunks:
        server.store.put(chunk_id, data)
    unknown = chunk(1)[0]
    ids = [chunk_id for chunk_id, _ in chunks] + [unknown]
    directory.tasks = Tasks(delete=ids)
    directory.wait(lambda: {i for beat in directory.heartbeats for i in beat.deleted} == set(ids))
    assert server.store.count == 0


def test_it_copies_from_a_source_that_has_it(living: Living, caplog: pytest.LogCaptureFixture) -> None:
    directory = living.directory
    source = living.realm.add()
    liar = living.realm.add()
    server = living.start()
    chunk_id, data = chunk(LARGE)
    for other in (source, liar):
        other.store.put(chunk_id, data)
    spoil(liar, living.realm.root / "2", chunk_id)
    hopeless = chunk(LARGE)[0]
    sources = living.realm.addresses(9, 2, 1)
    directory.tasks = Tasks(copy=[CopyTask(hopeless, LARGE, sources[1:]), CopyTask(chunk_id, LARGE, sources)])
    directory.wait(lambda: any(beat.copied == [chunk_id] for beat in directory.heartbeats))
    assert server.store.get(chunk_id) == data
    assert not any(hopeless in beat.copied for beat in directory.heartbeats)


def test_a_report_is_repeated_until_it_arrived(living: Living) -> None:
    directory = living.directory
    lost = 0

    def lose_two(_url: str, _headers: Mapping[str, str]) -> None:
        nonlocal lost
        if directory.heartbeats and directory.heartbeats[-1].deleted and lost < 2:
            lost += 1
            raise ReplyLost("lost on the way back")

    living.realm.wire.after.append(lose_two)
    chunk_id = chunk(1)[0]
    directory.tasks = Tasks(delete=[chunk_id])
    living.start()
    directory.wait(lambda: sum(beat.deleted == [chunk_id] for beat in directory.heartbeats) >= 3)
    directory.tasks = Tasks()
    directory.wait(lambda: directory.heartbeats[-1].deleted == [])


def test_what_goes_while_a_page_is_under_way_is_told_afterwards(living: Living) -> None:
    directory = living.directory
    server = living.realm.add()
    server.agent.id = 0
    stays, goes = chunk(SMALL), chunk(SMALL)
    for chunk_id, data in (stays, goes):
        server.store.put(chunk_id, data)
    directory.on_page = lambda: server.store.delete(goes[0])
    server.start()
    directory.wait(lambda: any(beat.deleted == [goes[0]] for beat in directory.heartbeats))
    assert any(goes[0] in page.chunks for page in directory.inventories)


def test_only_the_later_word_about_a_chunk_is_reported(realm: Realm) -> None:
    server = realm.add()
    copied, deleted, lost = chunk(SMALL), chunk(SMALL), chunk(SMALL)
    work = Work(server.store, realm.client, lambda: None)
    work.gone([copied[0], deleted[0]])
    work.lost(lost[0])
    assert work.reports() == ([copied[0], deleted[0]], [], [lost[0]])
    for chunk_id, data in (copied, lost):
        server.store.put(chunk_id, data)
    reported = threading.Event()
    work = Work(server.store, realm.client, reported.set)
    work.take(Tasks(copy=[CopyTask(copied[0], SMALL, [])]))
    assert reported.wait(10)
    work.gone([copied[0], deleted[0]])
    work.lost(lost[0])
    assert work.reports() == ([deleted[0]], [copied[0]], [])
    work.gone([copied[0]])
    server.store.delete(copied[0])
    assert work.reports() == ([deleted[0], copied[0]], [], [])
    work.close()


def test_the_inventory_comes_in_pages_and_old_unknown_chunks_go(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servers.files.agent.INVENTORY_PAGE", 2)
    directory, realm = living.directory, living.realm
    server = living.realm.add()
    server.agent.id = 0
    old, young, known = chunk(LARGE), chunk(LARGE), chunk(SMALL)
    server.store.put(*old)
    server.store.put(*known)
    realm.clock.now += directory.older_than_seconds + 1
    server.store.put(*young)
    directory.unknown = [old[0], young[0]]
    server.start()
    directory.wait(lambda: bool(directory.inventories) and directory.inventories[-1].last)
    pages = directory.inventories
    assert [(len(page.chunks), page.first, page.last) for page in pages] == [
        (0, True, False),
        (2, False, False),
        (1, False, True),
    ]
    assert [i for page in pages for i in page.chunks] == sorted([old[0], young[0], known[0]])
    seen = len(directory.heartbeats)
    directory.wait(lambda: server.store.count == 2 and len(directory.heartbeats) > seen)
    assert server.store.page(b"", 10) == sorted([young[0], known[0]])


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_chunk_that_was_asked_for_is_reported_and_replaced(
    living: Living, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory, realm = living.directory, living.realm
    source, server = realm.add(), living.start()
    directory.wait(lambda: bool(directory.inventories))
    chunk_id, data = chunk(LARGE)
    realm.client.put(realm.addresses(1, 2), chunk_id, data)
    path = path_of(realm.root / "2", chunk_id)
    path.write_bytes(data[:5] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    assert realm.client.get(realm.addresses(2, 1), chunk_id) == data
    directory.wait(lambda: any(beat.missing == [chunk_id] for beat in directory.heartbeats))
    directory.tasks = Tasks(copy=[CopyTask(chunk_id, LARGE, realm.addresses(1))])
    directory.wait(lambda: any(beat.copied == [chunk_id] for beat in directory.heartbeats))
    assert server.store.check(chunk_id) is State.OK
    assert source.store.check(chunk_id) is State.OK
