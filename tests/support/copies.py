"""Local copies of files, filled and committed as a mount does, and what the next process finds of them."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from cache.copies import CopyStore, LocalCopy
from wire.chunking import chunk_count, new_chunk_id
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ChunkAt

LIMIT = 10**9


def fetch(copy: LocalCopy, version: int, chunks: dict[int, bytes], size: int) -> dict[int, ChunkAt]:
    """Moves to a version, of whose chunks these come from the servers."""
    places = {i: ChunkAt(i, new_chunk_id(data), len(data), [1]) for i, data in chunks.items()}
    copy.adopt(version, size)
    copy.learn(0, 8192, places)
    for index, place in places.items():
        assert copy.fill(index, place.id, chunks[index])
    return places


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


class Told(NamedTuple):
    """What a process has said that it did before it was killed."""

    written: dict[int, int]
    """By offset: the number that was written there, in 8 digits."""
    version: int
    """The last one committed."""
    since: set[int]
    """The indices of the chunks written to after that."""

    def is_in(self, copy: LocalCopy) -> None:
        """Asserts that all of it is there."""
        for offset, number in self.written.items():
            assert copy.read(offset, 8) == b"%08d" % number
        if copy.version == self.version:
            assert self.since <= set(dirty_chunks(copy))


def told_before_kill_9(program: str, folder: Path, lines: int) -> Told:
    """Runs a program that has a store in ``folder``, and kills it after so many lines of what it says:
    "written" with an offset, or "committed" with a version."""
    child = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        try:
            seen = [child.stdout.readline() for _ in range(lines)]
        finally:
            child.send_signal(signal.SIGKILL)
        seen += child.stdout.read().splitlines(keepends=True)
    return _told([line for line in seen if line.endswith("\n")])


def _told(lines: list[str]) -> Told:
    written: dict[int, int] = {}
    version, since = 0, set[int]()
    for what, value in (line.split() for line in lines):
        if what == "committed":
            version, since = int(value), set()
        else:
            written[int(value)] = len(written) + 1
            since.add(int(value) // CHUNK_BYTES)
    assert written, "something was at stake"
    return Told(written, version, since)
