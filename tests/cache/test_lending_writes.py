"""Local copies whose file the kernel writes itself: what was written there is found."""

import errno
import mmap
import os
import time

import pytest

from cache.copies import CopyStore, LocalCopy
from tests.support.copies import begin, dirty_chunks
from tests.support.lending import INO, borrowed
from wire.chunking import fits, new_chunk_id
from wire.limits import CHUNK_BYTES


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
