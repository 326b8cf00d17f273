"""File servers and their clients: chunks are stored, forwarded, fetched, scrubbed and repaired.

Needs root for one test (a small tmpfs that is really full); it is skipped elsewhere.
"""

import ctypes
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.files import ChunkClient
from servers.files import store as store_module
from servers.files.addresses import Addresses
from servers.files.app import FileServer
from servers.files.config import FilesConfig
from servers.files.disk import ChunkFiles, identity
from servers.files.scrub import DOUBTED_MAX, Scrub
from servers.files.store import ChunkStore, State
from servers.files.tasks import Work
from servers.keys import new_realm_keys
from servers.web import Call, Door
from tests.support.inprocess import InProcessWire, make_keyring
from tests.support.times import Clock
from wire.chunking import new_chunk_id
from wire.errors import ReplyLost, TicketRefused, Unavailable, fail
from wire.limits import CHUNK_BYTES
from wire.messages.common import ServerAddress
from wire.messages.directory import (
    CopyTask,
    Heartbeat,
    Inventory,
    InventoryAnswer,
    Register,
    Registered,
    Tasks,
)
from wire.messages.files import PutChunk
from wire.tickets import Role, open_receipt

REALM = new_realm_keys()
KEYS = REALM["files"]
DIRECTORY_URL = "http://directory"
SMALL, LARGE = 1000, 200_000


class FakeDirectory:
    """The three calls of a file server, behind the real door. ``tasks`` are given out until ``forget``."""

    def __init__(self, clock: Clock) -> None:
        self.changed = threading.Condition()
        self.registered: list[Register] = []
        self.heartbeats: list[Heartbeat] = []
        self.inventories: list[Inventory] = []
        self.tasks = Tasks()
        self.servers: list[ServerAddress] = []
        self.on_page: Callable[[], object] = lambda: None
        self.unknown: list[bytes] = []
        self.older_than_seconds = 3600.0
        self.ids: dict[bytes, int] = {}
        self.forgotten: set[int] = set()
        door = Door("directory", REALM["directory"].tickets, clock)
        door.sealed("POST", "/v1/servers", self._register, Role.JOIN)
        door.sealed("POST", "/v1/servers/<int:server>/heartbeat", self._heartbeat, Role.JOIN)
        door.sealed("POST", "/v1/servers/<int:server>/inventory", self._inventory, Role.JOIN)
        self.app = door.app

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until ``condition`` holds; looked at after each call that arrives."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout=10)

    def _register(self, call: Call) -> Registered:
        message = call.message(Register)
        with self.changed:
            self.registered.append(message)
            number = self.ids.setdefault(message.identity, len(self.ids) + 1)
            self.forgotten.discard(number)
            self.changed.notify_all()
            return Registered(number, 0.02)

    def _heartbeat(self, call: Call, server: int) -> Tasks:
        with self.changed:
            if server in self.forgotten:
                raise fail(errno.ENOENT, "register again")
            self.heartbeats.append(call.message(Heartbeat))
            self.changed.notify_all()
            return msgspec.structs.replace(self.tasks, servers=self.servers)

    def _inventory(self, call: Call, server: int) -> InventoryAnswer:
        message = call.message(Inventory)
        with self.changed:
            self.inventories.append(message)
            if message.chunks:
                self.on_page()
            self.changed.notify_all()
            unknown = [chunk_id for chunk_id in message.chunks if chunk_id in self.unknown]
            return InventoryAnswer(unknown, self.older_than_seconds)


class Realm:
    """File servers in one process. They are not started: their ids are set here, as if registered."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wire = InProcessWire()
        self.clock = Clock()
        self.servers: list[FileServer] = []
        self.keyring = make_keyring({Role.FILES: KEYS.tickets[Role.FILES]})
        self.client = ChunkClient(self.wire, self.keyring, deadline_seconds=1.0)

    def config(self, number: int, **options: int) -> FilesConfig:
        url = f"http://files{number}"
        return FilesConfig(
            KEYS, self.root / str(number), f"files{number}", url, DIRECTORY_URL, clock=self.clock, **options
        )

    def add(self, **options: int) -> FileServer:
        number = len(self.servers) + 1
        server = FileServer(self.config(number, **options), self.wire)
        server.agent.id = number
        self.wire.apps[f"http://files{number}"] = server.app
        self.servers.append(server)
        for other in self.servers:
            other.addresses.learn(self.addresses(*range(1, number + 1)))
        return server

    def addresses(self, *numbers: int) -> list[ServerAddress]:
        return [ServerAddress(number, f"http://files{number}") for number in numbers]

    def kill(self, number: int) -> None:
        del self.wire.apps[f"http://files{number}"]


def watch(realm: Realm) -> list[tuple[str, str]]:
    """The host and request id of each request from now on."""
    seen: list[tuple[str, str]] = []
    # Before what may lose the request.
    realm.wire.before.insert(0, lambda url, headers: seen.append((url.split("/")[2], headers["DFS-Request"])))
    return seen


@pytest.fixture
def realm(tmp_path: Path) -> Iterator[Realm]:
    realm = Realm(tmp_path)
    yield realm
    for server in realm.servers:
        server.close()


def chunk(size: int) -> tuple[bytes, bytes]:
    data = os.urandom(size)
    return new_chunk_id(data), data


def path_of(server_root: Path, chunk_id: bytes) -> Path:
    return server_root / "chunks" / chunk_id.hex()[:2] / chunk_id.hex()


def everything_below(root: Path) -> set[Path]:
    """All files but the database's and the lock."""
    return {path for path in root.rglob("*") if path.is_file() and path.parent != root}


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


# The disk


def test_a_restart_keeps_everything(realm: Realm) -> None:
    config = realm.config(1)
    store = ChunkStore(config)
    chunks = dict(chunk(size) for size in (0, SMALL, LARGE, LARGE))
    for chunk_id, data in chunks.items():
        store.put(chunk_id, data)
    known = identity(config.root)
    store.close()
    store = ChunkStore(config)
    assert {chunk_id: store.get(chunk_id) for chunk_id in store.page(b"", 100)} == chunks
    assert (store.count, store.used_bytes) == (4, SMALL + 2 * LARGE)
    assert identity(config.root) == known
    store.close()


def test_two_servers_never_share_a_root(realm: Realm) -> None:
    store = ChunkStore(realm.config(1))
    with pytest.raises(OSError, match="another file server") as caught:
        ChunkStore(realm.config(1))
    assert caught.value.errno == errno.EBUSY
    store.close()


def test_leftovers_of_a_crash_are_swept(realm: Realm) -> None:
    config = realm.config(1)
    ChunkStore(config).close()
    (config.root / "new" / "7").write_bytes(b"half a chu")
    half, whole = chunk(LARGE), chunk(LARGE)
    path_of(config.root, half[0]).write_bytes(half[1][:1000])
    path_of(config.root, whole[0]).write_bytes(whole[1])  # named, but the crash came before its row
    store = ChunkStore(config)
    assert everything_below(config.root) == {path_of(config.root, whole[0])}
    assert store.page(b"", 10) == [whole[0]]
    assert store.get(whole[0]) == whole[1]
    assert store.used_bytes == LARGE
    store.close()


def test_a_row_whose_file_is_gone_goes_too(realm: Realm, caplog: pytest.LogCaptureFixture) -> None:
    store = ChunkStore(realm.config(1))
    chunk_id, data = chunk(LARGE)
    store.put(chunk_id, data)
    store.close()
    path_of(realm.root / "1", chunk_id).unlink()
    store = ChunkStore(realm.config(1))
    assert store.check(chunk_id) is State.MISSING
    assert store.count == 0
    assert chunk_id.hex() in caplog.text
    store.close()


def test_a_changed_limit_between_rows_and_files_loses_nothing(realm: Realm) -> None:
    chunks = dict(chunk(size) for size in (SMALL, LARGE))
    for inline_bytes_max in (64 * 1024, 0, 10**6, 64 * 1024):
        store = ChunkStore(realm.config(1, inline_bytes_max=inline_bytes_max))
        for chunk_id, data in chunks.items():
            store.put(chunk_id, data)
            assert store.get(chunk_id) == data
        assert store.count == 2
        store.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = tmp_path / "tiny"
    target.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(target), b"tmpfs", 0, b"size=3m") != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    yield target
    assert libc.umount2(os.fsencode(target), 2) == 0  # MNT_DETACH


@pytest.mark.parametrize("size", [SMALL * 30, LARGE])
def test_a_full_disk_is_enospc_and_leaves_nothing_behind(
    tiny_disk: Path, size: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = FilesConfig(KEYS, tiny_disk / "root", "tiny", "http://tiny", DIRECTORY_URL, reserve_bytes=0)
    store = ChunkStore(config)
    # The check of free space races with other programs that fill the disk: go on as if it had passed.
    monkeypatch.setattr(ChunkStore, "space", lambda _: store_module.Space(10**9, 10**9))
    kept: dict[bytes, bytes] = {}
    with pytest.raises(OSError) as caught:
        while True:
            chunk_id, data = chunk(size)
            store.put(chunk_id, data)
            kept[chunk_id] = data
    assert caught.value.errno == errno.ENOSPC
    assert kept
    assert {chunk_id: store.get(chunk_id) for chunk_id in store.page(b"", 1000)} == kept
    assert len(everything_below(config.root)) == (len(kept) if size == LARGE else 0)
    store.close()


def test_a_reserve_is_kept_so_that_deleting_works(tiny_disk: Path) -> None:
    config = FilesConfig(KEYS, tiny_disk / "root", "tiny", "http://tiny", DIRECTORY_URL, reserve_bytes=10**6)
    store = ChunkStore(config)
    with pytest.raises(OSError, match="the file server is full") as caught:
        while True:
            store.put(*chunk(LARGE))
    assert caught.value.errno == errno.ENOSPC
    for chunk_id in store.page(b"", 100):
        assert store.delete(chunk_id)
    store.put(*chunk(LARGE))
    store.close()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), max_size=12), st.integers(1, 5))
def test_pages_name_all_ids_in_order(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[int, bool]], limit: int
) -> None:
    root = tmp_path_factory.mktemp("pages")
    store = ChunkStore(FilesConfig(KEYS, root, "pages", "http://pages", DIRECTORY_URL, inline_bytes_max=50))
    expected = []
    for size, deleted in puts:
        chunk_id, data = chunk(size)
        store.put(chunk_id, data)
        if deleted:
            store.delete(chunk_id)
        else:
            expected.append(chunk_id)
    seen: list[bytes] = []
    while page := store.page(seen[-1] if seen else b"", limit):
        assert len(page) <= limit
        seen += page
    store.close()
    assert seen == sorted(expected)
    assert store.count == len(expected)


def test_many_at_once_put_and_delete_the_same_chunks(realm: Realm) -> None:
    store = realm.add().store
    chunks = [chunk(size) for size in (SMALL, LARGE, LARGE)]
    failures: list[BaseException] = []

    def work(delete: bool) -> None:
        try:
            for _ in range(10):
                for chunk_id, data in chunks:
                    if delete:
                        store.delete(chunk_id)
                    else:
                        store.put(chunk_id, data)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number == 3,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    here = store.page(b"", 10)
    assert all(store.check(chunk_id) is State.OK for chunk_id in here)
    assert (store.count, store.used_bytes) == (len(here), sum(store.size(chunk_id) for chunk_id in here))
    files = {path_of(realm.root / "1", chunk_id) for chunk_id, data in chunks[1:] if chunk_id in here}
    assert everything_below(realm.root / "1") == files


# The scrub


def spoil(server: FileServer, root: Path, chunk_id: bytes) -> None:
    path = path_of(root, chunk_id)
    if path.exists():
        path.write_bytes(bytes(path.stat().st_size))
        return
    with server.store._database.read() as connection:
        connection.exec_driver_sql("UPDATE chunks SET data = zeroblob(size) WHERE id = ?", (chunk_id,))
        connection.commit()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_scrub_sets_damaged_chunks_aside(
    realm: Realm, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    server = realm.add()
    good, bad = chunk(size), chunk(size)
    for chunk_id, data in (good, bad):
        server.store.put(chunk_id, data)
    assert server.scrub.scrub_once() == []
    spoil(server, realm.root / "1", bad[0])
    assert server.scrub.scrub_once() == [bad[0]]
    assert server.store.page(b"", 10) == [good[0]]
    assert (realm.root / "1" / "damaged" / bad[0].hex()).stat().st_size == size
    assert server.scrub.scrub_once() == []


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_the_machine_fails_to_read_is_not_damaged_and_the_scrub_goes_on(
    realm: Realm, size: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = realm.add()
    chunks = sorted(chunk(size) for _ in range(2))
    for chunk_id, data in chunks:
        server.store.put(chunk_id, data)
    spoil(server, realm.root / "1", chunks[1][0])
    row, file = ChunkStore._row, ChunkFiles.read

    def no_descriptors(store: ChunkStore, chunk_id: bytes) -> tuple[int, bytes | None] | None:
        if chunk_id == chunks[0][0]:
            raise fail(errno.EIO if size == SMALL else errno.EMFILE)
        return row(store, chunk_id)

    def no_memory(files: ChunkFiles, chunk_id: bytes, size: int, *, from_disk: bool = False) -> bytes:
        if chunk_id == chunks[0][0]:
            raise fail(errno.ENOMEM)
        return file(files, chunk_id, size, from_disk=from_disk)

    with monkeypatch.context() as patch:
        patch.setattr(ChunkStore, "_row", no_descriptors)
        assert server.scrub.scrub_once() == [chunks[1][0]]
    with monkeypatch.context() as patch:
        patch.setattr(ChunkFiles, "read", no_memory)
        assert server.scrub.scrub_once() == []
    assert server.store.get(chunks[0][0]) == chunks[0][1]


def test_however_many_are_doubted_the_others_have_their_turn(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = realm.add().store
    stranger, ours = chunk(1)[0], chunk(SMALL)
    store.put(*ours)
    scrub = Scrub(store, 0.001, lambda _: None)
    had_its_turn = threading.Event()

    def look(_store: ChunkStore, chunk_id: bytes) -> State:
        scrub.doubt(stranger)  # there is always one more
        if chunk_id == ours[0]:
            had_its_turn.set()
        return State.OK

    monkeypatch.setattr(ChunkStore, "set_aside_damaged", look)
    for _ in range(2 * DOUBTED_MAX):
        scrub.doubt(stranger)
    scrub.start()
    assert had_its_turn.wait(10)
    scrub.close()


# The life with the directory


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
