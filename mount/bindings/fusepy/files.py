"""Operations that are about open files. A handle's number is the Vfs's."""

import errno
import os
from collections.abc import Callable
from typing import Any

from mount.bindings.fusepy.paths import Paths, split, umask
from wire.errors import fail


class Files(Paths):
    """As mfusepy calls them. Reading, writing and seeking are in the bridge."""

    def open(self, path: str, fi: Any) -> int:
        """open(2). With ESTALE the kernel asks for the name again, and makes it if it may (O_CREAT)."""
        try:
            handle = self.vfs.open_path(split(path), fi.flags, self._who())
        except FileNotFoundError as error:
            raise fail(errno.ESTALE, "the kernel has believed for too long that it is there") from error
        fi.fh = handle.number
        fi.direct_io, fi.keep_cache = self._pages.opened(path, handle)
        return 0

    def create(self, path: str, mode: int, fi: Any) -> int:
        """open(2) with O_CREAT of a name that the kernel believes to be free."""
        mask = umask()
        try:
            handle, _ = self._in_parent(
                path, lambda parent, name, who: self.vfs.create(parent, name, mode, fi.flags, who, mask)
            )
        except FileExistsError:
            if fi.flags & os.O_EXCL:
                raise
            return self.open(path, fi)
        fi.fh = handle.number
        self._pages.opened(path, handle)
        return 0

    def flush(self, path: str, fh: Any) -> int:
        """close(2)."""
        return self._saved(fh.fh, self.vfs.flush)

    def fsync(self, path: str, datasync: int, fh: Any) -> int:
        """fsync(2) and fdatasync(2)."""
        return self._saved(fh.fh, self.vfs.fsync)

    def _saved(self, number: int, save: Callable[[int], int]) -> int:
        try:
            version = save(number)
        except OSError:
            self._pages.doubted(number)
            raise
        self._pages.flushed(number, version)
        return 0

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: Any) -> int:
        """fallocate(2)."""
        self.vfs.fallocate(fh.fh, mode, offset, size)
        return 0

    def release(self, path: str, fh: Any) -> int:
        """After the last close(2)."""
        self._pages.closing(fh.fh)
        try:
            self.vfs.release(fh.fh)
        finally:
            hidden = self._pages.closed(fh.fh)
        if hidden is not None:
            self._remove_hidden(hidden)
        return 0
