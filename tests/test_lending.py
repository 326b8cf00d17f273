"""Local copies whose file the kernel reads and writes itself: what borrowers see, and what is found again."""

import errno
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache import index as index_module
from cache import lending
from cache.copies import CopyStore, LocalCopy, NeedsManifest
from cache.sparse import SparseFile
from cache.succession import Successor
from wire.chunking import chunk_count, fits, new_chunk_id
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ChunkAt

LIMIT = 10**9
INO = 5


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CopyStore]:
    store = CopyStore(tmp_path / "cache", LIMIT)
    yield store
    store.close()


@pytest.fixture
def copy(store: CopyStore) -> LocalCopy:
    """Version 7: a chunk of "a", a hole, and 10 bytes of "c". All of it is here."""
    copy = store.open(INO)
    fetch(copy, 7, {0: b"a" * CHUNK_BYTES, 2: b"c" * 10}, 2 * CHUNK_BYTES + 10)
    return copy


def fetch(copy: LocalCopy, version: int, chunks: dict[int, bytes], size: int) -> dict[int, ChunkAt]:
    places = {i: ChunkAt(i, new_chunk_id(data), len(data), [1]) for i, data in chunks.items()}
    copy.adopt(version, size)
    copy.learn(0, 8192, places)
    for index, place in places.items():
        assert copy.fill(index, place.id, chunks[index])
    return places


@contextmanager
def borrowed(copy: LocalCopy, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = copy.lend(flags)
    assert descriptor is not None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def dirty_chunks(copy: LocalCopy) -> list[int]:
    return [index for index in range(chunk_count(copy.size)) if copy.is_dirty(index)]


def begin(copy: LocalCopy) -> dict[int, tuple[bytes, int] | None]:
    """As a commit does, up to where it is sent."""
    snapshot = copy.snapshot_dirty()
    contents = {index: copy.chunk_bytes(index) for index in snapshot.chunks}
    ids = {i: (new_chunk_id(data), len(data)) if data else None for i, data in contents.items()}
    copy.begin_commit(snapshot, b"c" * 16, ids)
    return ids


def killed(tmp_path: Path) -> CopyStore:
    """What the next process finds if this one is killed now."""
    shutil.copytree(tmp_path / "cache", tmp_path / "found")
    return CopyStore(tmp_path / "found", LIMIT)


# What is lent


def test_only_a_complete_copy_is_lent(store: CopyStore) -> None:
    copy = store.open(INO)
    with borrowed(copy, os.O_WRONLY) as descriptor:  # a new file
        assert os.fstat(descriptor).st_ino == copy.file_number
    copy.adopt(3, CHUNK_BYTES + 1)
    assert copy.lend(os.O_RDONLY) is None
    chunks = {0: b"x" * CHUNK_BYTES, 1: b"y"}
    places = {i: ChunkAt(i, new_chunk_id(data), len(data), [1]) for i, data in chunks.items()}
    copy.learn(0, 8192, places)
    copy.fill(0, places[0].id, chunks[0])
    assert copy.lend(os.O_RDONLY) is None
    copy.fill(1, places[1].id, chunks[1])
    with borrowed(copy) as descriptor:
        assert os.pread(descriptor, 9, CHUNK_BYTES - 1) == b"xy"


def test_a_large_copy_is_lent_for_reading_only(copy: LocalCopy) -> None:
    copy.truncate(lending.LEND_WRITES_MAX + 1)
    with borrowed(copy):
        assert copy.lend(os.O_RDWR) is None


def test_who_borrows_is_known_by_opens_and_maps(copy: LocalCopy) -> None:
    assert not copy.is_borrowed()
    with borrowed(copy) as descriptor:
        assert copy.is_borrowed()
        shown = mmap.mmap(descriptor, 10, prot=mmap.PROT_READ)
    assert copy.is_borrowed()
    shown.close()
    assert not copy.is_borrowed()


# What borrowers see


def test_a_borrower_goes_on_reading_the_version_he_has(copy: LocalCopy) -> None:
    with borrowed(copy) as descriptor:
        before = copy.file_number
        copy.adopt(8, CHUNK_BYTES // 2)
        copy.learn(0, 8192, {})
        assert os.pread(descriptor, 3, CHUNK_BYTES - 3) == b"aaa"
        assert os.pread(descriptor, 99, 2 * CHUNK_BYTES) == b"c" * 10
        assert before == os.fstat(descriptor).st_ino != copy.file_number
        assert copy.read(0, CHUNK_BYTES) == bytes(CHUNK_BYTES // 2)
    assert not copy.is_borrowed()


def test_what_did_not_change_is_not_fetched_again_when_the_file_was_left(copy: LocalCopy) -> None:
    first = copy.chunk_at(0)
    assert first is not None
    with borrowed(copy):
        copy.adopt(8, 2 * CHUNK_BYTES + 10)
        copy.learn(0, 8192, {0: first, 2: ChunkAt(2, new_chunk_id(b"new"), 3, [1])})
        assert copy.missing(0, copy.size) == [2]
        assert copy.read(0, 3) == b"aaa"


def test_a_large_file_is_left_and_fetched_again(copy: LocalCopy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "COPY_OVER_MAX", 0)
    monkeypatch.setattr(SparseFile, "_share_with", lambda *_: False)
    with borrowed(copy) as descriptor:
        copy.adopt(8, CHUNK_BYTES + 1)
        assert os.pread(descriptor, 99, 2 * CHUNK_BYTES) == b"c" * 10
    with pytest.raises(NeedsManifest):
        copy.missing(0, 1)
    assert copy.read(0, CHUNK_BYTES + 9) == bytes(CHUNK_BYTES + 1)


def test_a_map_outlives_its_descriptor_and_is_not_cut(copy: LocalCopy) -> None:
    with borrowed(copy) as descriptor:
        shown = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    copy.adopt(8, 0)
    assert shown[CHUNK_BYTES - 1 :: CHUNK_BYTES] == b"a\0"
    shown.close()


def successor_of(copy: LocalCopy, chunks: dict[int, bytes | ChunkAt], size: int) -> Successor:
    """Version 8, all of which has been fetched."""
    successor = copy.successor(8, size)
    assert successor is not None
    for index, data in chunks.items():
        if isinstance(data, ChunkAt):
            successor.learn([data])
            continue
        place = ChunkAt(index, new_chunk_id(data), len(data), [1])
        successor.learn([place])
        successor.fill(place, data)
    return successor


def test_a_newer_version_comes_to_who_reads_the_file(copy: LocalCopy, store: CopyStore) -> None:
    first = copy.chunk_at(0)
    assert first is not None
    with borrowed(copy) as descriptor:
        shown = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        assert copy.is_used_past_us()
        with successor_of(copy, {0: first, 1: b"b" * 9}, 3 * CHUNK_BYTES) as successor:
            assert [chunk.index for chunk in successor.wanted] == [1], "nothing else is fetched"
            assert os.pread(descriptor, 2, CHUNK_BYTES) == b"\0\0"
            assert copy.follow(successor)
            assert not copy.follow(successor), "it is another version now"
        assert (copy.version, copy.size, copy.dirty) == (8, 3 * CHUNK_BYTES, False)
        assert shown[CHUNK_BYTES - 1 : CHUNK_BYTES + 10] == b"a" + b"b" * 9 + b"\0"
        assert os.pread(descriptor, 99, 2 * CHUNK_BYTES) == bytes(99), "a hole"
        assert os.fstat(descriptor).st_ino == copy.file_number
        assert copy.missing(0, copy.size) == []
        with successor_of_nothing(copy) as successor:
            assert copy.follow(successor)
        assert os.fstat(descriptor).st_size == 0
        shown.close()
    copy.write(0, b"ours")
    assert dirty_chunks(copy) == [0]
    assert store.used_bytes() == copy.allocated


def successor_of_nothing(copy: LocalCopy) -> Successor:
    successor = copy.successor(9, 0)
    assert successor is not None
    return successor


def test_who_writes_past_us_gets_no_other_version(copy: LocalCopy) -> None:
    assert copy.successor(8, 5) is None, "nobody reads it"
    with borrowed(copy) as reader:
        assert copy.successor(7, 5) is None, "it is this one"
        with successor_of(copy, {0: b"other"}, 5) as successor:
            with borrowed(copy, os.O_WRONLY):
                assert not copy.is_used_past_us()
                assert not copy.follow(successor)
            copy.rescan()
            copy.write(0, b"dirty")
            assert not copy.follow(successor)
        assert os.pread(reader, 6, 0) == b"dirtya"


def test_a_disk_that_fails_in_the_middle_leaves_nothing_that_is_believed(
    copy: LocalCopy, store: CopyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with borrowed(copy) as descriptor, successor_of(copy, {0: b"new", 1: b"b"}, CHUNK_BYTES + 1) as successor:
        real = SparseFile.write

        def write(file: SparseFile, offset: int, data: bytes | memoryview) -> None:
            if offset:
                raise OSError(errno.EIO, "rotten")
            real(file, offset, data)

        with monkeypatch.context() as patched, pytest.raises(OSError, match="rotten"):
            patched.setattr(SparseFile, "write", write)
            copy.follow(successor)
        assert (copy.version, copy.size) == (7, 2 * CHUNK_BYTES + 10)
        with pytest.raises(NeedsManifest):
            copy.missing(0, 1)
        assert copy.read(0, copy.size) == bytes(copy.size)
        assert os.fstat(descriptor).st_ino != copy.file_number
        again = killed(tmp_path)
    assert again.open(INO).version == 0
    again.close()


def test_the_next_process_has_the_file_that_is_read_past_this_one(
    copy: LocalCopy, store: CopyStore, tmp_path: Path
) -> None:
    with borrowed(copy) as descriptor:
        again = killed(tmp_path)
        found = again.open(INO)
        assert (found.version, found.missing(0, found.size)) == (7, [])
        assert os.pread(descriptor, 3, 0) == found.read(0, 3)
    again.close()


def test_a_map_that_outlives_the_process_is_not_cut(
    copy: LocalCopy, store: CopyStore, tmp_path: Path
) -> None:
    with borrowed(copy) as descriptor:
        shown = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    store.close()
    index = index_module.Index(tmp_path / "cache" / "index")
    index.forget([INO])  # as if it had been killed when the records had gone
    index.close(all_true=True)
    again = CopyStore(tmp_path / "cache", LIMIT)
    assert again.open(INO).size == 0
    assert shown[CHUNK_BYTES - 1 :: CHUNK_BYTES] == b"a\0"
    shown.close()
    again.close()


def test_borrowers_see_what_programs_of_this_mount_do(copy: LocalCopy) -> None:
    with borrowed(copy) as descriptor:
        copy.write(5, b"new")
        copy.punch(100, 10)
        copy.truncate(CHUNK_BYTES)
        assert os.pread(descriptor, 5, 4) == b"anewa"
        assert os.pread(descriptor, 10, 100) == bytes(10)
        assert os.fstat(descriptor).st_size == CHUNK_BYTES
        assert os.fstat(descriptor).st_ino == copy.file_number


def test_what_is_discarded_stays_with_who_wrote_it(copy: LocalCopy) -> None:
    with borrowed(copy, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"mine", 0)
        copy.rescan()
        copy.discard()
        assert os.pread(descriptor, 5, 0) == b"minea"
        assert not copy.dirty and not copy.is_past_us
        assert copy.missing(CHUNK_BYTES, CHUNK_BYTES + 10) == []
        os.pwrite(descriptor, b"later", 0)
        assert copy.rescan() == 0
        assert not copy.dirty


def test_what_was_taken_home_does_not_change_any_more(copy: LocalCopy) -> None:
    with borrowed(copy, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"mine", CHUNK_BYTES)
        assert abs(copy.take_home() - time.time_ns()) < 10**10
        os.pwrite(descriptor, b"later", 0)
        assert dirty_chunks(copy) == [1]
        assert copy.read(0, 1) + copy.read(CHUNK_BYTES, 5) == b"amine\0"
        assert not copy.is_past_us


# What is written past us


def test_what_was_written_past_us_is_found(copy: LocalCopy) -> None:
    with borrowed(copy, os.O_WRONLY) as descriptor:
        assert (copy.look(), copy.rescan()) == (0, 0)
        os.pwrite(descriptor, b"x", 1)
        os.pwrite(descriptor, b"x" * 20, 5 * CHUNK_BYTES)
        assert abs(copy.look() - time.time_ns()) < 10**10
        assert copy.size == 5 * CHUNK_BYTES + 20
        assert copy.rescan()
        assert dirty_chunks(copy) == [0, 5]
        assert copy.rescan() == 0, "that was all"
        os.pwrite(descriptor, b"x", CHUNK_BYTES)
    assert copy.rescan()
    assert dirty_chunks(copy) == [0, 1, 5]
    assert not copy.is_past_us


def test_what_is_the_same_as_before_is_not_dirty(copy: LocalCopy) -> None:
    with borrowed(copy, os.O_WRONLY) as descriptor:
        os.pwrite(descriptor, b"aaaa", 10)
        assert copy.rescan(), "it was written to nevertheless"
        assert not copy.dirty


def test_only_what_was_written_to_is_looked_through(copy: LocalCopy) -> None:
    with borrowed(copy, os.O_WRONLY) as descriptor:
        status = os.fstat(descriptor)
        os.pwrite(descriptor, b"x", 0)
        os.utime(descriptor, ns=(status.st_mtime_ns, status.st_mtime_ns))
        assert copy.rescan() == 0
    with borrowed(copy, os.O_RDWR):  # who may have a map can write without a trace
        assert copy.rescan()
    assert dirty_chunks(copy) == [0]


def test_what_is_written_while_it_is_looked_through_is_found_next_time(
    copy: LocalCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fits
    with borrowed(copy, os.O_WRONLY) as descriptor:

        def fits_and_is_overtaken(chunk_id: bytes, data: bytes | memoryview) -> bool:
            result = real(chunk_id, data)
            os.pwrite(descriptor, b"x", 0)
            return result

        os.pwrite(descriptor, b"c", 2 * CHUNK_BYTES)  # as it was: nothing is changed yet
        with monkeypatch.context() as patched:
            patched.setattr("cache.lending.fits", fits_and_is_overtaken)
            copy.rescan()
        assert dirty_chunks(copy) == []
        copy.rescan()
        assert dirty_chunks(copy) == [0]


def test_what_was_written_through_a_map_is_found(copy: LocalCopy) -> None:
    with borrowed(copy, os.O_RDWR) as descriptor:
        shown = mmap.mmap(descriptor, 0)
    shown[0] = shown[0]
    copy.rescan()
    shown[3] = ord("m")
    copy.rescan()
    assert dirty_chunks(copy) == [0]
    begin(copy)
    copy.committed(8)
    shown[4] = ord("m")
    shown.close()
    copy.rescan()
    assert dirty_chunks(copy) == [0]
    assert not copy.is_past_us


def test_what_changes_after_the_upload_is_dirty(copy: LocalCopy) -> None:
    with borrowed(copy, os.O_WRONLY) as descriptor:
        os.pwrite(descriptor, b"first", 0)
        copy.rescan()
        ids = begin(copy)
        os.pwrite(descriptor, b"second", 0)
        os.pwrite(descriptor, b"more", CHUNK_BYTES)
        copy.committed(8)
        assert not copy.dirty, "not known yet"
        copy.rescan()
        assert dirty_chunks(copy) == [0, 1]
        assert ids[0] is not None and not fits(ids[0][0], copy.chunk_bytes(0))


def test_a_rescan_between_snapshot_and_upload_is_not_the_last(copy: LocalCopy) -> None:
    with borrowed(copy, os.O_WRONLY) as descriptor:
        os.pwrite(descriptor, b"first", 0)
        copy.rescan()
        snapshot = copy.snapshot_dirty()
        uploaded = copy.chunk_bytes(0)
        os.pwrite(descriptor, b"second", 0)
    copy.rescan()
    copy.begin_commit(snapshot, b"c" * 16, {0: (new_chunk_id(uploaded), len(uploaded))})
    copy.committed(8)
    copy.rescan()
    assert dirty_chunks(copy) == [0]
    assert not copy.is_past_us


def test_what_changes_while_a_commit_is_under_way_comes_after_it(copy: LocalCopy) -> None:
    with borrowed(copy, os.O_WRONLY) as descriptor:
        os.pwrite(descriptor, b"first", 0)
        os.pwrite(descriptor, b"first", CHUNK_BYTES)
        copy.rescan()
        begin(copy)
        os.pwrite(descriptor, b"second", 0)
        copy.rescan()
    pending = copy.pending()
    assert pending is not None and pending.later_changes
    copy.committed(8)
    assert dirty_chunks(copy) == [0]


def test_what_we_write_joins_what_is_written_past_us(copy: LocalCopy) -> None:
    with borrowed(copy, os.O_WRONLY) as descriptor:
        os.pwrite(descriptor, b"x", copy.size + 9)
        copy.punch(copy.size, 10)  # within what has grown
        copy.truncate(2 * CHUNK_BYTES + 15)
        assert copy.read(2 * CHUNK_BYTES, 99) == b"c" * 10 + bytes(5)
        os.pwrite(descriptor, b"y", copy.size)
        copy.truncate(4 * CHUNK_BYTES)
        assert copy.read(2 * CHUNK_BYTES, 17) == b"c" * 10 + bytes(5) + b"y\0"
        os.pwrite(descriptor, b"z", CHUNK_BYTES)
        copy.punch(CHUNK_BYTES, CHUNK_BYTES)
        assert os.pread(descriptor, 1, CHUNK_BYTES) == b"\0"


def test_when_nobody_has_it_any_more_the_copy_is_like_any_other(copy: LocalCopy, store: CopyStore) -> None:
    with borrowed(copy, os.O_RDWR):
        assert copy.rescan() == 0
        assert copy.is_past_us
    copy.rescan()
    assert not copy.is_past_us
    copy.close()
    assert store.dirty_inos() == []
    assert store.open(INO).missing(0, 9 * CHUNK_BYTES) == []
    assert store._index.dirty_inos() == []


def test_who_is_back_and_had_no_map_writes_no_more(copy: LocalCopy) -> None:
    with borrowed(copy, os.O_WRONLY) as descriptor:  # the kernel closes it later than it says so
        os.pwrite(descriptor, b"x", 0)
        assert not copy.take_back()
        copy.rescan()
        assert dirty_chunks(copy) == [0]
        assert not copy.is_past_us


def test_a_map_that_is_left_is_waited_for(copy: LocalCopy) -> None:
    with borrowed(copy, os.O_RDWR) as descriptor:
        shown = mmap.mmap(descriptor, 0)
    assert copy.take_back()
    assert copy.lend(os.O_RDONLY) is None
    copy.rescan()
    assert copy.is_past_us
    shown[0] = ord("m")
    shown.close()
    assert not copy.take_back()
    copy.rescan()
    assert dirty_chunks(copy) == [0]
    assert not copy.is_past_us
    with borrowed(copy):
        pass


def test_who_only_reads_is_not_waited_for(copy: LocalCopy) -> None:
    with borrowed(copy, os.O_RDONLY) as reader, mmap.mmap(reader, 0, prot=mmap.PROT_READ):
        with borrowed(copy, os.O_RDWR) as writer:
            memory = mmap.mmap(writer, 0)
        assert copy.take_back(), "the map may be written through"
        assert copy.lend(os.O_RDWR) is None
        memory[0] = ord("m")
        memory.close()
        assert not copy.take_back()
        copy.rescan()
        assert not copy.is_past_us
        assert dirty_chunks(copy) == [0]
        with borrowed(copy, os.O_RDWR) as writer:
            os.pwrite(writer, b"w", 1)
        assert os.pread(reader, 2, 0) == b"mw"
        copy.write(2, b"x")
        assert os.pread(reader, 3, 0) == b"mwx"


def test_who_looks_for_writers_and_finds_no_descriptor_can_write_afterwards(
    copy: LocalCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.open, {os.O_RDWR}

    def no_more(path: str, flags: int) -> int:
        if flags & os.O_ACCMODE in refused:
            raise OSError(errno.EMFILE, "none")
        return real(path, flags)

    with borrowed(copy, os.O_RDWR) as descriptor:
        shown = mmap.mmap(descriptor, 0)
    with monkeypatch.context() as patched:
        patched.setattr("cache.sparse.os.open", no_more)
        for access in (os.O_RDWR, os.O_RDONLY):
            refused.add(access)
            assert copy.take_back()
            assert copy.read(0, 1) == b"a"
        with pytest.raises(OSError, match="none"):
            copy.write(0, b"x")
    copy.write(0, b"y")
    assert shown[:2] == b"ya"
    shown.close()
    assert not copy.take_back()


def test_another_version_is_not_moved_to_from_what_was_written_past_us(copy: LocalCopy) -> None:
    with borrowed(copy, os.O_WRONLY) as descriptor:
        os.pwrite(descriptor, b"x", 0)
        with pytest.raises(ValueError, match="dirty"):
            copy.adopt(8, 0)


# Kills


def test_what_was_written_past_us_survives_a_kill(copy: LocalCopy, store: CopyStore, tmp_path: Path) -> None:
    with borrowed(copy, os.O_WRONLY) as descriptor:
        os.pwrite(descriptor, b"x", 1)
        os.pwrite(descriptor, b"end", 4 * CHUNK_BYTES)
        again = killed(tmp_path)
    found = again.open(INO)
    assert again.dirty_inos() == [INO]
    assert (found.version, found.size, dirty_chunks(found)) == (7, 4 * CHUNK_BYTES + 3, [0, 4])
    assert found.read(0, 3) + found.read(4 * CHUNK_BYTES, 9) == b"axaend"
    assert found.missing(0, found.size) == []
    assert not found.is_past_us
    again.close()


def test_what_was_lent_and_not_written_to_is_clean_after_a_kill(
    copy: LocalCopy, store: CopyStore, tmp_path: Path
) -> None:
    with borrowed(copy, os.O_RDWR):
        again = killed(tmp_path)
    found = again.open(INO)
    assert (found.version, found.dirty, found.missing(0, found.size)) == (7, False, [])
    found.close()
    assert again.dirty_inos() == []
    again.close()


def test_a_write_between_commits_survives_a_kill(copy: LocalCopy, store: CopyStore, tmp_path: Path) -> None:
    with borrowed(copy, os.O_WRONLY) as descriptor:
        os.pwrite(descriptor, b"first", 0)
        copy.rescan()
        begin(copy)
        os.pwrite(descriptor, b"second", 2)
        copy.committed(8)
        again = killed(tmp_path)
    found = again.open(INO)
    assert (found.version, dirty_chunks(found), found.read(0, 9)) == (8, [0], b"fiseconda")
    again.close()


def test_a_write_after_a_begun_commit_is_a_later_change_after_a_kill(
    copy: LocalCopy, store: CopyStore, tmp_path: Path
) -> None:
    with borrowed(copy, os.O_WRONLY) as descriptor:
        os.pwrite(descriptor, b"first", 0)
        copy.rescan()
        begin(copy)
        os.pwrite(descriptor, b"second", 0)
        again = killed(tmp_path)
    pending = again.open(INO).pending()
    assert pending is not None and pending.later_changes
    again.close()


def test_after_a_loss_of_power_what_was_lent_is_compared(
    copy: LocalCopy, store: CopyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_boot = tmp_path / "boot_id"
    other_boot.write_text("another")
    with borrowed(copy, os.O_WRONLY) as descriptor:
        os.pwrite(descriptor, b"x", CHUNK_BYTES)
        monkeypatch.setattr(index_module, "BOOT_ID", other_boot)
        again = killed(tmp_path)
        found = again.open(INO)
        assert dirty_chunks(found) == [1]
        assert found.missing(0, found.size) == []
        again.close()


def test_who_still_has_the_file_after_a_kill_still_writes_past_us(
    copy: LocalCopy, store: CopyStore, tmp_path: Path
) -> None:
    with borrowed(copy, os.O_WRONLY) as descriptor:
        store.close()  # as far as the file is concerned, that is no other than a kill
        again = CopyStore(tmp_path / "cache", LIMIT)
        found = again.open(INO)
        assert (found.dirty, found.is_past_us) == (False, True)
        os.pwrite(descriptor, b"x", 0)
        assert found.rescan()
        assert dirty_chunks(found) == [0]
    again.close()


def test_who_appends_while_the_copy_is_loaded_loses_nothing(
    copy: LocalCopy, store: CopyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SparseFile.size
    with borrowed(copy, os.O_WRONLY) as descriptor:
        store.close()

        def size_and_is_overtaken(file: SparseFile) -> int:
            size = real(file)
            os.pwrite(descriptor, b"more", size)
            return size

        again = CopyStore(tmp_path / "cache", LIMIT)
        with monkeypatch.context() as patched:
            patched.setattr(SparseFile, "size", size_and_is_overtaken)
            again.open(INO)
        found = again.open(INO)
        found.rescan()
        assert found.size == os.fstat(descriptor).st_size
        assert found.read(2 * CHUNK_BYTES, 18) == b"c" * 10 + b"moremore"
    again.close()


def test_a_twin_that_was_not_finished_is_removed(copy: LocalCopy, store: CopyStore, tmp_path: Path) -> None:
    twin = tmp_path / "cache" / "copies" / f"{INO:02x}" / f"{INO}.new"
    twin.write_bytes(b"half")
    store.close()
    CopyStore(tmp_path / "cache", LIMIT).close()
    assert not twin.exists()


CHILD = """
import os, sys
from pathlib import Path
from cache.copies import CopyStore
from wire.chunking import new_chunk_id
store = CopyStore(Path(sys.argv[1]), 10**9)
copy = store.open(9)
descriptor = copy.lend(os.O_WRONLY)
number = 0
while True:
    number += 1
    where = (number * 7919) % 64 * 1048576 // 4 + number * 8
    os.pwrite(descriptor, b"%08d" % number, where)
    print("written", where, flush=True)
    if number % 8 == 0:
        copy.rescan()
        snapshot = copy.snapshot_dirty()
        contents = {i: copy.chunk_bytes(i) for i in snapshot.chunks}
        ids = {i: (new_chunk_id(data), len(data)) for i, data in contents.items()}
        os.pwrite(descriptor, b"%08d" % number, where)
        copy.begin_commit(snapshot, b"%016d" % number, ids)
        copy.committed(number)
        print("committed", number, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 9, random.randrange(10, 60)], ids=["1", "9", "any"])
def test_what_was_written_past_us_survives_kill_9(tmp_path: Path, lines: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "cache")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child:
        try:
            seen = [child.stdout.readline() for _ in range(lines)]
        finally:
            child.send_signal(signal.SIGKILL)
        seen += child.stdout.read().splitlines(keepends=True)
    written: dict[int, int] = {}
    since: set[int] = set()
    version = 0
    for line in (line for line in seen if line.endswith("\n")):
        what, value = line.split()
        if what == "committed":
            version, since = int(value), set()
        else:
            written[int(value)] = len(written) + 1
            since.add(int(value) // CHUNK_BYTES)
    assert written, "something was at stake"
    store = CopyStore(tmp_path / "cache", LIMIT)
    copy = store.open(9)
    for offset, number in written.items():
        assert copy.read(offset, 8) == b"%08d" % number
    if copy.version == version:
        assert since <= set(dirty_chunks(copy))
    store.close()
