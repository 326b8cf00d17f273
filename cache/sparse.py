"""One sparse file of a local copy: positional reads and writes, holes, what it takes on the disk, and who
else has it open.
"""

import ctypes
import errno
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # <linux/falloc.h>
_SETSIG, _FICLONE = 10, 0x40049409  # <fcntl.h>, <linux/fs.h>
_ZEROS = bytes(1024 * 1024)
_NOT_AT_ONCE = frozenset({errno.EAGAIN, errno.EOPNOTSUPP})
"""From preadv2(2) with RWF_NOWAIT: it is not in memory, or the file system does not tell."""
_MARK_NS = 10**9
"""No file was written at this time, one second after the epoch. Every file system keeps whole seconds."""


def _grants_reading(descriptor: int) -> bool:
    fcntl.fcntl(descriptor, _SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


class SparseFile:
    """An open file; it is made, for the owner only, if there is none. Offsets and sizes are in bytes.

    All methods raise OSError as the system calls do.
    """

    __slots__ = ("_fd", "_path", "_reads_only")

    def __init__(self, path: str) -> None:
        self._path = path
        self._reads_only = False
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            self._fd = os.open(path, flags, 0o600)

    def close(self) -> None:
        """Gives the descriptor back. Whoever comes later gets EBADF, not another file that got its number."""
        descriptor, self._fd, self._reads_only = self._fd, -1, False
        os.close(descriptor)

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._fd < 0

    def size(self) -> int:
        """The length."""
        return os.fstat(self._fd).st_size

    def number(self) -> int:
        """The inode number: which file this is, as long as anybody has it open."""
        return os.fstat(self._fd).st_ino

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

    def read_into(
        self, offset: int, buffer: memoryview, before_waiting: Callable[[], None] = lambda: None
    ) -> int:
        """As ``read``, into ``buffer``; returns how many bytes. ``before_waiting`` is called before the disk
        is waited for."""
        done, flags = 0, os.RWF_NOWAIT
        while done < len(buffer):
            try:
                more = os.preadv(self._fd, [buffer[done:]], offset + done, flags)
            except OSError as error:
                if not flags or error.errno not in _NOT_AT_ONCE:
                    raise
                before_waiting()
                flags = 0
                continue
            if not more:
                break
            done += more
        return done

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Writes all of ``data``."""
        descriptor = self._writer()
        done = os.pwrite(descriptor, data, offset)
        while done < len(data):
            done += os.pwrite(descriptor, memoryview(data)[done:], offset + done)

    def resize(self, size: int) -> None:
        """Cuts, or lets grow with zeros that take no room."""
        os.ftruncate(self._writer(), size)

    def punch(self, offset: int, size: int) -> None:
        """Makes the range read as zeros and gives its room back. The length stays."""
        if size <= 0:
            return
        if _libc.fallocate(self._writer(), _KEEP_SIZE | _PUNCH_HOLE, offset, size) == 0:
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

    def chunks_with_data(self, chunk_bytes: int, first: int = 0) -> Iterator[int]:
        """The indices, from ``first`` on, of the parts of ``chunk_bytes`` each in which anything but holes
        is."""
        index = first
        while True:
            try:
                index = os.lseek(self._fd, index * chunk_bytes, os.SEEK_DATA) // chunk_bytes
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            yield index
            index += 1

    # Borrowers: who else has the file open, or mapped

    def reopened(self, *, writes: bool) -> int:
        """A descriptor for a borrower, who closes it: an open file of its own, which ``is_borrowed`` sees."""
        mode = os.O_RDWR if writes else os.O_RDONLY
        return os.open(f"/proc/self/fd/{self._fd}", mode | os.O_CLOEXEC)

    def is_borrowed(self) -> bool | None:
        """Whether anybody else has the file open, or mapped; None if this file system cannot tell.

        The kernel grants a lease for writing to nobody but the only one who has a file open. It is given
        back at once: who opens the file meanwhile waits so long, and the signal that tells us of him is one
        that is ignored.
        """
        fcntl.fcntl(self._fd, _SETSIG, signal.SIGURG)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            return True if error.errno in (errno.EAGAIN, errno.EACCES) else None
        fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def is_written_by_others(self) -> bool:
        """Whether anybody else has the file open for writing, or a map that may be written through; also True
        if that cannot be found out now. Only with all other changes of the file kept away.

        The kernel grants a lease for reading if nobody has a file open for writing: for the moment not even
        we, who reads just now reads through the one descriptor or the other.
        """
        try:
            reader = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            os.dup2(reader, self._fd, inheritable=False)
            self._reads_only = True
            return not _grants_reading(reader)
        finally:
            os.close(reader)
            with suppress(OSError):
                self._writer()

    def _writer(self) -> int:
        """The descriptor, for writing. If there was none to be had when it was to be opened again, whoever
        writes tries that once more, and is told."""
        if self._reads_only:
            writer = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)
            os.dup2(writer, self._fd, inheritable=False)
            os.close(writer)
            self._reads_only = False
        return self._fd

    def mark(self) -> None:
        """From now on ``written_at`` tells whether anybody writes. Whoever is in the middle of a write(2) has
        the inode's lock, for which this waits: what he writes is in the file afterwards, and what begins
        later takes the mark away."""
        os.utime(self._fd, ns=(_MARK_NS, _MARK_NS))

    def written_at(self) -> int:
        """When the last write(2) since the mark was, in nanoseconds since the epoch; 0: there was none. What
        is written through maps does not always show."""
        modified = os.fstat(self._fd).st_mtime_ns
        return 0 if modified == _MARK_NS else modified

    def leave(self, content_max: int) -> bool:
        """Leaves the file to its borrowers, and goes on with another one, of the same content, under the same
        path. False, and nothing has happened, if that were more than ``content_max`` bytes to be copied."""
        twin = self._twin()
        try:
            if not self._share_with(twin):
                if self.allocated() > content_max:
                    return False
                self._copy_to(twin)
            self._go_on_with(twin)
            return True
        finally:
            self._drop_twin(twin)

    def leave_empty(self) -> None:
        """As ``leave``, with nothing but a hole of the same length."""
        twin = self._twin()
        try:
            os.ftruncate(twin, self.size())
            self._go_on_with(twin)
        finally:
            self._drop_twin(twin)

    def _twin(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(f"{self._path}.new", flags, 0o600)

    def _share_with(self, twin: int) -> bool:
        try:
            fcntl.ioctl(twin, _FICLONE, self._fd)
        except OSError:
            return False
        return True

    def _copy_to(self, twin: int) -> None:
        step = len(_ZEROS)
        for index in self.chunks_with_data(step):
            data = os.pread(self._fd, step, index * step)
            if os.pwrite(twin, data, index * step) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(twin, max(self.size(), os.fstat(twin).st_size))

    def _go_on_with(self, twin: int) -> None:
        os.rename(f"{self._path}.new", self._path)
        self._reads_only = False
        os.dup2(twin, self._fd, inheritable=False)  # who reads just now reads the one or the other

    def _drop_twin(self, twin: int) -> None:
        os.close(twin)
        with suppress(FileNotFoundError):
            os.unlink(f"{self._path}.new")
