"""Local copies on disk: what the next process finds, whatever became of this one."""

import errno
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from cache.copies import CopyStore, LocalCopy, NeedsManifest
from cache.index import DirtyRecord, Index, Mark
from tests.support.copies import LIMIT, begin, dirty_chunks, fetch, killed, told_before_kill_9
from wire.chunking import new_chunk_id
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ChunkAt

# Ended


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


# Killed


def test_a_write_during_a_commit_survives_a_kill(store: CopyStore, tmp_path: Path) -> None:
    copy = store.open(2)
    copy.write(0, b"sent")
    begin(copy)
    copy.write(0, b"SENT")
    again = killed(tmp_path)
    copy = again.open(2)
    pending = copy.pending()
    assert pending is not None and pending.later_changes
    copy.committed(8)
    assert (dirty_chunks(copy), copy.read(0, 9)) == ([0], b"SENT")
    again.close()


def test_an_outdated_chunk_is_not_believed_after_a_kill(store: CopyStore, tmp_path: Path) -> None:
    copy = store.open(2)
    old = fetch(copy, 1, {0: b"old"}, 3)
    copy.close()
    copy = store.open(2)
    fetch(copy, 2, {0: b"new"}, 3)
    again = killed(tmp_path)
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
    again = killed(tmp_path)
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
        shutil.copytree(tmp_path / "cache", tmp_path / "found")
        put_dirty(index, ino, record)

    monkeypatch.setattr(Index, "put_dirty", killed_before)
    copy.write(0, b"NEW")
    assert copy.read(0, 3) == b"NEW"
    store.close()
    again = CopyStore(tmp_path / "found", LIMIT)
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
    again = killed(tmp_path)
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
    again = killed(tmp_path)
    assert again.dirty_inos() == []
    again.close()


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
    told = told_before_kill_9(CHILD, tmp_path / "cache", lines)
    with closing(CopyStore(tmp_path / "cache", LIMIT)) as store:
        copy = store.open(9)
        assert copy.version >= told.version
        told.is_in(copy)
