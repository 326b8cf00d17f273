"""One sparse file of a local copy: positional reads and writes, holes, and what it takes on the disk."""

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # <linux/falloc.h>
_ZEROS = bytes(1024 * 1024)


class SparseFile:
    """An open file; it is made, for the owner only, if there is none. Offsets and sizes are in bytes.

    All methods raise OSError as the system calls do.
    """

    __slots__ = ("_fd",)

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            self._fd = os.open(path, flags, 0o600)

    def close(self) -> None:
        """Gives the descriptor back. Whoever comes later gets EBADF, not another file that got its number."""
        descriptor, self._fd = self._fd, -1
        os.close(descriptor)

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._fd < 0

    def size(self) -> int:
        """The length."""
        return os.fstat(self._fd).st_size

    def allocated(self) -> int:
        """What it really takes."""
        return os.fstat(self._fd).st_blocks * 512

    def stamp(self, seconds: float) -> None:
        """Remembers when it was last used."""
        os.utime(self._fd, (seconds, seconds))

    def read(self, offset: int, size: int) -> bytes:
        """What is there; shorter only at the end of the file."""
        data = os.pread(self._fd, size, offset)
        while len(data) < size and (more := os.pread(self._fd, size - len(data), offset + len(data))):
            data += more
        return data

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """As ``read``, into ``buffer``; returns how many bytes."""
        done = os.preadv(self._fd, [buffer], offset)
        while done < len(buffer) and (more := os.preadv(self._fd, [buffer[done:]], offset + done)):
            done += more
        return done

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Writes all of ``data``."""
        done = os.pwrite(self._fd, data, offset)
        while done < len(data):
            done += os.pwrite(self._fd, memoryview(data)[done:], offset + done)

    def resize(self, size: int) -> None:
        """Cuts, or lets grow with zeros that take no room."""
        os.ftruncate(self._fd, size)

    def punch(self, offset: int, size: int) -> None:
        """Makes the range read as zeros and gives its room back. The length stays."""
        if size <= 0:
            return
        if _libc.fallocate(self._fd, _KEEP_SIZE | _PUNCH_HOLE, offset, size) == 0:
            return
        number = ctypes.get_errno()
        if number != errno.EOPNOTSUPP:
            raise OSError(number, os.strerror(number))
        end = min(offset + size, self.size())
        for start in range(offset, end, len(_ZEROS)):
            self.write(start, memoryview(_ZEROS)[: end - start])

    def has_data(self, offset: int, size: int) -> bool:
        """Whether anything but a hole is in the range."""
        found = self.seek(offset, os.SEEK_DATA)
        return found is not None and found < offset + size

    def seek(self, offset: int, whence: int) -> int | None:
        """The next data (``os.SEEK_DATA``) or hole (``os.SEEK_HOLE``) from ``offset`` on; None if there is
        none."""
        try:
            return os.lseek(self._fd, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise
