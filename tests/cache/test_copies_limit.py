"""Local copies that nobody has open: at rest, and evicted."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cache import copies
from cache.copies import CopyStore
from tests.support.copies import LIMIT, fetch
from wire.chunking import new_chunk_id
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ChunkAt


def kept(store: CopyStore, ino: int) -> bool:
    copy = store.open(ino)
    try:
        return copy.version != 0
    finally:
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
