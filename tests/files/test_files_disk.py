"""How a file server keeps chunks: restarts, full disks, the scrub.

Needs root for one test (a small tmpfs that is really full); it is skipped elsewhere.
"""

import ctypes
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servers.files import disk as disk_module
from servers.files import store as store_module
from servers.files.config import FilesConfig
from servers.files.disk import ChunkFiles, identity
from servers.files.scrub import DOUBTED_MAX, Scrub
from servers.files.store import ChunkStore, State
from tests.support.files import (
    DIRECTORY_URL,
    KEYS,
    LARGE,
    SMALL,
    Realm,
    chunk,
    everything_below,
    path_of,
    spoil,
)
from tests.support.processes import disk_name
from tests.support.vfs import raises
from wire.errors import fail

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
    for chunk_id, _ in (half, whole):
        path_of(config.root, chunk_id).parent.mkdir(exist_ok=True)
    path_of(config.root, half[0]).write_bytes(half[1][:1000])
    path_of(config.root, whole[0]).write_bytes(whole[1])  # named, but the crash came before its row
    store = ChunkStore(config)
    assert everything_below(config.root) == {path_of(config.root, whole[0])}
    assert store.page(b"", 10) == [whole[0]]
    assert store.get(whole[0]) == whole[1]
    assert store.used_bytes == LARGE
    store.close()


def test_a_chunks_folder_is_on_disk_before_the_chunk_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the first attempt failed halfway: the next one finds a folder that a crash may take away."""
    files = ChunkFiles(tmp_path)
    chunk_id, data = chunk(LARGE)
    synced: list[Path] = []

    def sync_folder(folder: Path) -> None:
        synced.append(folder)
        if len(synced) == 1:
            raise fail(errno.EIO)

    monkeypatch.setattr(disk_module, "sync_folder", sync_folder)
    with raises(errno.EIO):
        files.publish(files.stage(data), chunk_id)
    assert files.size(chunk_id) is None
    for _ in range(2):
        files.publish(files.stage(data), chunk_id)
    folder = path_of(tmp_path, chunk_id).parent
    assert synced == [folder.parent, folder.parent, folder, folder]
    files.close()


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
    if libc.mount(disk_name().encode(), os.fsencode(target), b"tmpfs", 0, b"size=3m") != 0:
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
