"""Chunks as files, each written whole and durable before it has its name.

Below the root::

    chunks/ab/<96 hex digits>   a chunk; ``ab`` are its first two digits
    new/                        files that have no name yet; swept at every start
    damaged/                    what the scrub found to be damaged, for a person to look at
    lock                        held while a server runs, so that two never share a root

A folder of chunks is made for its first chunk, and stays: any other name costs the fsync of one folder only.
"""

import errno
import fcntl
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from servers.durable import replace, sync_folder, write_new
from wire.chunking import CHUNK_ID_BYTES
from wire.errors import fail


class ChunkFiles:
    """The files below ``root``. Raises EBUSY if another process has it."""

    def __init__(self, root: Path) -> None:
        self._chunks = root / "chunks"
        self._new = root / "new"
        self._damaged = root / "damaged"
        self._numbers = itertools.count()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock(root / "lock")
        for folder in (self._chunks, self._new, self._damaged):
            folder.mkdir(mode=0o700, exist_ok=True)
        for folder in (self._chunks, root, root.parent):
            sync_folder(folder)
        self._durable = set(os.listdir(self._chunks))
        for leftover in self._new.iterdir():
            leftover.unlink()

    def close(self) -> None:
        """Lets others have the root."""
        os.close(self._lock)

    def stage(self, data: bytes) -> Path:
        """Writes ``data`` durably to a file without a name. Raises OSError and leaves nothing behind."""
        staged = self._new / str(next(self._numbers))
        try:
            write_new(staged, data)
        except OSError:
            staged.unlink(missing_ok=True)
            raise
        return staged

    def drop(self, staged: Path) -> None:
        """Removes a staged file that is not needed."""
        staged.unlink(missing_ok=True)

    def publish(self, staged: Path, chunk_id: bytes) -> None:
        """Gives a staged file its name, durably. Raises OSError and leaves nothing under either name: what
        had that name before must be worth nothing."""
        path = self._path(chunk_id)
        try:
            self._make_folder(path.parent)
            os.rename(staged, path)
            sync_folder(path.parent)
        except OSError:
            staged.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise

    def read(self, chunk_id: bytes, size: int, *, from_disk: bool = False) -> bytes:
        """The file's bytes. EIO if they are not ``size``, ENOENT if there is no file. ``from_disk`` lets the
        kernel forget the pages first: what it remembers says nothing about the disk."""
        fd = os.open(self._path(chunk_id), os.O_RDONLY | os.O_CLOEXEC)
        try:
            if from_disk:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            found = os.fstat(fd).st_size
            data = os.read(fd, size) if found == size else b""
        finally:
            os.close(fd)
        if found != size or len(data) != size:
            raise fail(errno.EIO, f"chunk {chunk_id.hex()} has {found} bytes on disk and should have {size}")
        return data

    def size(self, chunk_id: bytes) -> int | None:
        """The file's size, or None if there is none."""
        try:
            return os.stat(self._path(chunk_id)).st_size
        except FileNotFoundError:
            return None

    def written_at(self, chunk_id: bytes) -> float:
        """When the file was written, in seconds since the epoch."""
        return os.stat(self._path(chunk_id)).st_mtime

    def remove(self, chunk_id: bytes) -> None:
        """Removes the file, if there is one. A name that comes back after a crash does no harm."""
        self._path(chunk_id).unlink(missing_ok=True)

    def sync(self, chunk_id: bytes) -> None:
        """Waits until the file's name is on disk."""
        sync_folder(self._path(chunk_id).parent)

    def set_aside(self, chunk_id: bytes, data: bytes | None) -> None:
        """Moves the file to ``damaged``; ``data`` is what a chunk without a file has."""
        aside = self._damaged / chunk_id.hex()
        if data is not None:
            aside.write_bytes(data)
        elif self.size(chunk_id) is not None:
            os.rename(self._path(chunk_id), aside)

    def ids(self, first_byte: int) -> Iterator[bytes]:
        """The chunks of one folder, in no order. Names that are no chunk's are passed over."""
        if f"{first_byte:02x}" not in self._durable:
            return
        with os.scandir(self._chunks / f"{first_byte:02x}") as entries:
            for entry in entries:
                try:
                    chunk_id = bytes.fromhex(entry.name)
                except ValueError:
                    continue
                if len(chunk_id) == CHUNK_ID_BYTES and self._path(chunk_id).name == entry.name:
                    yield chunk_id

    def _make_folder(self, folder: Path) -> None:
        """Makes a folder of chunks, durably. (Its lock is held, see ChunkStore: nobody else does.)"""
        if folder.name not in self._durable:
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_folder(self._chunks)
            self._durable.add(folder.name)

    def _path(self, chunk_id: bytes) -> Path:
        name = chunk_id.hex()
        return self._chunks / name[:2] / name


def identity(root: Path) -> bytes:
    """The 16 bytes by which the directory knows this root again; made at the first start."""
    path = root / "identity"
    try:
        return path.read_bytes()
    except FileNotFoundError:
        replace(path, os.urandom(16))
        return path.read_bytes()


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise fail(errno.EBUSY, f"another file server uses {path.parent}") from None
    return fd
