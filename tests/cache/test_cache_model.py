"""A local copy against a plain bytearray and a simulated directory, whatever happens to it in whatever order.

The process may be killed before any change of the file or the index: then the folder, as it is at that
moment, is all that the next process finds, and must show the content before or after the operation.
Chunks are small here, so that a few kilobytes have many of them.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import TestCase
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cache.copies import CopyStore, Dirty, LocalCopy, NeedsManifest
from cache.index import Index
from cache.sparse import SparseFile
from wire.chunking import chunk_count, new_chunk_id, pieces
from wire.messages.directory import ChunkAt

CHUNK = 8192
SIZE_MAX = 3 * CHUNK + 100
INO = 300

offsets = st.sampled_from([i * CHUNK + d for i in range(4) for d in (-1, 0, 1, 100) if i or d >= 0])
lengths = st.sampled_from([1, 5, 300, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
kills = st.sampled_from([None] * 12 + [0, 1, 2, 3, 6])
"""Before which change of the disk the process dies; after the operation if there are not so many."""

commits_elsewhere = rule(
    size=offsets,
    changed=st.sets(st.integers(0, 3)),
    holes=st.sets(st.integers(0, 3)),
    fill=st.integers(1, 255),
    kill_at=kills,
)
"""What somebody else's commit changes: see ``commit_elsewhere`` of the machine."""

DISK_CHANGES: list[tuple[type, str]] = [
    *((SparseFile, name) for name in ("write", "resize", "punch", "mark")),
    *((SparseFile, name) for name in ("_copy_to", "_go_on_with")),
    *((Index, name) for name in ("put_clean", "put_dirty", "forget_clean", "replace", "forget")),
]
Manifest = dict[int, tuple[bytes, bytes]]


class Remote:
    """The versions of one file: size, and id and bytes of each chunk that is no hole."""

    def __init__(self) -> None:
        self.versions: dict[int, tuple[int, Manifest]] = {0: (0, {})}

    def content(self, version: int) -> bytearray:
        size, chunks = self.versions[version]
        content = bytearray(chunk_count(size) * CHUNK)
        for index, (_, data) in chunks.items():
            content[index * CHUNK : index * CHUNK + len(data)] = data
        return content[:size]

    def chunks(self) -> dict[bytes, bytes]:
        """All chunks by their ids."""
        return dict(chunk for _, chunks in self.versions.values() for chunk in chunks.values())

    def add(
        self, base: int, size: int, keep_size: int, changes: dict[int, tuple[bytes, bytes] | None]
    ) -> int:
        """As a commit does; returns the new version."""
        chunks = {i: c for i, c in self.versions[base][1].items() if i * CHUNK < keep_size}
        for index, change in changes.items():
            chunks.pop(index, None)
            if change is not None:
                chunks[index] = change
        version = max(self.versions) + 1
        self.versions[version] = size, chunks
        return version


def padded(content: bytes, to: bytes) -> bytes:
    """As much of ``content`` as there is of ``to``, with zeros where it ends."""
    return content[: len(to)] + bytes(max(len(to) - len(content), 0))


class Begun:
    """A commit between its snapshot and its end."""

    def __init__(self, snapshot: Dirty, copy: LocalCopy) -> None:
        self.snapshot = snapshot
        self.changes: dict[int, tuple[bytes, bytes] | None] = {}
        for index in snapshot.chunks:
            data = copy.chunk_bytes(index)
            self.changes[index] = (new_chunk_id(data), data) if data else None
        self.ids = {i: (c[0], len(c[1])) if c else None for i, c in self.changes.items()}


class CopyMachine(RuleBasedStateMachine):
    """``model`` is what the copy must show, ``lent`` a descriptor through which it is written to past it, and
    ``unseen`` whether it was since the last rescan."""

    def __init__(self) -> None:
        super().__init__()
        self.patches: list[Any] = [
            *(
                patch(f"{module}.CHUNK_BYTES", CHUNK)
                for module in ("wire.chunking", "cache.local", "cache.lending", "cache.succession")
            ),
            *(patch.object(kind, name, self.watched(kind, name)) for kind, name in DISK_CHANGES),
        ]
        for each in self.patches:
            each.start()
        self.kill_at: int | None = None
        self.found_after_kill: Path | None = None
        self.last_begun: Begun | None = None
        # In memory where that can be: closing a store waits for all that its disk has to write.
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.scratch = Path(tempfile.mkdtemp(prefix="dfs-model-", dir=shared))
        self.generation = 0
        self.folder = self.scratch / "0"
        self.store = CopyStore(self.folder, 10**9)
        self.copy = self.store.open(INO)
        self.remote = Remote()
        self.model = bytearray()
        self.begun: Begun | None = None
        self.lent: int | None = None
        self.unseen = False

    def teardown(self) -> None:
        self.copy.rescan()
        self.check_everything()
        self.take_back()
        self.store.close()
        shutil.rmtree(self.scratch)
        for each in self.patches:
            each.stop()

    # Kills

    def watched(self, kind: type, name: str) -> Callable[..., Any]:
        real = getattr(kind, name)

        def call(*args: Any, **options: Any) -> Any:
            if self.kill_at is not None and self.found_after_kill is None:
                if self.kill_at == 0:
                    self.keep_disk()
                self.kill_at -= 1
            return real(*args, **options)

        return call

    def keep_disk(self) -> None:
        self.generation += 1
        self.found_after_kill = self.scratch / str(self.generation)
        shutil.copytree(self.folder, self.found_after_kill)

    @contextmanager
    def risky(self, kill_at: int | None, *, torn: bool = False) -> Iterator[None]:
        """``torn``: a kill in the middle may leave a part of the operation."""
        version, before, self.last_begun = self.copy.version, bytes(self.model), self.begun
        self.kill_at = kill_at
        yield
        if kill_at is not None and self.found_after_kill is None:
            self.keep_disk()
        self.kill_at = None
        if self.found_after_kill is not None:
            self.folder, self.found_after_kill = self.found_after_kill, None
            self.resurrect(version, before, torn)

    def resurrect(self, before_version: int, before: bytes, torn: bool) -> None:
        after_version, after = self.copy.version, bytes(self.model)
        self.take_back()
        self.store.close()
        self.store = CopyStore(self.folder, 10**9)
        self.copy = self.store.open(INO)
        self.unseen = False
        self.begun = self.begun or self.last_begun
        self.take_up_pending()
        if self.copy.dirty:
            assert self.copy.version in (before_version, after_version)
            self.fetch(0, SIZE_MAX)
            found = self.copy.read(0, SIZE_MAX + 1)
            assert torn or found in (before, after)
            assert min(len(before), len(after)) <= len(found) <= max(len(before), len(after))
            for shown, *allowed in zip(found, padded(before, found), padded(after, found), strict=True):
                assert shown in allowed
            self.model = bytearray(found)
        else:
            self.model = self.remote.content(after_version)
            assert self.model in (before, after)
            if self.begun is None:  # else it says so when the outcome is known
                self.copy.adopt(after_version, len(self.model))

    def take_up_pending(self) -> None:
        pending = self.copy.pending()
        if pending is None:
            self.begun = None
            return
        assert self.begun is not None
        assert pending.chunk_ids == self.begun.ids

    # What the user of a copy does

    def fetch(self, offset: int, size: int) -> None:
        while True:
            _, chunks = self.remote.versions[self.copy.version]
            try:
                missing = self.copy.missing(offset, size)
            except NeedsManifest as need:
                places = {i: ChunkAt(i, c[0], len(c[1]), [1]) for i, c in chunks.items()}
                wanted = {i: place for i, place in places.items() if need.index <= i < need.index + 3}
                self.copy.learn(need.index, 3, wanted)
                continue
            for index in missing:
                place = self.copy.chunk_at(index)
                assert place is not None
                assert not self.copy.fill(index, b"x" * 48, b"another")
                assert self.copy.fill(index, place.id, chunks[index][1])
                assert not self.copy.fill(index, place.id, chunks[index][1])
            if not missing:
                return

    def fetch_what_is_cut(self, offset: int, size: int) -> None:
        for index, start, length in pieces(offset, size):
            whole = start == 0 and start + length >= min(CHUNK, len(self.model) - index * CHUNK)
            if not whole:
                self.fetch(index * CHUNK, CHUNK)

    @rule(offset=offsets, size=lengths, fill=st.integers(1, 255), kill_at=kills)
    def write(self, offset: int, size: int, fill: int, kill_at: int | None) -> None:
        with self.risky(kill_at, torn=True):
            size = min(size, SIZE_MAX - offset) or 1
            data = bytes((fill + i) % 255 + 1 for i in range(16)) * (size // 16 + 1)
            self.fetch_what_is_cut(offset, size)
            self.copy.write(offset, data[:size])
            self.model.extend(bytes(max(offset + size - len(self.model), 0)))
            self.model[offset : offset + size] = data[:size]

    @rule(offset=offsets, size=lengths, kill_at=kills)
    def punch(self, offset: int, size: int, kill_at: int | None) -> None:
        with self.risky(kill_at, torn=True):
            self.fetch_what_is_cut(offset, min(size, len(self.model) - offset))
            self.copy.punch(offset, size)
            end = min(offset + size, len(self.model))
            self.model[offset:end] = bytes(max(end - offset, 0))

    @rule(size=offsets, kill_at=kills)
    def truncate(self, size: int, kill_at: int | None) -> None:
        with self.risky(kill_at):
            if size < len(self.model) and size % CHUNK:
                self.fetch(size, 1)
            self.copy.truncate(size)
            self.model = self.model[:size] + bytes(max(size - len(self.model), 0))

    @rule(offset=offsets, size=lengths, kill_at=kills)
    def read(self, offset: int, size: int, kill_at: int | None) -> None:
        with self.risky(kill_at):
            self.fetch(offset, size)
            expected = bytes(self.model[offset : offset + size])
            assert self.copy.read(offset, size) == expected
            buffer = memoryview(bytearray(size))
            count = self.copy.read_into(offset, buffer)
            assert buffer[:count] == expected

    # What the kernel does

    @precondition(lambda self: self.lent is None)
    @rule(flags=st.sampled_from([os.O_WRONLY, os.O_RDWR]), kill_at=kills)
    def lend(self, flags: int, kill_at: int | None) -> None:
        self.fetch(0, SIZE_MAX)
        with self.risky(kill_at):
            self.lent = self.copy.lend(flags)
            assert self.lent is not None
            assert os.fstat(self.lent).st_ino == self.copy.file_number

    @precondition(lambda self: self.lent is not None)
    @rule(offset=offsets, size=lengths, fill=st.integers(1, 255), kill_at=kills)
    def write_past_us(self, offset: int, size: int, fill: int, kill_at: int | None) -> None:
        assert self.lent is not None
        with self.risky(kill_at, torn=True):
            self.change_past_us(self.lent, offset, size, fill)

    def change_past_us(self, lent: int, offset: int, size: int, fill: int) -> None:
        size = min(size, SIZE_MAX - offset) or 1
        assert os.pwrite(lent, bytes([fill]) * size, offset) == size
        self.model.extend(bytes(max(offset + size - len(self.model), 0)))
        self.model[offset : offset + size] = bytes([fill]) * size
        self.unseen = True

    @rule(kill_at=kills)
    def rescan(self, kill_at: int | None) -> None:
        with self.risky(kill_at):
            assert not self.unseen or self.copy.look()
            assert not self.unseen or self.copy.rescan()
            self.copy.rescan()
            self.unseen = False

    @rule(kill_at=kills)
    def take_home(self, kill_at: int | None) -> None:
        with self.risky(kill_at):
            self.copy.take_home()
            assert not self.copy.is_past_us or not self.copy.is_borrowed()
            self.take_back()
            self.unseen = False

    @rule()
    def take_back(self) -> None:
        if self.lent is not None:
            os.close(self.lent)
            self.lent = None
            assert not self.copy.take_back()

    @precondition(lambda self: self.begun is None)
    @rule(chunks_max=st.sampled_from([1, 9, 9]), begin=st.booleans(), offset=offsets, later=st.integers(0, 9))
    def snapshot(self, chunks_max: int, begin: bool, offset: int, later: int) -> None:
        self.copy.rescan()
        self.unseen = False
        self.begun = Begun(self.copy.snapshot_dirty(chunks_max), self.copy)
        if len(self.begun.changes) == len(self.dirty_chunks()):
            base, begun = self.copy.version, self.begun.snapshot
            made = self.remote.add(base, begun.size, begun.keep_size, self.begun.changes)
            assert self.remote.content(made) == self.model, "all of it was in the snapshot"
            del self.remote.versions[made]
        if begin:
            self.copy.begin_commit(self.begun.snapshot, b"c" * 16, self.begun.ids)

        if self.lent is not None and later > 4:  # after the upload
            self.change_past_us(self.lent, offset, 1, later)

    @precondition(lambda self: self.begun is not None and self.copy.pending() is None)
    @rule(kill_at=kills)
    def begin(self, kill_at: int | None) -> None:
        with self.risky(kill_at):
            assert self.begun is not None
            self.copy.begin_commit(self.begun.snapshot, b"c" * 16, self.begun.ids)
            assert self.copy.pending() is not None

    @precondition(lambda self: self.begun is not None)
    @rule(kill_at=kills)
    def commit(self, kill_at: int | None) -> None:
        begun = self.begun
        assert begun is not None
        snapshot = begun.snapshot
        if self.copy.pending() is None:
            self.copy.begin_commit(snapshot, b"c" * 16, begun.ids)
        version = self.remote.add(snapshot.base, snapshot.size, snapshot.keep_size, begun.changes)
        with self.risky(kill_at):
            self.copy.committed(version)
            self.begun = None
        if self.begun is not None:
            self.copy.committed(version)
            self.begun = None
        assert self.copy.pending() is None

    @precondition(lambda self: self.begun is not None)
    @rule(kill_at=kills)
    def abort(self, kill_at: int | None) -> None:
        with self.risky(kill_at):
            self.begun = None
            self.copy.abort_commit()

    @rule(kill_at=kills)
    def discard(self, kill_at: int | None) -> None:
        with self.risky(kill_at):
            self.copy.discard()
            self.take_back()  # what is still written goes to nobody
            self.begun, self.unseen = None, False
            self.model = self.remote.content(self.copy.version)
            assert not self.copy.dirty

    @precondition(lambda self: not self.copy.dirty and self.begun is None)
    @commits_elsewhere
    def adopt(self, size: int, changed: set[int], holes: set[int], fill: int, kill_at: int | None) -> None:
        """Somebody else commits, and this copy moves to it."""
        if self.is_ours():
            return
        with self.risky(kill_at), self.shown_to_borrowers():
            version = self.commit_elsewhere(size, changed, holes, fill)
            self.copy.adopt(version, size)
            self.model = self.remote.content(version)

    def commit_elsewhere(self, size: int, changed: set[int], holes: set[int], fill: int) -> int:
        content = self.remote.content(self.copy.version)
        old = len(content)
        content = content[:size] + bytes(max(size - old, 0))
        if size < old and size % CHUNK:
            changed = changed | {size // CHUNK}
        changes: dict[int, tuple[bytes, bytes] | None] = {}
        for index in range(chunk_count(size)):
            if index in holes:
                changes[index] = None
            elif index in changed:
                part = content[index * CHUNK : (index + 1) * CHUNK]
                part[len(part) // 2 :] = bytes([fill]) * (len(part) - len(part) // 2)
                changes[index] = new_chunk_id(bytes(part)), bytes(part)
        return self.remote.add(self.copy.version, size, min(size, old), changes)

    @precondition(lambda self: not self.copy.dirty and self.begun is None)
    @commits_elsewhere
    def follow(self, size: int, changed: set[int], holes: set[int], fill: int, kill_at: int | None) -> None:
        """As ``adopt``, with somebody who reads the file past the copy."""
        self.take_back()
        if self.is_ours():
            return
        self.fetch(0, SIZE_MAX)
        reader = self.copy.lend(os.O_RDONLY)
        assert reader is not None
        assert self.copy.is_used_past_us()
        with self.risky(kill_at):
            version = self.commit_elsewhere(size, changed, holes, fill)
            self.bring(version)
            self.model = self.remote.content(version)
            assert os.pread(reader, SIZE_MAX + 1, 0) == self.model
        os.close(reader)

    def bring(self, version: int) -> None:
        size, chunks = self.remote.versions[version]
        successor = self.copy.successor(version, size)
        assert successor is not None
        with successor:
            successor.learn(ChunkAt(i, chunk[0], len(chunk[1]), [1]) for i, chunk in chunks.items())
            for place in successor.wanted:
                successor.fill(place, chunks[place.index][1])
            assert self.copy.follow(successor)

    @precondition(lambda self: not self.copy.dirty and self.begun is None)
    @rule(old=st.integers(0, 50), fetch=st.booleans(), kill_at=kills)
    def adopt_restored(self, old: int, fetch: bool, kill_at: int | None) -> None:
        """Somebody restores an old version: its chunks come back under their ids."""
        if self.is_ours():
            return
        with self.risky(kill_at), self.shown_to_borrowers():
            version = max(self.remote.versions) + 1
            known = sorted(self.remote.versions)
            self.remote.versions[version] = self.remote.versions[known[old % len(known)]]
            self.copy.adopt(version, self.remote.versions[version][0])
            self.model = self.remote.content(version)
            if fetch:
                self.fetch(0, SIZE_MAX)

    def is_ours(self) -> bool:
        """Whether something was written past the copy, so that it must not move to another version."""
        self.copy.rescan()
        self.unseen = False
        return self.copy.dirty

    @contextmanager
    def shown_to_borrowers(self) -> Iterator[None]:
        """Whatever happens, who has the file goes on reading what he read."""
        before = os.pread(self.lent, SIZE_MAX + 1, 0) if self.lent is not None else b""
        yield
        if self.lent is not None:
            assert os.pread(self.lent, SIZE_MAX + 1, 0) == before
            assert before == b"" or os.fstat(self.lent).st_ino != self.copy.file_number
            self.take_back()

    @precondition(lambda self: self.begun is None)
    @rule()
    def save(self) -> None:
        """All of it is committed and here, so that more can happen to it."""
        self.is_ours()
        while self.copy.dirty:
            begun = Begun(self.copy.snapshot_dirty(), self.copy)
            snapshot = begun.snapshot
            version = self.remote.add(snapshot.base, snapshot.size, snapshot.keep_size, begun.changes)
            self.copy.begin_commit(snapshot, b"c" * 16, begun.ids)
            self.copy.committed(version)
        self.fetch(0, SIZE_MAX)

    def dirty_chunks(self) -> list[int]:
        return [index for index in range(chunk_count(len(self.model))) if self.copy.is_dirty(index)]

    # What happens to it

    @rule(kill_at=kills)
    def reopen(self, kill_at: int | None) -> None:
        with self.risky(kill_at):
            self.copy.close()
            self.copy = self.store.open(INO)
            self.unseen = False
            self.take_up()

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = CopyStore(self.folder, 10**9)
        self.copy = self.store.open(INO)
        self.unseen = False
        self.take_up()

    def take_up(self) -> None:
        """A copy that held nothing may have been forgotten, or remember an older version."""
        self.take_up_pending()
        is_old = self.copy.version == 0 or self.remote.content(self.copy.version) != self.model
        if self.begun is None and not self.copy.dirty and is_old:
            self.copy.adopt(self.version_shown(), len(self.model))

    def version_shown(self) -> int:
        return max(v for v in self.remote.versions if self.remote.content(v) == self.model)

    @precondition(lambda self: not self.copy.dirty and self.begun is None)
    @rule()
    def evict(self) -> None:
        if self.is_ours():
            return
        self.take_back()
        version = self.copy.version
        self.copy.close()
        self.store.drop(INO)
        self.copy = self.store.open(INO)
        assert (self.copy.version, self.copy.size) == (0, 0)
        self.copy.adopt(version, len(self.model))

    # What is always true

    @invariant()
    def what_is_here_is_right(self) -> None:
        self.copy.look()
        assert self.copy.size == len(self.model)
        for index in range(chunk_count(len(self.model))):
            try:
                if self.copy.missing(index * CHUNK, 1):
                    continue
            except NeedsManifest:
                continue
            expected = bytes(self.model[index * CHUNK : (index + 1) * CHUNK])
            assert self.copy.read(index * CHUNK, CHUNK) == expected, f"chunk {index}"
            if self.unseen:
                continue
            assert self.copy.chunk_bytes(index) in (expected, b"")
            place = self.copy.chunk_at(index)
            assert place is None or not self.copy.is_dirty(index)
            if not self.copy.is_dirty(index):
                named = self.remote.chunks()[place.id] if place else b""
                assert padded(named, expected) == expected, f"chunk {index} is named wrongly"

    @invariant()
    def what_is_clean_is_the_base(self) -> None:
        if self.unseen:
            return
        base = self.remote.content(self.copy.version)
        if not self.copy.dirty:
            assert base == self.model
        dirty = self.dirty_chunks()
        for index in range(chunk_count(min(self.copy._changes.keep_size, len(self.model)))):
            if index not in dirty:
                part = slice(index * CHUNK, min((index + 1) * CHUNK, len(base), len(self.model)))
                assert base[part] == self.model[part]

    @invariant()
    def the_count_of_bytes_is_right(self) -> None:
        assert self.store.used_bytes() == self.copy.allocated

    def check_everything(self) -> None:
        self.fetch(0, SIZE_MAX)
        assert self.copy.read(0, SIZE_MAX + 1) == bytes(self.model)


TestCopyMachine: Any = CopyMachine.TestCase
TestCopyMachine.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
assert issubclass(TestCopyMachine, TestCase)
