"""A local copy that is lent, and who borrows it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.copies import CopyStore, LocalCopy
from wire.chunking import chunk_count, new_chunk_id
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ChunkAt

LIMIT = 10**9
INO = 5


def filled(store: CopyStore) -> LocalCopy:
    """Version 7: a chunk of "a", a hole, and 10 bytes of "c". All of it is here."""
    copy = store.open(INO)
    fetch(copy, 7, {0: b"a" * CHUNK_BYTES, 2: b"c" * 10}, 2 * CHUNK_BYTES + 10)
    return copy


def fetch(copy: LocalCopy, version: int, chunks: dict[int, bytes], size: int) -> dict[int, ChunkAt]:
    """Moves to a version, of whose chunks these come from the servers."""
    places = {i: ChunkAt(i, new_chunk_id(data), len(data), [1]) for i, data in chunks.items()}
    copy.adopt(version, size)
    copy.learn(0, 8192, places)
    for index, place in places.items():
        assert copy.fill(index, place.id, chunks[index])
    return places


@contextmanager
def borrowed(copy: LocalCopy, flags: int = os.O_RDONLY) -> Iterator[int]:
    """As the kernel has the file of an open handle."""
    descriptor = copy.lend(flags)
    assert descriptor is not None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def dirty_chunks(copy: LocalCopy) -> list[int]:
    """The indices of what is dirty."""
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
