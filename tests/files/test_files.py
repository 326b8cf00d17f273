"""File servers and their clients: chunks are stored, forwarded and fetched."""

import errno
import logging
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clients.files import ChunkClient
from servers.files.addresses import Addresses
from servers.files.disk import ChunkFiles
from servers.files.store import ChunkStore, State
from servers.keys import new_realm_keys
from tests.support.files import (
    LARGE,
    REALM,
    SMALL,
    Realm,
    chunk,
    everything_below,
    path_of,
    watch,
)
from tests.support.inprocess import make_keyring
from wire.errors import ReplyLost, TicketRefused, Unavailable, fail
from wire.limits import CHUNK_BYTES
from wire.messages.common import ServerAddress
from wire.messages.files import PutChunk
from wire.tickets import Role, open_receipt

# Storing and fetching


@pytest.mark.parametrize("size", [0, 1, SMALL, 64 * 1024, 64 * 1024 + 1, LARGE, CHUNK_BYTES])
def test_what_is_put_is_got(realm: Realm, size: int) -> None:
    server = realm.add()
    chunk_id, data = chunk(size)
    stored = realm.client.put(realm.addresses(1), chunk_id, data)
    assert stored.servers == [1]
    assert realm.client.get(realm.addresses(1), chunk_id) == data
    assert (server.store.size(chunk_id), server.store.count, server.store.used_bytes) == (size, 1, size)
    assert path_of(realm.root / "1", chunk_id).exists() == (size > 64 * 1024)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_does_not_fit_its_id_is_refused_and_not_stored(realm: Realm, size: int) -> None:
    server = realm.add()
    chunk_id, data = chunk(size)
    wrong = PutChunk(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(OSError, match="are not chunk") as caught:
        realm.client.put_once(realm.addresses(1)[0], chunk_id, wrong, 1.0)
    assert caught.value.errno == errno.EBADMSG
    assert not server.store.has(chunk_id)
    assert everything_below(realm.root / "1") == set()


def test_an_unknown_chunk_is_enoent(realm: Realm) -> None:
    realm.add()
    with pytest.raises(FileNotFoundError):
        realm.client.get(realm.addresses(1), chunk(1)[0])


def test_an_id_that_is_none_is_refused(realm: Realm) -> None:
    realm.add()
    for bad in (b"", b"x" * 47, b"x" * 49):
        with pytest.raises(OSError, match=r"96 hexadecimal digits|Not Found") as caught:
            realm.client.put_once(realm.addresses(1)[0], bad, PutChunk(b"x"), 1.0)
        assert caught.value.errno in (errno.EINVAL, errno.EPROTO)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_putting_it_again_changes_only_its_age(realm: Realm, size: int) -> None:
    store = realm.add().store
    chunk_id, data = chunk(size)
    store.put(chunk_id, data)
    realm.clock.now += 100
    assert store.stored_before([chunk_id], realm.clock.now) == [chunk_id]
    store.put(chunk_id, data)
    assert store.stored_before([chunk_id], realm.clock.now) == []
    assert (store.count, store.used_bytes, store.get(chunk_id)) == (1, size, data)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_is_deleted_is_gone(realm: Realm, size: int) -> None:
    store = realm.add().store
    chunk_id, data = chunk(size)
    store.put(chunk_id, data)
    assert store.delete(chunk_id)
    assert not store.delete(chunk_id)
    assert store.check(chunk_id) is State.MISSING
    assert (store.count, store.used_bytes, everything_below(realm.root / "1")) == (0, 0, set())


def test_a_file_that_was_cut_is_an_error_and_a_put_heals_it(
    realm: Realm, caplog: pytest.LogCaptureFixture
) -> None:
    store = realm.add().store
    chunk_id, data = chunk(LARGE)
    store.put(chunk_id, data)
    os.truncate(path_of(realm.root / "1", chunk_id), 10)
    with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="10 bytes on disk") as caught:
        realm.client.get(realm.addresses(1), chunk_id)
    assert caught.value.errno == errno.EIO
    store.put(chunk_id, data)
    assert store.get(chunk_id) == data


def test_an_unregistered_server_stores_nothing(realm: Realm) -> None:
    realm.add().agent.id = 0
    with pytest.raises(Unavailable, match="not registered yet"):
        realm.client.put(realm.addresses(1), *chunk(SMALL))


def test_a_put_that_comes_second_does_not_endanger_what_the_first_one_stored(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = realm.add().store
    chunk_id, data = chunk(LARGE)
    stage = ChunkFiles.stage

    def fails(_folder: Path) -> None:
        raise fail(errno.EIO)

    def first_one_is_faster(files: ChunkFiles, data: bytes) -> Path:
        staged = stage(files, data)
        monkeypatch.setattr(ChunkFiles, "stage", stage)
        store.put(chunk_id, data)
        monkeypatch.setattr("servers.files.disk.sync_folder", fails)
        return staged

    monkeypatch.setattr(ChunkFiles, "stage", first_one_is_faster)
    store.put(chunk_id, data)
    assert store.get(chunk_id) == data
    assert store.count == 1
    assert not list((realm.root / "1" / "new").iterdir())


# Forwarding and receipts


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_receipt_names_who_has_it(realm: Realm, size: int) -> None:
    servers = [realm.add(), realm.add(), realm.add()]
    chunk_id, data = chunk(size)
    stored = realm.client.put(realm.addresses(2, 1, 3), chunk_id, data)
    receipt = open_receipt(REALM["directory"].tickets[Role.JOIN], stored.receipt)
    assert stored.servers == receipt.servers == [2, 1, 3]
    assert (receipt.chunk, receipt.size, receipt.issued) == (chunk_id, size, realm.clock.now)
    assert all(server.store.get(chunk_id) == data for server in servers)


def test_a_dead_secondary_is_left_out_and_then_left_alone(realm: Realm) -> None:
    realm.add(), realm.add(), realm.add()
    realm.kill(2)
    seen = watch(realm)
    for expected in ({"files1", "files2", "files3"}, {"files1", "files3"}):
        seen.clear()
        assert realm.client.put(realm.addresses(1, 2, 3), *chunk(SMALL)).servers == [1, 3]
        assert {host for host, _ in seen} == expected


def test_a_secondary_that_is_another_server_now_is_left_out(realm: Realm) -> None:
    realm.add()
    realm.add().agent.id = 7
    assert realm.client.put(realm.addresses(1, 2), *chunk(SMALL)).servers == [1]


def test_an_unknown_secondary_is_left_out(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servers.files.addresses.ASK_SECONDS", 0.01)
    realm.add()
    seen = watch(realm)
    servers = [*realm.addresses(1), ServerAddress(7, "http://files7")]
    assert realm.client.put(servers, *chunk(SMALL)).servers == [1]
    assert {host for host, _ in seen} == {"files1"}


def test_the_directory_is_asked_for_a_server_that_has_just_joined(realm: Realm) -> None:
    one, two = realm.addresses(1, 2)
    addresses = Addresses(lambda: addresses.learn([two, one]))
    assert addresses.find([1, 2]) == [one, two]


def test_what_does_not_fit_is_not_forwarded(realm: Realm) -> None:
    realm.add(), realm.add()
    seen = watch(realm)
    with pytest.raises(OSError, match="are not chunk"):
        realm.client.put_once(realm.addresses(1)[0], chunk(1)[0], PutChunk(b"x", [2]), 1.0)
    assert [host for host, _ in seen] == ["files1"]


def test_a_put_that_fails_keeps_its_place_until_all_is_forwarded(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    realm.add(forwarding_requests_max=1), realm.add()
    under_way, refused, go_on = threading.Event(), threading.Event(), threading.Event()

    def refuse(_store: ChunkStore, _chunk_id: bytes, _data: bytes) -> None:
        refused.set()
        raise fail(errno.ENOSPC)

    monkeypatch.setattr(ChunkStore, "put_verified", refuse)

    def hold(url: str, _headers: Mapping[str, str]) -> None:
        if url.startswith("http://files2"):
            under_way.set()
            assert go_on.wait(10)

    realm.wire.before.append(hold)
    primary = realm.addresses(1)[0]

    def put() -> None:
        chunk_id, data = chunk(SMALL)
        realm.client.put_once(primary, chunk_id, PutChunk(data, [2]), 1.0)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(put)
        assert under_way.wait(10) and refused.wait(10)
        with pytest.raises(Unavailable, match="wait for secondaries"):
            put()
        go_on.set()
        assert isinstance(first.exception(), OSError)


def test_a_request_is_forwarded_under_its_own_id(realm: Realm) -> None:
    realm.add(), realm.add()
    primary, secondary = realm.addresses(1, 2)
    seen = watch(realm)
    chunk_id, data = chunk(SMALL)
    realm.client.put_once(primary, chunk_id, PutChunk(data, [secondary.id]), 1.0, "some-request")
    assert seen == [("files1", "some-request"), ("files2", "some-request")]


def test_servers_that_wait_for_each_other_keep_threads_for_others(realm: Realm) -> None:
    realm.add(forwarding_requests_max=0), realm.add()
    with pytest.raises(Unavailable, match="wait for secondaries"):
        first, second = realm.addresses(1, 2)
        chunk_id, data = chunk(1)
        realm.client.put_once(first, chunk_id, PutChunk(data, [second.id]), 1.0)
    assert realm.client.put(realm.addresses(1, 2), *chunk(SMALL)).servers == [2]


# Failover


def test_a_dead_primary_is_replaced(realm: Realm) -> None:
    realm.add(), realm.add(), realm.add()
    realm.kill(1)
    assert realm.client.put(realm.addresses(1, 2, 3), *chunk(LARGE)).servers == [2, 3]


def test_a_full_primary_is_replaced(realm: Realm) -> None:
    realm.add(capacity_bytes=LARGE), realm.add()
    realm.client.put(realm.addresses(1), *chunk(LARGE - 1))
    assert realm.client.put(realm.addresses(1, 2), *chunk(LARGE)).servers == [2]
    with pytest.raises(OSError, match="full") as caught:
        realm.client.put(realm.addresses(1), *chunk(LARGE))
    assert caught.value.errno == errno.ENOSPC


def test_nobody_takes_it(realm: Realm) -> None:
    with pytest.raises(Unavailable, match=r"files1.*files2"):
        realm.client.put(realm.addresses(1, 2), *chunk(SMALL))
    with pytest.raises(Unavailable, match=r"files1.*files2"):
        realm.client.get(realm.addresses(1, 2), chunk(SMALL)[0])


def test_a_server_that_comes_back_in_time_is_found(realm: Realm) -> None:
    server = realm.add()
    chunk_id, data = chunk(SMALL)
    server.store.put(chunk_id, data)
    realm.kill(1)
    asked = 0

    def come_back(_url: str, _headers: Mapping[str, str]) -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            realm.wire.apps["http://files1"] = server.app

    realm.wire.before.append(come_back)
    assert realm.client.get(realm.addresses(1), chunk_id) == data


@pytest.mark.parametrize("trouble", ["dead", "lying", "cut", "missing", "silent"])
def test_a_bad_replica_costs_one_failover(
    realm: Realm, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = realm.add()
    realm.add()
    chunk_id, data = chunk(LARGE)
    realm.client.put(realm.addresses(1, 2), chunk_id, data)
    path = path_of(realm.root / "1", chunk_id)
    match trouble:
        case "dead":
            realm.kill(1)
        case "lying":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "cut":
            path.write_bytes(data[:-1])
        case "missing":
            first.store.delete(chunk_id)
        case "silent":
            silence(realm, "files1")
    seen = watch(realm)
    assert realm.client.get(realm.addresses(1, 2), chunk_id) == data
    told = ["files1"] if trouble == "lying" else []
    assert [host for host, _ in seen] == ["files1", *told, "files2"]


def silence(realm: Realm, host: str) -> None:
    """The server takes requests and never answers."""

    def ignore(url: str, _headers: Mapping[str, str]) -> None:
        if host in url:
            raise ReplyLost("silence")

    realm.wire.before.append(ignore)


def test_if_no_replica_is_good_the_error_says_what_each_said(realm: Realm) -> None:
    realm.add()
    second = realm.add()
    chunk_id, data = chunk(LARGE)
    realm.client.put(realm.addresses(1, 2), chunk_id, data)
    path_of(realm.root / "1", chunk_id).write_bytes(bytes(LARGE))
    second.store.delete(chunk_id)
    with pytest.raises(OSError, match=r"files1: what it answered is not.*files2: .* is not here") as caught:
        realm.client.get(realm.addresses(1, 2), chunk_id)
    assert caught.value.errno == errno.EIO


def test_another_realms_ticket_opens_nothing(realm: Realm, caplog: pytest.LogCaptureFixture) -> None:
    server = realm.add()
    stranger = new_realm_keys()["files"].tickets[Role.FILES]
    client = ChunkClient(realm.wire, make_keyring({Role.FILES: stranger}), deadline_seconds=1.0)
    chunk_id, data = chunk(SMALL)
    with pytest.raises(TicketRefused):
        client.put(realm.addresses(1), chunk_id, data)
    server.store.put(chunk_id, data)
    with pytest.raises(TicketRefused):
        client.get(realm.addresses(1), chunk_id)
