"""From mounting to unmounting.

libfuse is told to leave out the path where there is a handle: it would keep the path from being renamed or
removed as long as the call lasts, and everybody else who comes after that, for as long as a program waits for
a lock. Whoever has the lock could not let it go.
"""

import errno
import logging
import threading
from collections.abc import Callable
from typing import Any

from mount.bindings.fusepy.attributes import Attributes
from mount.bindings.fusepy.bridge import Bridge, bridged
from mount.bindings.fusepy.directories import Directories
from mount.bindings.fusepy.files import Files
from mount.bindings.fusepy.libfuse import mfusepy
from mount.bindings.fusepy.locks import CAN_DROP, WAITERS_MAX, ProgramLockCalls
from mount.bindings.fusepy.names import Names
from mount.feed import NobodyElse
from mount.options import MountOptions
from mount.owners import Owners
from mount.vfs import Vfs

log = logging.getLogger(__name__)

NAME_SECONDS = 1.0
THREADS = 64 + WAITERS_MAX
"""More than can wait for locks while others work: in ``open``, and for each other's."""

AUTO_INVAL_DATA = 1 << 12
"""FUSE_CAP_AUTO_INVAL_DATA of <fuse_common.h>: it drops our own pages whenever our mtime moves on."""

DONT_MASK, POSIX_ACL = 1 << 6, 1 << 19
"""FUSE_CAP_DONT_MASK and FUSE_CAP_POSIX_ACL (of libfuse 3 only)."""


class _Operations(Names, Attributes, Directories, Files, mfusepy.Operations):
    """All that libfuse may ask, for mfusepy, which wants one object; thread-safe."""

    use_ns = True
    flag_utime_omit_ok = 1
    flag_nullpath_ok = 1
    flag_nopath = 1
    """<fuse.h> of libfuse 2; mfusepy tells libfuse 3 the same."""

    rename = chmod = chown = truncate = utimens = read = write = lseek = bridged

    def __init__(self, vfs: Vfs, owners: Owners, on_ready: Callable[[], None], *, trusted: bool) -> None:
        super().__init__(vfs, owners, trusted=trusted)
        self.locks = ProgramLockCalls(vfs, self._pages)
        self._on_ready = on_ready

    def init_with_config(self, conn_info: Any, config_3: Any) -> None:
        """The kernel has begun to ask. ``config_3``: None with libfuse 2."""
        if config_3 is not None:
            config_3.use_ino = 1
            config_3.entry_timeout = NAME_SECONDS
            config_3.attr_timeout = 0.0
            config_3.negative_timeout = 0.0
        if conn_info is not None:
            wanted = DONT_MASK | POSIX_ACL if self._is_trusted and config_3 is not None else DONT_MASK
            conn_info.want = conn_info.want & ~AUTO_INVAL_DATA | wanted & conn_info.capable
        self._on_ready()


class _LockingOperations(_Operations):
    """With locks of programs."""

    lock = flock = bridged


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
    operations = kind(vfs, owners, begin, trusted=mount.trusted)
    try:
        Bridge(operations, str(mount.mountpoint), raw_fi=True, foreground=True, **_libfuse_options(mount))
    except RuntimeError as error:
        if not has_begun.is_set():
            raise OSError(
                errno.EIO, f"libfuse cannot mount (status {error}); the log says why", str(mount.mountpoint)
            ) from error
        log.info("libfuse has ended with status %s: a signal, as a rule", error)
