"""Local copies whose file the kernel writes itself: what the next process finds."""

import os
import random
from contextlib import closing
from pathlib import Path

import pytest

from cache import index as index_module
from cache.copies import CopyStore, LocalCopy
from cache.sparse import SparseFile
from tests.support.copies import LIMIT, begin, dirty_chunks, killed, told_before_kill_9
from tests.support.lending import INO, borrowed
from wire.limits import CHUNK_BYTES


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
    told = told_before_kill_9(CHILD, tmp_path / "cache", lines)
    with closing(CopyStore(tmp_path / "cache", LIMIT)) as store:
        told.is_in(store.open(9))
