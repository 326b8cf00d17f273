"""The descriptor of /dev/fuse: mounting and unmounting.

mount(2) is tried first; who may not use it gets a mounted descriptor from fusermount3, as libfuse does
(fusermount3(1), and ``mount_util.c`` there for the words of the options).
"""

import ctypes
import errno
import logging
import os
import shutil
import socket
import stat
import subprocess

from mount.options import MountOptions
from mount.registry import mountpoints

log = logging.getLogger(__name__)

DEVICE = "/dev/fuse"

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOATIME, MNT_DETACH = 1, 2, 4, 1024, 2
"""<sys/mount.h>"""

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


class Device:
    """A mounted /dev/fuse. ``descriptor`` is read and written by whoever answers the kernel."""

    def __init__(self, mount: MountOptions) -> None:
        """Mounts, unless another process has. Raises OSError."""
        self._place = str(mount.mountpoint)
        self.descriptor = self._mount(mount) if mount.device is None else mount.device

    def _mount(self, mount: MountOptions) -> int:
        options = []
        if mount.trusted:  # else the directory's word counts: it knows the realm's groups
            options.append("default_permissions")
        if mount.allow_other:
            options.append("allow_other")
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._mount_directly(descriptor, options, mount.read_only)
        except OSError as error:
            os.close(descriptor)
            if error.errno != errno.EPERM:
                raise OSError(error.errno, error.strerror, self._place) from error
            return self._mount_by_helper(options, mount.read_only)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _mount_directly(self, descriptor: int, options: list[str], read_only: bool) -> None:
        root = stat.S_IFMT(os.stat(self._place).st_mode)
        words = [
            f"fd={descriptor}",
            f"rootmode={root:o}",
            f"user_id={os.getuid()}",
            f"group_id={os.getgid()}",
        ]
        # Reading a file does not change it: the kernel never says that it was read.
        flags = MS_NOSUID | MS_NODEV | MS_NOATIME | (MS_RDONLY if read_only else 0)
        data = ",".join(words + options).encode()
        _call("mount", b"dfs", os.fsencode(self._place), b"fuse.dfs", ctypes.c_ulong(flags), data)

    def _mount_by_helper(self, options: list[str], read_only: bool) -> int:
        helper = shutil.which("fusermount3")
        if helper is None:
            raise OSError(errno.EPERM, "only root may mount without fusermount3", self._place)
        words = ["fsname=dfs", "subtype=dfs", "ro" if read_only else "rw", "noatime", *options]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            done = subprocess.run(
                [helper, "-o", ",".join(words), "--", self._place],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise OSError(errno.EPERM, done.stderr.strip() or "fusermount3 cannot mount", self._place)
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        if not descriptors:
            raise OSError(errno.EIO, "fusermount3 gave no descriptor", self._place)
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]

    def unmount(self) -> None:
        """Takes the mount away, if it is there; who has files open in it keeps them."""
        if self._place not in mountpoints():
            return
        try:
            _call("umount2", os.fsencode(self._place), MNT_DETACH)
        except OSError as error:
            helper = shutil.which("fusermount3")
            if error.errno != errno.EPERM or helper is None:
                log.warning("%s is not unmounted: %s", self._place, error)
                return
            subprocess.run([helper, "-u", "-q", "-z", "--", self._place], check=False)

    def close(self) -> None:
        """The end; nobody may be using the descriptor any more."""
        os.close(self.descriptor)
