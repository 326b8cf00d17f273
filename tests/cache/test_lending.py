"""Local copies whose file the kernel reads and writes itself: what is lent, and what borrowers see."""

import errno
import mmap
import os
import time
from pathlib import Path

import pytest

from cache import index as index_module
from cache import lending
from cache.copies import CopyStore, LocalCopy, NeedsManifest
from cache.sparse import SparseFile
from cache.succession import Successor
from tests.support.copies import LIMIT, dirty_chunks, killed
from tests.support.lending import INO, borrowed
from wire.chunking import new_chunk_id
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ChunkAt

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
