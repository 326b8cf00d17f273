"""Local copies on disk: what is read, what is changed and committed, and who may have them."""

import errno
import os
import pickle
import sqlite3
from pathlib import Path

import pytest

from cache.copies import CopyStore, NeedsManifest
from tests.support.copies import LIMIT, begin, dirty_chunks, fetch
from wire.chunking import new_chunk_id
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ChunkAt

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


def test_a_chunk_that_was_cut_in_two_is_not_believed(store: CopyStore) -> None:
    copy = store.open(2)
    places = fetch(copy, 1, {0: b"abcdef"}, 6)
    copy.adopt(2, 3)
    copy.adopt(3, 6)
    copy.learn(0, 1, places)
    assert copy.missing(0, 6) == [0]
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
    begin(copy)
    copy.committed(10)
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


def test_a_cut_during_a_commit_limits_what_the_next_one_keeps(store: CopyStore) -> None:
    copy = store.open(2)
    copy.write(0, b"a" * CHUNK_BYTES)
    copy.write(CHUNK_BYTES, b"b" * 10)
    begin(copy)
    copy.truncate(CHUNK_BYTES)
    copy.truncate(CHUNK_BYTES + 10)
    copy.committed(3)
    again = copy.snapshot_dirty()
    assert (copy.dirty, again.keep_size, again.chunks) == (True, CHUNK_BYTES, [])
    assert copy.chunk_at(1) is None
    copy.close()


# Who may have them


def test_a_second_mount_is_refused(store: CopyStore, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="in use by another mount") as caught:
        CopyStore(tmp_path / "cache", LIMIT)
    assert caught.value.errno == errno.EBUSY
    store.close()
    CopyStore(tmp_path / "cache", LIMIT).close()


def test_only_the_owner_can_look(store: CopyStore, tmp_path: Path) -> None:
    copy = store.open(2)
    copy.write(0, b"secret")
    for path in (tmp_path / "cache").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    copy.close()


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
