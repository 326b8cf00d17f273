"""The client's cache: local copies on disk, and what is believed of inodes in memory."""

import errno
import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cache import copies
from cache.copies import CopyStore, LocalCopy, NeedsManifest
from cache.index import DirtyRecord, Index, Mark
from cache.indices import IndexSet
from tests.support.lending import dirty_chunks, fetch
from wire.chunking import new_chunk_id
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ChunkAt

LIMIT = 10**9


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CopyStore]:
    store = CopyStore(tmp_path / "cache", LIMIT)
    yield store
    store.close()


def commit(copy: LocalCopy, version: int) -> None:
    snapshot = copy.snapshot_dirty()
    ids = {i: (new_chunk_id(copy.chunk_bytes(i)), len(copy.chunk_bytes(i))) for i in snapshot.chunks}
    copy.begin_commit(snapshot, b"c" * 16, ids)
    copy.committed(version)


# Reading and versions


def test_the_copy_of_an_inode_is_one_object_while_it_is_open(store: CopyStore) -> None:
    first, second = store.open(7), store.open(7)
    assert first is second
    first.close()
    second.write(0, b"still open")
    second.close()
    assert store.dirty_inos() == [7]


def test_a_chunk_is_learned_fetched_and_read(store: CopyStore) -> None:
    copy = store.open(7)
    copy.adopt(1, CHUNK_BYTES + 10)
    with pytest.raises(NeedsManifest) as need:
        copy.missing(5, 1)
    assert need.value.index == 0
    place = ChunkAt(1, new_chunk_id(b"0123456789"), 10, [3])
    copy.learn(0, 2, {1: place})
    assert (copy.learned(0), copy.learned(1)) == (True, True)
    assert copy.missing(0, 10**9) == [1]
    assert copy.chunk_at(1) == place
    assert not copy.fill(1, b"x" * 48, b"another")
    assert copy.fill(1, place.id, b"0123456789")
    assert copy.missing(0, 10**9) == []
    assert copy.read(CHUNK_BYTES - 2, 100) == b"\0\0" + b"0123456789"
    assert copy.chunk_at(0) is None
    copy.close()


def test_a_newer_version_keeps_what_did_not_change(store: CopyStore) -> None:
    copy = store.open(7)
    chunks = {0: b"a" * CHUNK_BYTES, 1: b"b" * CHUNK_BYTES, 2: b"c" * 10}
    places = fetch(copy, 1, chunks, 2 * CHUNK_BYTES + 10)
    copy.adopt(2, 2 * CHUNK_BYTES + 10)
    with pytest.raises(NeedsManifest):
        copy.missing(0, 1)
    changed = ChunkAt(1, new_chunk_id(b"B"), 1, [1])
    copy.learn(0, 3, {0: places[0], 1: changed})
    assert copy.missing(0, 10**9) == [1]
    assert copy.read(CHUNK_BYTES, 3) == b"\0\0\0", "the outdated chunk was punched"
    assert copy.read(2 * CHUNK_BYTES, 100) == bytes(10), "a hole now"
    assert copy.fill(1, changed.id, b"B")
    assert copy.read(CHUNK_BYTES, 3) == b"B\0\0"
    copy.close()


def test_what_is_dirty_moves_to_no_other_version(store: CopyStore) -> None:
    copy = store.open(7)
    copy.write(0, b"x")
    with pytest.raises(ValueError, match="dirty"):
        copy.adopt(2, 1)
    copy.discard()
    copy.adopt(2, 1)
    assert (copy.version, copy.size, copy.dirty) == (2, 1, False)
    copy.close()


# Changes and commits


def test_a_chunk_is_changed_in_part_only_if_it_is_here(store: CopyStore) -> None:
    copy = store.open(7)
    copy.adopt(1, 100)
    with pytest.raises(ValueError, match="fetched"):
        copy.write(10, b"x")
    with pytest.raises(ValueError, match="fetched"):
        copy.punch(10, 5)
    with pytest.raises(ValueError, match="fetched"):
        copy.truncate(50)
    assert not copy.dirty
    copy.write(0, b"y" * 100)
    assert copy.read(0, 200) == b"y" * 100
    copy.close()


def test_what_was_cut_off_is_zeros_when_it_grows_again(store: CopyStore) -> None:
    copy = store.open(7)
    copy.write(0, b"abcdef")
    copy.truncate(2)
    copy.truncate(4)
    assert copy.read(0, 10) == b"ab\0\0"
    copy.write(6, b"z")
    assert copy.read(0, 10) == b"ab\0\0\0\0z"
    copy.close()


def test_a_snapshot_says_what_a_commit_sends(store: CopyStore) -> None:
    copy = store.open(7)
    fetch(copy, 5, {0: b"a" * CHUNK_BYTES, 1: b"b" * 100}, CHUNK_BYTES + 100)
    copy.truncate(50)
    copy.write(2 * CHUNK_BYTES, b"far")
    snapshot = copy.snapshot_dirty()
    assert (snapshot.base, snapshot.size, snapshot.keep_size) == (5, 2 * CHUNK_BYTES + 3, 50)
    assert snapshot.chunks == [0, 2]
    assert copy.chunk_bytes(0) == b"a" * 50 + bytes(CHUNK_BYTES - 50)
    assert copy.chunk_bytes(1) == b"", "a hole"
    assert copy.chunk_bytes(2) == b"far"
    copy.close()


def test_what_is_written_after_the_snapshot_stays_dirty(store: CopyStore) -> None:
    copy = store.open(7)
    copy.write(0, b"one")
    copy.write(CHUNK_BYTES, b"two")
    snapshot = copy.snapshot_dirty()
    copy.write(1, b"N")
    ids = {i: (new_chunk_id(b"any"), 3) for i in snapshot.chunks}
    copy.begin_commit(snapshot, b"c" * 16, ids)
    with pytest.raises(ValueError, match="under way"):
        copy.snapshot_dirty()
    copy.committed(9)
    assert (copy.version, copy.dirty, dirty_chunks(copy)) == (9, True, [0])
    assert copy.chunk_at(0) is None, "no committed chunk is what is here"
    commit(copy, 10)
    assert (copy.version, copy.dirty, copy.missing(0, 10**9)) == (10, False, [])
    copy.close()


def test_a_snapshot_that_was_replaced_is_not_committed(store: CopyStore) -> None:
    copy = store.open(7)
    copy.write(0, b"one")
    first = copy.snapshot_dirty()
    copy.write(0, b"two")
    second = copy.snapshot_dirty()
    ids = {0: (new_chunk_id(b"two"), 3)}
    with pytest.raises(ValueError, match="replaced"):
        copy.begin_commit(first, b"c" * 16, ids)
    with pytest.raises(ValueError, match="begun"):
        copy.committed(3)
    copy.begin_commit(second, b"c" * 16, ids)
    copy.committed(3)
    assert not copy.dirty
    copy.close()


def test_a_long_list_of_dirty_chunks_goes_in_several_commits(store: CopyStore) -> None:
    copy = store.open(7)
    for index in range(5):
        copy.write(index * CHUNK_BYTES, b"x")
    sent = []
    while copy.dirty:
        snapshot = copy.snapshot_dirty(chunks_max=2)
        sent.append(snapshot.chunks)
        ids = {i: (new_chunk_id(b"x"), 1) for i in snapshot.chunks}
        copy.begin_commit(snapshot, b"c" * 16, ids)
        copy.committed(copy.version + 1)
    assert sent == [[0, 1], [2, 3], [4]]
    copy.close()


def test_the_first_of_several_commits_has_the_chunk_that_was_cut(store: CopyStore) -> None:
    copy = store.open(7)
    fetch(copy, 1, {2: b"c" * CHUNK_BYTES}, 3 * CHUNK_BYTES)
    copy.truncate(2 * CHUNK_BYTES + 1)
    for index in (0, 1, 3):
        copy.write(index * CHUNK_BYTES, b"x")
    assert copy.snapshot_dirty(2).chunks == [0, 2], "the base's would come to light again behind the cut"
    copy.close()


def test_what_was_changed_and_changed_back_is_not_dirty(store: CopyStore) -> None:
    copy = store.open(7)
    copy.truncate(20)
    copy.truncate(0)
    assert not copy.dirty
    copy.close()
    assert store.dirty_inos() == []


# What survives the process


def reopened(store: CopyStore, tmp_path: Path) -> CopyStore:
    store.close()
    return CopyStore(tmp_path / "cache", LIMIT)


def test_clean_and_dirty_content_survive(store: CopyStore, tmp_path: Path) -> None:
    clean, dirty = store.open(1), store.open(2)
    fetch(clean, 4, {0: b"clean"}, 5)
    dirty.set_origin(1, b"name")
    dirty.write(0, b"dirty")
    again = reopened(store, tmp_path)
    assert again.dirty_inos() == [2]
    clean, dirty = again.open(1), again.open(2)
    assert (clean.version, clean.size, clean.missing(0, 5), clean.read(0, 9)) == (4, 5, [], b"clean")
    assert clean.chunk_at(0) is not None
    assert (dirty.origin(), dirty_chunks(dirty), dirty.read(0, 9)) == ((1, b"name"), [0], b"dirty")
    again.close()


def test_a_begun_commit_survives_with_what_came_after(store: CopyStore, tmp_path: Path) -> None:
    copy = store.open(2)
    copy.write(0, b"sent")
    copy.write(CHUNK_BYTES, b"sent too")
    snapshot = copy.snapshot_dirty()
    ids = {0: (new_chunk_id(b"sent"), 4), 1: (new_chunk_id(b"sent too"), 8)}
    copy.begin_commit(snapshot, b"i" * 16, ids)
    before = copy.pending()
    assert before is not None and not before.later_changes
    copy.write(0, b"S")
    again = reopened(store, tmp_path)
    copy = again.open(2)
    pending = copy.pending()
    assert pending is not None
    assert (pending.commit_id, pending.chunk_ids, pending.later_changes) == (b"i" * 16, ids, True)
    copy.committed(8)
    assert (copy.version, dirty_chunks(copy), copy.pending()) == (8, [0], None)
    again.close()


def test_a_second_mount_is_refused(store: CopyStore, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="in use by another mount") as caught:
        CopyStore(tmp_path / "cache", LIMIT)
    assert caught.value.errno == errno.EBUSY
    reopened(store, tmp_path).close()


def test_only_the_owner_can_look(store: CopyStore, tmp_path: Path) -> None:
    copy = store.open(2)
    copy.write(0, b"secret")
    for path in (tmp_path / "cache").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    copy.close()


@pytest.mark.parametrize("rebooted", [False, True])
def test_after_a_loss_of_power_clean_content_is_not_believed(tmp_path: Path, rebooted: bool) -> None:
    store = CopyStore(tmp_path / "cache", LIMIT)
    clean, dirty = store.open(1), store.open(2)
    fetch(clean, 4, {0: b"clean"}, 5)
    clean.close()
    dirty.write(0, b"dirty")
    store.close()
    index = Index(tmp_path / "cache" / "index")
    mark = index._get(0, Mark)
    assert mark is not None
    boot = "another boot" if rebooted else mark.boot
    index._put(0, Mark(boot, False, index.era))
    index._cache.close()
    store = CopyStore(tmp_path / "cache", LIMIT)
    clean, dirty = store.open(1), store.open(2)
    assert (clean.version, clean.size) == ((0, 0) if rebooted else (4, 5))
    assert (dirty_chunks(dirty), dirty.read(0, 9)) == ([0], b"dirty")
    store.close()


class Bomb:
    """What a planted pickle would do."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (os.environ["BOMB"],)


def test_a_planted_pickle_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    CopyStore(tmp_path / "cache", LIMIT).close()
    bomb = sqlite3.Binary(pickle.dumps(Bomb()))
    with sqlite3.connect(tmp_path / "cache" / "index" / "cache.db") as database:
        for key, raw in ((5, 1), (-6, 1), (bomb, 0)):
            database.execute(
                "INSERT INTO Cache (key, raw, mode, value) VALUES (?, ?, 4, ?)", (key, raw, bomb)
            )
    database.close()
    path = tmp_path / "cache" / "copies" / "06"
    path.mkdir(parents=True)
    (path / "6").touch()
    store = CopyStore(tmp_path / "cache", LIMIT)
    store.open(5).close()
    assert store.dirty_inos() == [6]
    with pytest.raises(OSError, match="is not known") as caught:
        store.open(6)
    assert caught.value.errno == errno.EIO
    store.close()
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bytes(bomb))
    assert (tmp_path / "exploded").exists(), "the bomb works"


def killed(tmp_path: Path, store: CopyStore) -> CopyStore:
    """The store that a process finds after the one of ``store`` was killed."""
    shutil.copytree(tmp_path / "cache", tmp_path / "killed")
    store.close()
    return CopyStore(tmp_path / "killed", LIMIT)


def test_a_write_during_a_commit_survives_a_kill(store: CopyStore, tmp_path: Path) -> None:
    copy = store.open(2)
    copy.write(0, b"sent")
    snapshot = copy.snapshot_dirty()
    ids = {0: (new_chunk_id(b"sent"), 4)}
    copy.begin_commit(snapshot, b"i" * 16, ids)
    copy.write(0, b"SENT")
    again = killed(tmp_path, store)
    copy = again.open(2)
    pending = copy.pending()
    assert pending is not None and pending.later_changes
    copy.committed(8)
    assert (dirty_chunks(copy), copy.read(0, 9)) == ([0], b"SENT")
    again.close()


def test_a_cut_during_a_commit_limits_what_the_next_one_keeps(store: CopyStore) -> None:
    copy = store.open(2)
    copy.write(0, b"a" * CHUNK_BYTES)
    copy.write(CHUNK_BYTES, b"b" * 10)
    snapshot = copy.snapshot_dirty()
    copy.begin_commit(snapshot, b"c" * 16, {i: (new_chunk_id(b"x"), 1) for i in (0, 1)})
    copy.truncate(CHUNK_BYTES)
    copy.truncate(CHUNK_BYTES + 10)
    copy.committed(3)
    again = copy.snapshot_dirty()
    assert (copy.dirty, again.keep_size, again.chunks) == (True, CHUNK_BYTES, [])
    assert copy.chunk_at(1) is None
    copy.close()


def test_an_outdated_chunk_is_not_believed_after_a_kill(store: CopyStore, tmp_path: Path) -> None:
    copy = store.open(2)
    old = fetch(copy, 1, {0: b"old"}, 3)
    copy.close()
    copy = store.open(2)
    fetch(copy, 2, {0: b"new"}, 3)
    again = killed(tmp_path, store)
    copy = again.open(2)
    copy.adopt(3, 3)
    copy.learn(0, 1, old)
    assert copy.missing(0, 3) == [0], "the old content was restored elsewhere, and is not here any more"
    again.close()


def test_what_was_true_of_an_older_version_is_learned_again_after_a_kill(
    store: CopyStore, tmp_path: Path
) -> None:
    copy = store.open(2)
    fetch(copy, 1, {0: b"a" * CHUNK_BYTES, 1: b"old"}, CHUNK_BYTES + 3)
    copy.close()
    copy = store.open(2)
    copy.adopt(2, CHUNK_BYTES + 3)
    copy.write(0, b"A" * CHUNK_BYTES)
    again = killed(tmp_path, store)
    copy = again.open(2)
    assert (copy.version, copy.missing(0, CHUNK_BYTES)) == (2, [])
    with pytest.raises(NeedsManifest):
        copy.missing(CHUNK_BYTES, 3)
    again.close()


def overwritten_unverified(store: CopyStore) -> tuple[LocalCopy, dict[int, ChunkAt]]:
    """A copy that holds a chunk of version 1 and shows version 2, of which no manifest was asked for."""
    copy = store.open(2)
    places = fetch(copy, 1, {0: b"old"}, 3)
    copy.close()
    copy = store.open(2)
    copy.adopt(2, 3)
    return copy, places


def test_an_unverified_chunk_that_was_being_overwritten_is_not_believed_after_a_kill(
    store: CopyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, places = overwritten_unverified(store)
    put_dirty = Index.put_dirty

    def killed_before(index: Index, ino: int, record: DirtyRecord) -> None:
        shutil.copytree(tmp_path / "cache", tmp_path / "killed")
        put_dirty(index, ino, record)

    monkeypatch.setattr(Index, "put_dirty", killed_before)
    copy.write(0, b"NEW")
    assert copy.read(0, 3) == b"NEW"
    store.close()
    again = CopyStore(tmp_path / "killed", LIMIT)
    copy = again.open(2)
    copy.adopt(2, 3)
    copy.learn(0, 1, places)
    assert (copy.dirty, copy.missing(0, 3), copy.read(0, 3)) == (False, [0], bytes(3))
    again.close()


def test_an_unverified_chunk_that_could_not_be_overwritten_is_fetched_again(
    store: CopyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, places = overwritten_unverified(store)

    def full(index: Index, ino: int, record: DirtyRecord) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(Index, "put_dirty", full)
        copy.write(0, b"NEW")
    copy.learn(0, 1, places)
    assert (copy.dirty, copy.missing(0, 3)) == (False, [0])
    assert copy.fill(0, places[0].id, b"old")
    assert copy.read(0, 3) == b"old"
    copy.close()


def test_what_no_record_names_is_zeros_after_a_kill(store: CopyStore, tmp_path: Path) -> None:
    copy = store.open(2)
    chunks = {0: b"a" * CHUNK_BYTES, 1: b"fetched too late for the record"}
    places = fetch(copy, 1, {0: chunks[0]}, 2 * CHUNK_BYTES)
    copy.close()
    copy = store.open(2)
    copy.adopt(2, 2 * CHUNK_BYTES)
    copy.learn(0, 2, places | {1: ChunkAt(1, new_chunk_id(chunks[1]), len(chunks[1]), [1])})
    place = copy.chunk_at(1)
    assert place is not None and copy.fill(1, place.id, chunks[1])
    again = killed(tmp_path, store)
    copy = again.open(2)
    copy.adopt(3, 2 * CHUNK_BYTES)
    copy.learn(0, 2, places)
    assert (copy.missing(0, 2 * CHUNK_BYTES), copy.read(CHUNK_BYTES, 7)) == ([], bytes(7))
    again.close()


def test_a_record_of_nothing_does_not_hide_a_newer_version(store: CopyStore, tmp_path: Path) -> None:
    copy = store.open(3)
    copy.truncate(20)
    copy.truncate(0)
    assert not copy.dirty
    copy.adopt(7, 5)
    again = killed(tmp_path, store)
    assert again.dirty_inos() == []
    again.close()


def test_a_chunk_that_was_cut_in_two_is_not_believed(store: CopyStore) -> None:
    copy = store.open(2)
    places = fetch(copy, 1, {0: b"abcdef"}, 6)
    copy.adopt(2, 3)
    copy.adopt(3, 6)
    copy.learn(0, 1, places)
    assert copy.missing(0, 6) == [0]
    copy.close()


# At rest


def test_a_copy_that_was_closed_is_not_loaded_again(store: CopyStore, tmp_path: Path) -> None:
    first = store.open(7)
    fetch(first, 1, {0: b"content"}, 7)
    first.close()
    index = tmp_path / "cache" / "index" / "cache.db"
    with sqlite3.connect(index) as rows:  # what it was closed with is in the index all the same
        assert rows.execute("SELECT count(*) FROM Cache WHERE key = 7").fetchone() == (1,)
        rows.execute("DELETE FROM Cache WHERE key = 7")
    again = store.open(7)
    assert (again.version, again.read(0, 7)) == (1, b"content")
    again.close()


def test_what_comes_late_for_a_copy_at_rest_is_not_taken(store: CopyStore) -> None:
    copy = store.open(7)
    copy.adopt(1, CHUNK_BYTES + 7)
    places = {i: ChunkAt(i, new_chunk_id(b"content"), 7, [1]) for i in range(2)}
    copy.learn(0, 2, places)
    assert copy.fill(1, places[1].id, b"content")
    copy.close()
    used = store.used_bytes()
    assert not copy.fill(0, places[0].id, b"content")
    assert store.used_bytes() == used
    assert store.open(7).missing(0, 7) == [0]


def open_below(folder: Path) -> int:
    """How many files there this process has open. Others may go at any moment, when they are collected."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            count += os.readlink(f"/proc/self/fd/{number}").startswith(f"{folder}/")
    return count


@pytest.mark.parametrize("goes", [CopyStore.evict_all, lambda store: store.drop(7)])
def test_a_copy_at_rest_is_forgotten_like_any_other(
    store: CopyStore, tmp_path: Path, goes: Callable[[CopyStore], None]
) -> None:
    copy = store.open(7)
    fetch(copy, 1, {0: b"content"}, 7)
    copy.close()
    before = open_below(tmp_path)
    goes(store)
    assert open_below(tmp_path) == before - 1
    assert store.used_bytes() == 0
    copy = store.open(7)
    assert (copy.version, copy.size) == (0, 0)
    copy.close()


def test_the_copy_of_an_empty_file_rests_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "RESTING_MAX", 2)
    store = CopyStore(tmp_path / "cache", LIMIT)
    for ino in (1, 2, 3):
        copy = store.open(ino)
        fetch(copy, 1, {}, 0)
        copy.close()
    assert store.open(3) is copy
    copy.close()
    assert [store.has(ino) for ino in (1, 2, 3)] == [False, True, True]
    never_told_of = store.open(4)
    never_told_of.close()
    assert not store.has(4)
    store.close()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name in "1234"]


def test_few_copies_rest_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "RESTING_MAX", 2)
    store = CopyStore(tmp_path / "cache", LIMIT)
    before = open_below(tmp_path)
    for ino in range(1, 10):
        copy = store.open(ino)
        fetch(copy, 1, {0: b"content"}, 7)
        copy.close()
    assert open_below(tmp_path) == before + 2
    assert kept(store, 1) and kept(store, 9)
    store.close()


# The limit


def kept(store: CopyStore, ino: int) -> bool:
    copy = store.open(ino)
    try:
        return copy.version != 0
    finally:
        copy.close()


def test_clean_copies_are_evicted_least_recently_used_first(tmp_path: Path) -> None:
    now = [1000.0]
    store = CopyStore(tmp_path / "cache", 10 * 65536, clock=lambda: now[0])

    def use(ino: int) -> None:
        now[0] += 1
        copy = store.open(ino)
        if not copy.version:
            fetch(copy, 1, {0: b"x" * 65536}, 65536)
        copy.close()

    for ino in range(1, 11):
        use(ino)
    assert store.used_bytes() == 10 * 65536
    use(1)
    store.close()
    store = CopyStore(tmp_path / "cache", 10 * 65536, clock=lambda: now[0])
    assert store.used_bytes() == 10 * 65536
    use(11)
    assert store.used_bytes() == 9 * 65536, "down to 90 %"
    files = {int(path.name) for path in (tmp_path / "cache" / "copies").glob("*/*")}
    assert files == set(range(1, 12)) - {2, 3}
    assert not kept(store, 2) and kept(store, 1)
    store.close()


def test_neither_dirty_nor_open_copies_are_evicted(tmp_path: Path) -> None:
    store = CopyStore(tmp_path / "cache", 65536)
    opened, dirty = store.open(1), store.open(2)
    fetch(opened, 1, {0: b"x" * 100_000}, 100_000)
    dirty.write(0, b"y" * 100_000)
    dirty.close()
    store.evict()
    assert opened.read(0, 3) == b"xxx"
    assert store.dirty_inos() == [2]
    assert store.used_bytes() >= 200_000
    opened.close()
    assert store.used_bytes() < 150_000
    store.close()


def test_a_dirty_copy_is_dropped_by_force_only(store: CopyStore) -> None:
    copy = store.open(2)
    copy.write(0, b"y")
    for _ in range(2):
        with pytest.raises(ValueError, match="dirty"):
            store.drop(2)
        copy.close()
        copy = store.open(2)
    store.drop(2, force=True)
    assert copy.read(0, 1) == b"y", "its openers still have it"
    copy.close()
    assert (store.dirty_inos(), store.used_bytes()) == ([], 0)


# kill -9

CHILD = """
import sys
from pathlib import Path
from cache import copies
from cache.copies import CopyStore
store = CopyStore(Path(sys.argv[1]), 10**9)
copy = store.open(9)
number = 0
while True:
    number += 1
    where = (number * 7919) % 64
    if number % 16 == 0:
        snapshot = copy.snapshot_dirty()
        ids = {i: (b"%048d" % number, 1) for i in snapshot.chunks}
        copy.begin_commit(snapshot, b"%016d" % number, ids)
        copy.committed(number)
        print("committed", number, flush=True)
    copy.write(where * 1048576 + number, b"%08d" % number)
    print("written", where * 1048576 + number, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 10, 77, 300])
def test_what_was_written_survives_kill_9(tmp_path: Path, lines: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "cache")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    written: dict[int, int] = {}
    version = 0
    with child:
        try:
            seen = [child.stdout.readline() for _ in range(lines)]
        finally:
            child.send_signal(signal.SIGKILL)
        seen += child.stdout.read().splitlines(keepends=True)
    number = 0
    since: set[int] = set()
    for line in (line for line in seen if line.endswith("\n")):
        what, value = line.split()
        if what == "committed":
            version, since = int(value), set()
        else:
            number += 1
            written[int(value)] = number
            since.add(int(value) // CHUNK_BYTES)
    assert written, "something was at stake"
    store = CopyStore(tmp_path / "cache", LIMIT)
    copy = store.open(9)
    assert copy.version >= version
    for offset, number in written.items():
        assert copy.read(offset, 8) == b"%08d" % number
    if copy.version == version:
        assert since <= set(dirty_chunks(copy))
    store.close()


# Sets of indices


def test_index_sets_agree_with_sets() -> None:
    chance = random.Random(1)
    for _ in range(300):
        runs, plain = IndexSet(), set[int]()
        for _ in range(12):
            first = chance.randrange(30)
            end = first + chance.randrange(8)
            if chance.random() < 0.6:
                runs.add(first, end)
                plain.update(range(first, end))
            else:
                runs.remove(first, end)
                plain.difference_update(range(first, end))
            assert list(runs) == sorted(plain)
            assert [i in runs for i in range(45)] == [i in plain for i in range(45)]
            low, high = sorted((chance.randrange(45), chance.randrange(45)))
            assert low == high or runs.covers(low, high) == plain.issuperset(range(low, high))
            gaps = [i for a, b in runs.gaps(low, high) for i in range(a, b)]
            assert gaps == [i for i in range(low, high) if i not in plain]
        edges = runs.edges
        assert edges == sorted(set(edges)), "runs that touch are one"
