"""One file, and a program that does to it whatever comes to its mind, on two mounts by turns.

All it does is done to a bytearray too, and what it reads is compared. What a *turn* has written must be what
the other mount shows after each fsync and close; readers that stay open over the turns must show one version
as a whole, none older than the one that they opened.

A run is the same again with the same seed, but for the moments at which mounts work behind the scenes.
"""

import mmap
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mount.ranges import KEEP_SIZE, PUNCH_HOLE
from tests.support.holes import fallocate

MIB = 1024 * 1024
BORDERS = (0, 4096, MIB, 2 * MIB, 3 * MIB, 4 * MIB)
"""Pages; what the kernel serves itself; chunks."""

LENGTHS = (1, 100, 4096, 5000, 70_000, MIB)
ACCESSES = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_APPEND)
SIZE_MAX = 4 * MIB + 10_000
FILES_MAX = 4


@dataclass
class _File:
    descriptor: int
    flags: int

    @property
    def reads(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writes(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY


@dataclass
class _Reader:
    mount: int
    descriptor: int
    map: mmap.mmap | None

    def close(self) -> None:
        if self.map is not None:
            self.map.close()
        os.close(self.descriptor)


class Exerciser:
    """On the file ``name`` in each of two folders, which are one folder as two mounts show it. ``run`` raises
    AssertionError for what is not as it must be; ``said`` tells what was done before."""

    def __init__(self, seed: int, folders: Sequence[Path], name: str) -> None:
        self._random = random.Random(seed)
        self._paths = [folder / name for folder in folders]
        self._content = bytearray()
        self._mount = 0
        self._files: list[_File] = []
        self._maps: list[mmap.mmap] = []
        self._readers: list[_Reader] = []
        self.said: list[str] = []
        self.done: set[str] = set()

    def run(self, turns: int) -> None:
        """So many turns."""
        try:
            self._paths[0].touch()
            for _ in range(turns):
                self._turn()
            for reader in self._readers:
                reader.close()
        except BaseException:
            self._close_all()
            raise

    def _turn(self) -> None:
        self._mount = self._random.randrange(2)
        self._say(f"turn of mount {self._mount}")
        self._open()
        for _ in range(self._random.randrange(2, 14)):
            self._choose()()
        while self._files or self._maps:
            (self._close if self._files and self._random.random() < 0.7 else self._unmap)()
        for mount in self._random.sample((0, 1), 2):
            self._compare(f"mount {mount}", self._paths[mount].read_bytes())
            self._check_readers(mount)
        for reader in list(self._readers):
            if self._random.random() < 0.4:
                self._leave(reader)
        if len(self._readers) < 3 and self._random.random() < 0.5:
            self._stay()

    def _choose(self) -> Callable[[], None]:
        writes, maps = (
            [one for one in self._files if one.writes],
            [one for one in self._files if self._can_map(one)],
        )
        able: list[Callable[[], None]] = [self._open, self._read, self._stat]
        if writes:
            able += [
                self._write,
                self._write,
                self._write,
                self._truncate,
                self._sync,
                self._punch,
                self._copy,
            ]
        if maps and len(self._content):
            able += [self._map, self._map]
        if self._maps:
            able += [self._write_map, self._write_map, self._read_map, self._unmap]
        if self._files:
            able.append(self._close)
        return self._random.choice(able)

    # Open files

    def _open(self) -> None:
        if len(self._files) >= FILES_MAX:
            return
        flags = self._random.choice(ACCESSES)
        if self._random.random() < 0.1 and flags & os.O_ACCMODE != os.O_RDONLY:
            flags |= os.O_TRUNC
        self._say(f"open {flags:o}")
        self._files.append(_File(os.open(self._paths[self._mount], flags), flags))
        if flags & os.O_TRUNC:
            self._content.clear()
        self._check_readers(self._mount)

    def _close(self) -> None:
        file = self._random.choice(self._files)
        self._files.remove(file)
        self._say(f"close {file.flags:o}")
        os.close(file.descriptor)

    def _any(self, fits: Callable[[_File], bool]) -> _File | None:
        found = [file for file in self._files if fits(file)]
        return self._random.choice(found) if found else None

    def _place(self) -> int:
        around = self._random.choice((*BORDERS, len(self._content)))
        return max(0, around + self._random.choice((-5000, -4096, -1, 0, 0, 1, 4096)))

    def _read(self) -> None:
        file = self._any(lambda one: one.reads)
        if file is not None:
            at, length = self._place(), self._random.choice(LENGTHS)
            self._say(f"read {length} at {at}, {file.flags:o}")
            self._compare("read", os.pread(file.descriptor, length, at), at, length)

    def _stat(self) -> None:
        file = self._any(lambda one: True)
        found = os.stat(self._paths[self._mount] if file is None else file.descriptor)
        self._say("stat")
        assert found.st_size == len(self._content), f"{found.st_size} for {len(self._content)}, {file}"

    def _write(self) -> None:
        file = self._any(lambda one: one.writes)
        assert file is not None
        at = len(self._content) if file.flags & os.O_APPEND else self._place()
        data = self._random.randbytes(self._random.choice(LENGTHS))
        if at + len(data) <= SIZE_MAX:
            self._say(f"write {len(data)} at {at}, {file.flags:o}")
            assert os.pwrite(file.descriptor, data, at) == len(data)
            self._changed(at, data)

    def _truncate(self) -> None:
        file = self._any(lambda one: one.writes)
        assert file is not None
        size = min(self._place(), SIZE_MAX)
        self._say(f"truncate to {size} from {len(self._content)}")
        if self._random.random() < 0.7:
            os.truncate(file.descriptor, size)
        else:
            os.truncate(self._paths[self._mount], size)
        del self._content[size:]
        self._content.extend(bytes(size - len(self._content)))

    def _punch(self) -> None:
        file = self._any(lambda one: one.writes)
        assert file is not None
        at, length = self._place(), self._random.choice(LENGTHS)
        if at < len(self._content):
            self._say(f"punch {length} at {at}")
            fallocate(file.descriptor, PUNCH_HOLE | KEEP_SIZE, at, length)
            self._changed(at, bytes(min(length, len(self._content) - at)))

    def _copy(self) -> None:
        source, target = self._any(lambda one: one.reads), self._any(lambda one: one.writes)
        at, to, length = self._place(), self._place(), self._random.choice(LENGTHS)
        if source is None or target is None or target.flags & os.O_APPEND or abs(at - to) < length:
            return
        if to + length > SIZE_MAX:
            return
        self._say(f"copy {length} from {at} to {to}")
        done = os.copy_file_range(source.descriptor, target.descriptor, length, at, to)
        assert done == len(self._content[at : at + length])
        self._changed(to, bytes(self._content[at : at + done]))

    def _sync(self) -> None:
        file = self._any(lambda one: one.writes)
        assert file is not None
        self._say(f"fsync {file.flags:o}")
        os.fsync(file.descriptor)
        if self._random.random() < 0.5:
            self._compare("there after fsync", self._paths[1 - self._mount].read_bytes())

    # Maps

    def _can_map(self, file: _File) -> bool:
        return file.reads and file.writes

    def _map(self) -> None:
        file = self._any(self._can_map)
        if file is not None and len(self._maps) < 2:
            self._say(f"map {len(self._content)}, {file.flags:o}")
            self._maps.append(mmap.mmap(file.descriptor, len(self._content)))

    def _mapped(self) -> tuple[mmap.mmap, int, int]:
        """A map, and a part of it that is in the file."""
        found = self._random.choice(self._maps)
        end = min(len(found), len(self._content))
        at = min(self._place(), max(end - 1, 0))
        return found, at, min(self._random.choice(LENGTHS), end - at)

    def _write_map(self) -> None:
        found, at, length = self._mapped()
        self._say(f"write {length} into a map at {at}")
        data = self._random.randbytes(max(length, 0))
        found[at : at + len(data)] = data
        self._changed(at, data)
        if self._random.random() < 0.2:
            found.flush()

    def _read_map(self) -> None:
        found, at, length = self._mapped()
        self._say(f"read {length} of a map at {at}")
        if length > 0:
            self._compare("map", found[at : at + length], at, length)

    def _unmap(self) -> None:
        if self._maps:
            self._say("unmap")
            self._maps.pop(self._random.randrange(len(self._maps))).close()

    # Readers that stay

    def _stay(self) -> None:
        mount = self._random.randrange(2)
        descriptor = os.open(self._paths[mount], os.O_RDONLY)
        maps = len(self._content) and self._random.random() < 0.4
        found = mmap.mmap(descriptor, len(self._content), prot=mmap.PROT_READ) if maps else None
        self._say(f"a reader stays on mount {mount}")
        self._readers.append(_Reader(mount, descriptor, found))

    def _leave(self, reader: _Reader) -> None:
        self._say(f"a reader of mount {reader.mount} goes")
        self._readers.remove(reader)
        reader.close()

    def _check_readers(self, mount: int) -> None:
        for reader in self._readers:
            if reader.mount == mount:
                self._say(f"a reader of mount {mount} is looked at")
                self._compare("a reader", os.pread(reader.descriptor, SIZE_MAX + 1, 0))
                self._check_map(reader)

    def _check_map(self, reader: _Reader) -> None:
        if reader.map is not None:
            shown = reader.map[: len(self._content)]
            self._compare("a reader's map", shown, 0, len(shown))

    # What must be

    def _changed(self, at: int, data: bytes) -> None:
        if data:
            self._content.extend(bytes(max(at - len(self._content), 0)))
        self._content[at : at + len(data)] = data

    def _compare(self, what: str, found: bytes, at: int = 0, length: int = SIZE_MAX + 1) -> None:
        expected = bytes(self._content[at : at + length])
        if found != expected:
            both = min(len(found), len(expected))
            first = next((i for i in range(both) if found[i] != expected[i]), both)
            wrong = sum(a != b for a, b in zip(found, expected, strict=False))
            raise AssertionError(
                f"{what}: {len(found)} bytes for {len(expected)}, {wrong} differ, from {at + first} on:"
                f" {found[first : first + 8].hex()} for {expected[first : first + 8].hex()}"
            )

    def _say(self, what: str) -> None:
        self.said.append(what)
        self.done.add(what.split(" ")[0])

    def _close_all(self) -> None:
        for found in self._maps:
            found.close()
        for file in self._files:
            try:
                os.close(file.descriptor)
            except OSError:
                pass
        for reader in self._readers:
            reader.close()
