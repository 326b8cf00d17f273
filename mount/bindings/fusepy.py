"""The portable binding: libfuse's path interface through mfusepy.

libfuse calls with paths, the Vfs wants inodes: a path is walked through what the Vfs believes of names,
and through the directory itself where it matters (open). The kernel may believe a name for a second,
but attributes not at all: a file that grew elsewhere would otherwise be cut off at its old size by the
first reader. Its pages of a file are kept over an open only when they are of the version that is opened;
libfuse gives every hard link an inode of its own in the kernel, so that is remembered by path.

libfuse is told to leave out the path where there is a handle: it would keep the path from being renamed or
removed as long as the call lasts, and everybody else who comes after that, for as long as a program waits for
a lock. Whoever has the lock could not let it go.
"""

import ctypes
import errno
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mount.bindings.callers import caller
from mount.bindings.fusepy_locks import CAN_DROP, WAITERS_MAX, ProgramLockCalls
from mount.bindings.libfuse import mfusepy
from mount.bindings.pages import Pages
from mount.feed import NobodyElse
from mount.options import MountOptions
from mount.owners import Owners
from mount.vfs import Changes, Vfs
from wire.errors import fail
from wire.messages.common import Caller
from wire.messages.directory import Attr
from wire.permissions import READ, SET_IDS

log = logging.getLogger(__name__)

T = TypeVar("T")

NAME_SECONDS = 1.0
THREADS = 64 + WAITERS_MAX
"""More than can wait for locks while others work: in ``open``, and for each other's."""

UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
"""<linux/stat.h>, in tv_nsec."""

AUTO_INVAL_DATA = 1 << 12
"""FUSE_CAP_AUTO_INVAL_DATA of <fuse_common.h>: it drops our own pages whenever our mtime moves on."""

DONT_MASK, POSIX_ACL = 1 << 6, 1 << 19
"""FUSE_CAP_DONT_MASK and FUSE_CAP_POSIX_ACL (of libfuse 3 only)."""


_HIDDEN_NAME = re.compile(r"/\.fuse_hidden[0-9a-f]{16}$")
"""libfuse, hidden_name() in lib/fuse.c. A program can give an open file such a name too: then that is removed
when it is closed, as libfuse itself does."""


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _umask() -> int:
    """Of the program whose call this is."""
    mask: int = mfusepy._libfuse.fuse_get_context().contents.umask
    return mask


def _split(path: str) -> list[bytes]:
    return [_bytes(name) for name in path.split("/") if name]


class _Libfuse(mfusepy.FUSE):
    """mfusepy's bridge, with what it leaves out: rename's flags, truncate's handle, UTIME_OMIT, reading and
    writing without copies, and EIO for the unforeseen."""

    def _wrapper(self, func: Callable[..., int | None], *args: Any, **kwargs: Any) -> int:
        try:
            return func(*args, **kwargs) or 0
        except OSError as error:
            log.debug("%s: %s", func.__name__, error)
            return -(error.errno or errno.EIO)
        except Exception:
            log.exception("%s failed unforeseen", func.__name__)
            return -errno.EIO

    def read(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        address = ctypes.cast(buf, ctypes.c_void_p).value or 0
        buffer = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
        done: int = self.operations.vfs.read_into(fip.contents.fh, offset, buffer)
        return done

    def write(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        address = ctypes.cast(buf, ctypes.c_void_p).value or 0
        data = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
        done: int = self.operations.vfs.write(fip.contents.fh, offset, data)
        return done

    def lseek(self, path: bytes | None, offset: int, whence: int, fip: Any) -> int:
        found: int = self.operations.vfs.seek(fip.contents.fh, offset, whence)
        return found

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        return self.rename_with(old, new, flags)

    def rename_fuse_2(self, old: bytes, new: bytes) -> int:
        return self.rename_with(old, new, 0)

    def rename_with(self, old: bytes, new: bytes, flags: int) -> int:
        self.operations.rename_with_flags(self._path(old), self._path(new), flags)
        return 0

    def chmod_fuse_3(self, path: bytes | None, mode: int, fip: Any) -> int:
        return self._set(path, fip, Changes(mode=mode))

    def chown_fuse_3(self, path: bytes | None, uid: int, gid: int, fip: Any) -> int:
        return self._set(
            path, fip, self.operations.changed_owner(ctypes.c_int(uid).value, ctypes.c_int(gid).value)
        )

    def truncate_fuse_3(self, path: bytes | None, length: int, fip: Any) -> int:
        return self._set(path, fip, Changes(size=length))

    def ftruncate(self, path: bytes | None, length: int, fip: Any) -> int:
        """libfuse 2 only."""
        return self._set(path, fip, Changes(size=length))

    def utimens_fuse_2(self, path: bytes | None, buf: Any) -> int:
        return self.utimens_fuse_3(path, buf, None)

    def utimens_fuse_3(self, path: bytes | None, buf: Any, fip: Any) -> int:
        times = (buf.contents.actime, buf.contents.modtime) if buf else None
        asked = [(t.tv_sec, t.tv_nsec) for t in times] if times else [(0, UTIME_NOW)] * 2
        return self._set(path, fip, changed_times(asked))

    def lock(self, path: bytes | None, fip: Any, command: int, asked: Any) -> int:
        file = fip.contents
        self.operations.locks.lock(file.fh, file.lock_owner, command, asked.contents)
        return 0

    def flock(self, path: bytes | None, fip: Any, operation: int) -> int:
        file = fip.contents
        self.operations.locks.flock(file.fh, file.lock_owner, operation)
        return 0

    def _set(self, path: bytes | None, fip: Any, changes: Changes) -> int:
        if fip:
            self.operations.set_through(fip.contents.fh, changes)
        else:
            self.operations.set_at(self._path(path), changes)
        return 0

    def _path(self, path: bytes | None) -> str:
        assert path is not None, "libfuse leaves the path out only where there is a handle"
        return path.decode(self.encoding, self.errors)


class _Operations(mfusepy.Operations):
    """libfuse's operations over a Vfs."""

    use_ns = True
    flag_utime_omit_ok = 1
    flag_nullpath_ok = 1
    flag_nopath = 1
    """<fuse.h> of libfuse 2; mfusepy tells libfuse 3 the same."""

    def __init__(self, vfs: Vfs, owners: Owners, trusted: bool, on_ready: Callable[[], None]) -> None:
        self.vfs = vfs
        self._owners = owners
        self._trusted = trusted
        self._on_ready = on_ready
        self._pages = Pages()
        self.locks = ProgramLockCalls(vfs, self._pages)

    # Translation

    def _who(self) -> Caller | None:
        if not self._trusted:
            return None
        return caller(*mfusepy.fuse_get_context())

    def _attr(self, path: str) -> Attr:
        return self.vfs.walk(_split(path), self._who())

    def _target(self, path: str) -> int:
        return self.vfs.target(_split(path), self._who())

    def _in_parent(self, path: str, do: Callable[[int, bytes, Caller | None], T]) -> T:
        """``do(parent inode, name, who)``; once more after a fresh walk if what we believed was old."""
        names, who = _split(path), self._who()
        if not names:
            raise OSError(errno.EBUSY, "the root of the mount")
        parent = self.vfs.walk(names[:-1], who).ino
        try:
            return do(parent, names[-1], who)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
                raise
            fresh = self.vfs.walk(names[:-1], who, fresh=True).ino
            if fresh == parent:
                raise
            return do(fresh, names[-1], who)

    def _stat(self, attr: Attr) -> dict[str, int]:
        return {
            "st_ino": attr.ino,
            "st_mode": attr.mode,
            "st_nlink": attr.nlink,
            "st_uid": self._owners.uid(attr.uid),
            "st_gid": self._owners.gid(attr.gid),
            "st_rdev": attr.rdev,
            "st_size": attr.size,
            "st_blocks": -(-attr.stored_bytes // 512),
            "st_blksize": 4096,
            "st_atime": attr.atime,
            "st_mtime": attr.mtime,
            "st_ctime": attr.ctime,
        }

    def init_with_config(self, conn_info: Any, config_3: Any) -> None:
        if config_3 is not None:
            config_3.use_ino = 1
            config_3.entry_timeout = NAME_SECONDS
            config_3.attr_timeout = 0.0
            config_3.negative_timeout = 0.0
        if conn_info is not None:
            wanted = DONT_MASK | POSIX_ACL if self._trusted and config_3 is not None else DONT_MASK
            conn_info.want = conn_info.want & ~AUTO_INVAL_DATA | wanted & conn_info.capable
        self._on_ready()

    # Names and attributes

    def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
        return self._stat(self._attr(path) if fh is None else self.vfs.handle_attr(fh.fh))

    def access(self, path: str, amode: int) -> int:
        self.vfs.access(self._attr(path).ino, amode, self._who())
        return 0

    def opendir(self, path: str) -> int:
        """The handle is the inode."""
        ino = self._attr(path).ino
        self.vfs.access(ino, READ, self._who())
        return ino

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        ino = fh
        for dots in (".", ".."):
            yield dots, {"st_mode": stat.S_IFDIR, "st_ino": ino}, 0
        for entry in self.vfs.readdir(ino, self._who()):
            yield _text(entry.name), {"st_mode": entry.attr.mode, "st_ino": entry.attr.ino}, 0

    def releasedir(self, path: str, fh: int) -> int:
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        mask = _umask()
        self._in_parent(path, lambda parent, name, who: self.vfs.mkdir(parent, name, mode, who, mask))
        return 0

    def mknod(self, path: str, mode: int, dev: int) -> int:
        mask = _umask()
        self._in_parent(path, lambda parent, name, who: self.vfs.mknod(parent, name, mode, dev, who, mask))
        return 0

    def symlink(self, target: str, source: str) -> int:
        """mfusepy's ``target`` is the new path and ``source`` what stands in the link."""
        self._in_parent(target, lambda parent, name, who: self.vfs.symlink(parent, name, _bytes(source), who))
        return 0

    def link(self, target: str, source: str) -> int:
        """mfusepy's ``target`` is the new path and ``source`` the old one."""
        ino = self._target(source)
        self._in_parent(target, lambda parent, name, who: self.vfs.link(ino, parent, name, who))
        return 0

    def readlink(self, path: str) -> str:
        return _text(self.vfs.readlink(self._attr(path).ino, self._who()))

    def unlink(self, path: str) -> int:
        self._in_parent(path, self.vfs.unlink)
        return 0

    def rmdir(self, path: str) -> int:
        self._in_parent(path, self.vfs.rmdir)
        return 0

    def rename_with_flags(self, old: str, new: str, flags: int) -> None:
        """renameat2(2), and what libfuse does instead of removing an open file."""
        hides = bool(_HIDDEN_NAME.search(new)) and self._pages.was_open(old)
        if hides and not self._pages.is_in_use(old):
            self.unlink(old)  # it was just being closed: nobody needs it any more
            return
        self._rename(old, new, flags)
        self._pages.renamed(old, new)
        if hides and not self._pages.hidden_at(new):
            self._remove_hidden(new)

    def _rename(self, old: str, new: str, flags: int) -> None:
        def into(parent: int, name: bytes, who: Caller | None) -> None:
            self._in_parent(
                new,
                lambda new_parent, new_name, _: self.vfs.rename(
                    parent, name, new_parent, new_name, flags, who
                ),
            )

        self._in_parent(old, into)

    def _remove_hidden(self, path: str) -> None:
        """libfuse removes what it has hidden when it is closed, unless that is while it is being hidden."""
        try:
            self.unlink(path)
        except OSError as error:
            log.debug("%s is not removed here: %s", path, error)

    def rename(self, old: str, new: str) -> int:
        """There for mfusepy to see that the operation exists; it is called through rename_with_flags."""
        self.rename_with_flags(old, new, 0)
        return 0

    def set_at(self, path: str, changes: Changes) -> None:
        """Sets what ``changes`` names."""
        self._set(self._target(path), changes)

    def set_through(self, number: int, changes: Changes) -> None:
        """As ``set_at``, of an open file."""
        self._set(self.vfs.inode_of(number), changes, number)

    def _set(self, ino: int, changes: Changes, number: int | None = None) -> None:
        who = self._who()
        try:
            self.vfs.setattr(ino, changes, who, number)
        except PermissionError:
            # Before a write the kernel takes set-id bits away by a chmod in the writer's name, whoever he is.
            mode = self.vfs.getattr(ino, who).mode
            asked = mode if changes.mode is None else changes.mode
            if asked == mode or asked & ~SET_IDS != mode & ~SET_IDS or asked & ~mode:
                raise
            self.vfs.drop_privileges(ino, who)

    def changed_owner(self, uid: int, gid: int) -> Changes:
        """chown(2): -1 leaves it as it is."""
        owner = None if uid == -1 else self._owners.uid(uid)
        group = None if gid == -1 else self._owners.gid(gid)
        return Changes(uid=owner, gid=group)

    # There for mfusepy to see that these operations exist; they are called through set_at and set_through.

    def chmod(self, path: str, mode: int) -> int:
        self.set_at(path, Changes(mode=mode))
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        self.set_at(path, self.changed_owner(uid, gid))
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self.set_at(path, Changes(size=length))
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        asked = [divmod(time, 10**9) for time in times] if times else [(0, UTIME_NOW)] * 2
        self.set_at(path, changed_times(asked))
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        space = self.vfs.statfs()
        block = 4096
        return {
            "f_bsize": block,
            "f_frsize": block,
            "f_blocks": space.total_bytes // block,
            "f_bfree": space.free_bytes // block,
            "f_bavail": space.free_bytes // block,
            "f_files": 2**32,
            "f_ffree": 2**32 - space.inodes,
            "f_favail": 2**32 - space.inodes,
            "f_namemax": 255,
        }

    # Extended attributes

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        value = self.vfs.getxattr(self._attr(path).ino, _bytes(name), self._who())
        return self._owners.xattr(_bytes(name), value)

    def listxattr(self, path: str) -> list[str]:
        return [_text(name) for name in self.vfs.listxattr(self._attr(path).ino, self._who())]

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        value = self._owners.xattr(_bytes(name), value)
        self.vfs.setxattr(self._target(path), _bytes(name), value, options, self._who())
        return 0

    def removexattr(self, path: str, name: str) -> int:
        self.vfs.removexattr(self._target(path), _bytes(name), self._who())
        return 0

    # Content

    def open(self, path: str, fi: Any) -> int:
        self._open(path, fi)
        return 0

    def _open(self, path: str, fi: Any) -> None:
        """With ESTALE the kernel asks for the name again, and makes it if it may (O_CREAT)."""
        try:
            handle = self.vfs.open_path(_split(path), fi.flags, self._who())
        except FileNotFoundError as error:
            raise fail(errno.ESTALE, "the kernel has believed for too long that it is there") from error
        fi.fh = handle.number
        fi.direct_io, fi.keep_cache = self._pages.opened(path, handle)

    def create(self, path: str, mode: int, fi: Any) -> int:
        mask = _umask()
        try:
            handle, _ = self._in_parent(
                path, lambda parent, name, who: self.vfs.create(parent, name, mode, fi.flags, who, mask)
            )
        except FileExistsError:
            if fi.flags & os.O_EXCL:
                raise
            self._open(path, fi)
            return 0
        fi.fh = handle.number
        self._pages.opened(path, handle)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """There for mfusepy to see that the operation exists; reading goes past it (see _Libfuse)."""
        buffer = bytearray(size)
        return bytes(buffer[: self.vfs.read_into(fh, offset, memoryview(buffer))])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """There for mfusepy to see that the operation exists; writing goes past it (see _Libfuse)."""
        return self.vfs.write(fh, offset, data)

    def flush(self, path: str, fh: Any) -> int:
        return self._saved(fh.fh, self.vfs.flush)

    def fsync(self, path: str, datasync: int, fh: Any) -> int:
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
        self.vfs.fallocate(fh.fh, mode, offset, size)
        return 0

    def lseek(self, path: str, offset: int, whence: int, fh: int) -> int:
        """There for mfusepy to see that the operation exists; it goes past this one (see _Libfuse)."""
        return self.vfs.seek(fh, offset, whence)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        """A change of a name is durable when it is answered."""
        return 0

    def release(self, path: str, fh: Any) -> int:
        self._pages.closing(fh.fh)
        try:
            self.vfs.release(fh.fh)
        finally:
            hidden = self._pages.closed(fh.fh)
        if hidden is not None:
            self._remove_hidden(hidden)
        return 0


class _LockingOperations(_Operations):
    """With those that are there for mfusepy to see that they exist; the calls go past them (see _Libfuse)."""

    def lock(self, path: str, fh: Any, cmd: int, lock: Any) -> int:
        self.locks.lock(fh.fh, fh.lock_owner, cmd, lock)
        return 0

    def flock(self, path: str, fh: Any, op: int) -> int:
        self.locks.flock(fh.fh, fh.lock_owner, op)
        return 0


def changed_times(asked: list[tuple[int, int]]) -> Changes:
    """utimensat(2): atime and mtime, as (seconds, nanoseconds) with UTIME_NOW and UTIME_OMIT."""
    explicit = [
        None if nanoseconds in (UTIME_NOW, UTIME_OMIT) else seconds * 10**9 + nanoseconds
        for seconds, nanoseconds in asked
    ]
    now = [nanoseconds == UTIME_NOW for _, nanoseconds in asked]
    return Changes(atime=explicit[0], mtime=explicit[1], atime_now=now[0], mtime_now=now[1])


def _libfuse_options(mount: MountOptions) -> dict[str, Any]:
    """What libfuse, of the version that is here, is told with -o."""
    options: dict[str, Any] = {
        "fsname": "dfs",
        "subtype": "dfs",
        "allow_other": mount.allow_other,
        # In a single-user mount the directory's word counts: it knows the realm's groups.
        "default_permissions": mount.trusted,
        "ro": mount.read_only,
        "noatime": True,
    }
    if (mfusepy.fuse_version_major, mfusepy.fuse_version_minor) >= (3, 12):
        options |= {"max_threads": THREADS, "max_idle_threads": THREADS}
    if mfusepy.fuse_version_major == 2:
        options |= {"big_writes": True, "atomic_o_trunc": True, "use_ino": True}
        options |= {"attr_timeout": 0, "entry_timeout": NAME_SECONDS}
    return options


def serve(vfs: Vfs, mount: MountOptions, owners: Owners, on_ready: Callable[[bool], None]) -> None:
    """Mounts and answers until it is unmounted, or a signal (SIGTERM, SIGINT, SIGHUP) ends it. ``on_ready``
    is called when the kernel has begun to ask.

    Raises OSError if it cannot be mounted.
    """
    has_begun = threading.Event()

    def begin() -> None:
        has_begun.set()
        vfs.listen(NobodyElse())  # libfuse's paths can take nothing back, so nothing is told for long
        on_ready(False)

    kind = _LockingOperations if CAN_DROP else _Operations
    operations = kind(vfs, owners, mount.trusted, begin)
    try:
        _Libfuse(operations, str(mount.mountpoint), raw_fi=True, foreground=True, **_libfuse_options(mount))
    except RuntimeError as error:
        if not has_begun.is_set():
            raise OSError(
                errno.EIO, f"libfuse cannot mount (status {error}); the log says why", str(mount.mountpoint)
            ) from error
        log.info("libfuse has ended with status %s: a signal, as a rule", error)
