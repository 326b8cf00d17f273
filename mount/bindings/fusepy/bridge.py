"""What libfuse calls. mfusepy leaves out of its calls what we need: rename's flags, truncate's handle,
UTIME_OMIT, reading and writing without copies, and EIO for the unforeseen.
"""

import ctypes
import errno
import logging
from collections.abc import Callable
from typing import Any, NoReturn

from mount.bindings.fusepy.libfuse import mfusepy
from mount.vfs import Changes
from wire.errors import fail

log = logging.getLogger(__name__)

UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
"""<linux/stat.h>, in tv_nsec."""


def bridged(_operations: object, *_: object) -> NoReturn:
    """Stands among the operations for one that is carried out here: mfusepy lets libfuse call only what it
    finds there."""
    raise fail(errno.ENOSYS, "the bridge carries it out")


class Bridge(mfusepy.FUSE):
    """mfusepy's own, with what it leaves out."""

    def _wrapper(self, func: Callable[..., int | None], *args: Any, **kwargs: Any) -> int:
        try:
            return func(*args, **kwargs) or 0
        except OSError as error:
            log.debug("%s: %s", func.__name__, error)
            return -(error.errno or errno.EIO)
        except Exception:
            log.exception("%s failed unforeseen", func.__name__)
            return -errno.EIO

    # Content

    def read(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        done: int = self.operations.vfs.read_into(fip.contents.fh, offset, _memory(buf, size))
        return done

    def write(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        done: int = self.operations.vfs.write(fip.contents.fh, offset, _memory(buf, size))
        return done

    def lseek(self, path: bytes | None, offset: int, whence: int, fip: Any) -> int:
        found: int = self.operations.vfs.seek(fip.contents.fh, offset, whence)
        return found

    # Names

    def rename_fuse_2(self, old: bytes, new: bytes) -> int:
        return self.rename_fuse_3(old, new, 0)

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        self.operations.rename_with(self._path(old), self._path(new), flags)
        return 0

    # Attributes

    def chmod_fuse_2(self, path: bytes | None, mode: int) -> int:
        return self.chmod_fuse_3(path, mode, None)

    def chmod_fuse_3(self, path: bytes | None, mode: int, fip: Any) -> int:
        return self._set(path, fip, Changes(mode=mode))

    def chown_fuse_2(self, path: bytes | None, uid: int, gid: int) -> int:
        return self.chown_fuse_3(path, uid, gid, None)

    def chown_fuse_3(self, path: bytes | None, uid: int, gid: int, fip: Any) -> int:
        owner, group = ctypes.c_int(uid).value, ctypes.c_int(gid).value
        return self._set(path, fip, self.operations.changed_owner(owner, group))

    def truncate_fuse_2(self, path: bytes | None, length: int) -> int:
        return self.truncate_fuse_3(path, length, None)

    def truncate_fuse_3(self, path: bytes | None, length: int, fip: Any) -> int:
        return self._set(path, fip, Changes(size=length))

    def ftruncate(self, path: bytes | None, length: int, fip: Any) -> int:
        """libfuse 2 only."""
        return self.truncate_fuse_3(path, length, fip)

    def utimens_fuse_2(self, path: bytes | None, buf: Any) -> int:
        return self.utimens_fuse_3(path, buf, None)

    def utimens_fuse_3(self, path: bytes | None, buf: Any, fip: Any) -> int:
        times = (buf.contents.actime, buf.contents.modtime) if buf else None
        asked = [(t.tv_sec, t.tv_nsec) for t in times] if times else [(0, UTIME_NOW)] * 2
        return self._set(path, fip, changed_times(asked))

    def _set(self, path: bytes | None, fip: Any, changes: Changes) -> int:
        if fip:
            self.operations.set_through(fip.contents.fh, changes)
        else:
            self.operations.set_at(self._path(path), changes)
        return 0

    def _path(self, path: bytes | None) -> str:
        assert path is not None, "libfuse leaves the path out only where there is a handle"
        return path.decode(self.encoding, self.errors)

    # Locks of programs

    def lock(self, path: bytes | None, fip: Any, command: int, asked: Any) -> int:
        file = fip.contents
        self.operations.locks.lock(file.fh, file.lock_owner, command, asked.contents)
        return 0

    def flock(self, path: bytes | None, fip: Any, operation: int) -> int:
        file = fip.contents
        self.operations.locks.flock(file.fh, file.lock_owner, operation)
        return 0


def changed_times(asked: list[tuple[int, int]]) -> Changes:
    """utimensat(2): atime and mtime, as (seconds, nanoseconds) with UTIME_NOW and UTIME_OMIT."""
    explicit = [
        None if nanoseconds in (UTIME_NOW, UTIME_OMIT) else seconds * 10**9 + nanoseconds
        for seconds, nanoseconds in asked
    ]
    now = [nanoseconds == UTIME_NOW for _, nanoseconds in asked]
    return Changes(atime=explicit[0], mtime=explicit[1], atime_now=now[0], mtime_now=now[1])


def _memory(buffer: Any, size: int) -> memoryview:
    """libfuse's own memory, for as long as the call lasts."""
    address = ctypes.cast(buffer, ctypes.c_void_p).value or 0
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")
