"""What goes over /dev/fuse: the numbers and structures of <linux/fuse.h>, under the names they have there.

Bytes in, tuples out; no I/O. Fields that are padding, or that nothing here needs, have the names that the
header gives them too, so that a test can compare both. Everything is in the machine's own byte order.
"""

import enum
import struct
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T", bound=tuple[Any, ...])

MAJOR, MINOR, MINOR_MIN = 7, 45, 31
MINOR_OF_EPOCHS = 44
"""From this one on the kernel knows INC_EPOCH."""
"""The newest protocol that is spoken (Linux 6.18), and the oldest (Linux 5.4)."""

ROOT_ID = 1
MIN_READ_BUFFER = 8192
OFFSET_MAX = 2**63 - 1
"""Of an off_t, though offsets come as uint64_t."""

UNIQUE_RESEND = 1 << 63


class Malformed(ValueError):
    """A request that is not what the protocol says."""


class Opcode(enum.IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Init(enum.IntFlag):
    """FUSE_INIT flags; the bits from 32 on are in ``flags2``."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39


class Fopen(enum.IntFlag):
    """FOPEN_*: how an open file or directory is to be treated."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    NOFLUSH = 1 << 5
    PASSTHROUGH = 1 << 7


class Fattr(enum.IntFlag):
    """FATTR_*: which fields of a SETATTR count."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


GETATTR_FH = 1 << 0


WRITE_CACHE = 1 << 0
"""FUSE_WRITE_CACHE: pages of a mapping. Whose handle it comes with is a guess, so its flags say nothing."""

WRITE_KILL_SUIDGID = 1 << 2
"""FUSE_WRITE_KILL_SUIDGID: written by who must not keep set-id bits."""


class Notify(enum.IntEnum):
    """enum fuse_notify_code."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7
    INC_EPOCH = 8


class Structure(Generic[T]):
    """A structure of the header: its name there, how it is packed, and the tuple that it becomes."""

    def __init__(self, name: str, layout: str, kind: type[T]) -> None:
        self.name = name
        self.kind = kind
        self._packed = struct.Struct("=" + layout)
        self.pack = self._packed.pack
        self.size = self._packed.size

    def read(self, data: memoryview | bytes, offset: int = 0) -> T:
        """Unpacks it at ``offset``. Raises Malformed if the data ends before it does."""
        try:
            # As the kind itself does, without a call of Python.
            return tuple.__new__(self.kind, self._packed.unpack_from(data, offset))
        except struct.error as error:
            raise Malformed(f"{self.name}: {error}") from error


def text(data: memoryview | bytes, count: int, offset: int = 0) -> list[bytes]:
    """``count`` NUL-terminated strings that stand at ``offset``. Raises Malformed."""
    *strings, _ = bytes(data[offset:]).split(b"\0", count)
    if len(strings) != count:
        raise Malformed(f"{count} strings were expected, {len(strings)} are there")
    return strings


# Headers


class InHeader(NamedTuple):
    """Before every request."""

    len: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    total_extlen: int
    padding: int


class OutHeader(NamedTuple):
    """Before every answer; ``error`` is a negative errno, or with ``unique`` 0 a notification's code."""

    len: int
    error: int
    unique: int


_BEGINNING = struct.Struct("=4xIQQ")


def beginning(data: memoryview) -> tuple[int, int, int]:
    """Of a request's header no more than opcode, unique and nodeid."""
    opcode, unique, nodeid = _BEGINNING.unpack_from(data)
    return opcode, unique, nodeid


IN_HEADER = Structure("fuse_in_header", "IIQQIIIHH", InHeader)
OUT_HEADER = Structure("fuse_out_header", "IiQ", OutHeader)

# What is asked


class InitIn(NamedTuple):
    """The kernel begins."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    flags2: int


class InitInOld(NamedTuple):
    """The kernel begins, before 7.36."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class ForgetIn(NamedTuple):
    """So many lookups less."""

    nlookup: int


class ForgetOne(NamedTuple):
    """One of a BATCH_FORGET."""

    nodeid: int
    nlookup: int


class BatchForgetIn(NamedTuple):
    """Followed by ``count`` of ForgetOne."""

    count_: int
    dummy: int


class GetattrIn(NamedTuple):
    """``fh`` counts if GETATTR_FH is set."""

    getattr_flags: int
    dummy: int
    fh: int


class StatxIn(NamedTuple):
    """As GetattrIn."""

    getattr_flags: int
    reserved: int
    fh: int
    sx_flags: int
    sx_mask: int


class SetattrIn(NamedTuple):
    """``valid`` says (Fattr) what counts."""

    valid: int
    padding: int
    fh: int
    size: int
    lock_owner: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    unused4: int
    uid: int
    gid: int
    unused5: int


class MknodIn(NamedTuple):
    """Followed by the name."""

    mode: int
    rdev: int
    umask: int
    padding: int


class MkdirIn(NamedTuple):
    """Followed by the name."""

    mode: int
    umask: int


class RenameIn(NamedTuple):
    """Followed by both names."""

    newdir: int


class Rename2In(NamedTuple):
    """Followed by both names."""

    newdir: int
    flags: int
    padding: int


class LinkIn(NamedTuple):
    """Followed by the new name."""

    oldnodeid: int


class OpenIn(NamedTuple):
    """OPEN and OPENDIR."""

    flags: int
    open_flags: int


class CreateIn(NamedTuple):
    """Followed by the name."""

    flags: int
    mode: int
    umask: int
    open_flags: int


class ReadIn(NamedTuple):
    """READ, READDIR, READDIRPLUS."""

    fh: int
    offset: int
    size: int
    read_flags: int
    lock_owner: int
    flags: int
    padding: int


class WriteIn(NamedTuple):
    """Followed by the data."""

    fh: int
    offset: int
    size: int
    write_flags: int
    lock_owner: int
    flags: int
    padding: int


LK_FLOCK = 1 << 0
"""FUSE_LK_FLOCK: the lock is one of flock(2)."""


class LkIn(NamedTuple):
    """GETLK, SETLK and SETLKW. ``start`` to ``pid`` are a fuse_file_lock."""

    fh: int
    owner: int
    start: int
    end: int
    type: int
    pid: int
    lk_flags: int
    padding: int


class ReleaseIn(NamedTuple):
    """RELEASE and RELEASEDIR."""

    fh: int
    flags: int
    release_flags: int
    lock_owner: int


class FlushIn(NamedTuple):
    """A close(2)."""

    fh: int
    unused: int
    padding: int
    lock_owner: int


class FsyncIn(NamedTuple):
    """FSYNC and FSYNCDIR."""

    fh: int
    fsync_flags: int
    padding: int


class SetxattrIn(NamedTuple):
    """Followed by the name and the value. The header's has two more fields for those who ask for
    FUSE_SETXATTR_EXT."""

    size: int
    flags: int


class GetxattrIn(NamedTuple):
    """GETXATTR (followed by the name) and LISTXATTR; ``size`` 0 asks how long the answer would be."""

    size: int
    padding: int


class AccessIn(NamedTuple):
    """access(2)."""

    mask: int
    padding: int


class InterruptIn(NamedTuple):
    """Which request is not waited for any more."""

    unique: int


class FallocateIn(NamedTuple):
    """fallocate(2)."""

    fh: int
    offset: int
    length: int
    mode: int
    padding: int


class LseekIn(NamedTuple):
    """SEEK_DATA and SEEK_HOLE."""

    fh: int
    offset: int
    whence: int
    padding: int


class CopyFileRangeIn(NamedTuple):
    """copy_file_range(2)."""

    fh_in: int
    off_in: int
    nodeid_out: int
    fh_out: int
    off_out: int
    len: int
    flags: int


INIT_IN = Structure("fuse_init_in", "IIIII44x", InitIn)
INIT_IN_OLD = Structure("fuse_init_in of before 7.36", "IIII", InitInOld)
FORGET_IN = Structure("fuse_forget_in", "Q", ForgetIn)
FORGET_ONE = Structure("fuse_forget_one", "QQ", ForgetOne)
BATCH_FORGET_IN = Structure("fuse_batch_forget_in", "II", BatchForgetIn)
GETATTR_IN = Structure("fuse_getattr_in", "IIQ", GetattrIn)
STATX_IN = Structure("fuse_statx_in", "IIQII", StatxIn)
SETATTR_IN = Structure("fuse_setattr_in", "IIQQQQQQIIIIIIII", SetattrIn)
MKNOD_IN = Structure("fuse_mknod_in", "IIII", MknodIn)
MKDIR_IN = Structure("fuse_mkdir_in", "II", MkdirIn)
RENAME_IN = Structure("fuse_rename_in", "Q", RenameIn)
RENAME2_IN = Structure("fuse_rename2_in", "QII", Rename2In)
LINK_IN = Structure("fuse_link_in", "Q", LinkIn)
OPEN_IN = Structure("fuse_open_in", "II", OpenIn)
CREATE_IN = Structure("fuse_create_in", "IIII", CreateIn)
READ_IN = Structure("fuse_read_in", "QQIIQII", ReadIn)
WRITE_IN = Structure("fuse_write_in", "QQIIQII", WriteIn)
RELEASE_IN = Structure("fuse_release_in", "QIIQ", ReleaseIn)
FLUSH_IN = Structure("fuse_flush_in", "QIIQ", FlushIn)
LK_IN = Structure("fuse_lk_in", "QQQQIIII", LkIn)
FSYNC_IN = Structure("fuse_fsync_in", "QII", FsyncIn)
SETXATTR_IN = Structure("fuse_setxattr_in of before 7.33", "II", SetxattrIn)
GETXATTR_IN = Structure("fuse_getxattr_in", "II", GetxattrIn)
ACCESS_IN = Structure("fuse_access_in", "II", AccessIn)
INTERRUPT_IN = Structure("fuse_interrupt_in", "Q", InterruptIn)
FALLOCATE_IN = Structure("fuse_fallocate_in", "QQQII", FallocateIn)
LSEEK_IN = Structure("fuse_lseek_in", "QQII", LseekIn)
COPY_FILE_RANGE_IN = Structure("fuse_copy_file_range_in", "QQQQQQQ", CopyFileRangeIn)

# What is answered


class InitOut(NamedTuple):
    """What was agreed."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int
    map_alignment: int
    flags2: int
    max_stack_depth: int
    request_timeout: int


class FileLock(NamedTuple):
    """A lock, or that there is none (F_UNLCK)."""

    start: int
    end: int
    type: int
    pid: int


class Attr(NamedTuple):
    """What stat(2) tells."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class AttrOut(NamedTuple):
    """Before an Attr: how long it may be believed."""

    attr_valid: int
    attr_valid_nsec: int
    dummy: int


class EntryOut(NamedTuple):
    """Before an Attr: what a name stands for, and how long both may be believed."""

    nodeid: int
    generation: int
    entry_valid: int
    attr_valid: int
    entry_valid_nsec: int
    attr_valid_nsec: int


class StatxOut(NamedTuple):
    """AttrOut with a fuse_statx; ``mask`` says which of its fields are known."""

    attr_valid: int
    attr_valid_nsec: int
    flags: int
    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes_mask: int
    atime: int
    atimensec: int
    btime: int
    btimensec: int
    ctime: int
    ctimensec: int
    mtime: int
    mtimensec: int
    rdev_major: int
    rdev_minor: int
    dev_major: int
    dev_minor: int


class OpenOut(NamedTuple):
    """``open_flags`` are Fopen's."""

    fh: int
    open_flags: int
    backing_id: int


class WriteOut(NamedTuple):
    """How many bytes; of WRITE and COPY_FILE_RANGE."""

    size: int
    padding: int


class StatfsOut(NamedTuple):
    """statfs(2)."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    namelen: int
    frsize: int
    padding: int


class GetxattrOut(NamedTuple):
    """How long the answer is."""

    size: int
    padding: int


class LseekOut(NamedTuple):
    """The offset found."""

    offset: int


class CopyFileRangeOut(NamedTuple):
    """How many bytes, of COPY_FILE_RANGE_64."""

    bytes_copied: int


class Dirent(NamedTuple):
    """Followed by the name, and zeros up to a multiple of eight."""

    ino: int
    off: int
    namelen: int
    type: int


INIT_OUT = Structure("fuse_init_out", "IIIIHHIIHHIIH22x", InitOut)
ATTR = Structure("fuse_attr", "QQQQQQIIIIIIIIII", Attr)
ATTR_OUT = Structure("fuse_attr_out without its attr", "QII", AttrOut)
ENTRY_OUT = Structure("fuse_entry_out without its attr", "QQQQII", EntryOut)
STATX_OUT = Structure(
    "fuse_statx_out",
    "QII16xIIQIIIH2xQQQQqI4xqI4xqI4xqI4xIIII112x",
    StatxOut,
)
LK_OUT = Structure("fuse_lk_out", "QQII", FileLock)
OPEN_OUT = Structure("fuse_open_out", "QIi", OpenOut)
WRITE_OUT = Structure("fuse_write_out", "II", WriteOut)
STATFS_OUT = Structure("fuse_kstatfs", "QQQQQIIII24x", StatfsOut)
GETXATTR_OUT = Structure("fuse_getxattr_out", "II", GetxattrOut)
LSEEK_OUT = Structure("fuse_lseek_out", "Q", LseekOut)
COPY_FILE_RANGE_OUT = Structure("fuse_copy_file_range_out", "Q", CopyFileRangeOut)
DIRENT = Structure("fuse_dirent", "QQII", Dirent)

# What is said unasked


class InvalInodeOut(NamedTuple):
    """``off`` negative: the attributes alone; ``len`` 0: to the end of the file."""

    ino: int
    off: int
    len: int


INVAL_INODE_OUT = Structure("fuse_notify_inval_inode_out", "Qqq", InvalInodeOut)

# What is asked of the device


class BackingMap(NamedTuple):
    """FUSE_DEV_IOC_BACKING_OPEN: a file that the kernel may serve others from."""

    fd: int
    flags: int
    padding: int


BACKING_MAP = Structure("fuse_backing_map", "iIQ", BackingMap)
