"""Which open files the kernel serves itself, from the local copy's file (FUSE passthrough, Linux 6.9).

An inode is in one of two modes as long as a file of it is open (fs/fuse/iomode.c): either some opens have
pages, or some are served from one backing file, the same for all. Opens that go around both may join
either. What is answered to an OPEN is what the kernel does until the RELEASE, so counting here between the
two is counting a little longer than the kernel does: what it would refuse is never answered.

The backing file is the file that the local copy has. When the copy goes on with another one (a newer version,
a conflict), those who have the old one keep it; who opens then goes around it, until they are done.
"""

import fcntl
import logging
import os
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from mount.bindings.native.protocol import BACKING_MAP, Fopen
from mount.nodes import Handle
from mount.vfs import Vfs

log = logging.getLogger(__name__)

FUSE_DEV_IOC_BACKING_OPEN, FUSE_DEV_IOC_BACKING_CLOSE = 0x4010E501, 0x4004E502
"""<linux/fuse.h>"""

READ_BYTES_MIN = 1024 * 1024
"""A smaller file that is only read is served from pages: to open it is faster, and they outlive the close."""


@dataclass(slots=True)
class _Inode:
    """How one inode is open. ``waiting`` keeps the record while somebody is about to look at it."""

    guard: threading.Lock = field(default_factory=threading.Lock)
    waiting: int = 0
    paged: int = 0
    borrowers: int = 0
    backing: int = 0
    file_number: int = 0


class Passthrough:
    """The modes of all open inodes; thread-safe. ``is_possible`` is what ``is_possible`` said."""

    def __init__(self, vfs: Vfs, descriptor: int, *, is_possible: bool) -> None:
        self._vfs = vfs
        self._descriptor = descriptor
        self._is_possible = is_possible
        self._guard = threading.Lock()
        self._inodes: dict[int, _Inode] = {}
        self._how: dict[int, Fopen] = {}

    def opened(self, handle: Handle) -> tuple[Fopen, int]:
        """How the kernel shall serve a handle: PASSTHROUGH with the id of the backing file, DIRECT_IO, or (0)
        with pages. Call ``closed`` for each."""
        ino = handle.node.ino
        inode = self._enter(ino)
        try:
            with inode.guard:
                how = self._choose(inode, handle)
                self._how[handle.number] = how
                return how, inode.backing if how is Fopen.PASSTHROUGH else 0
        finally:
            self._leave(ino, inode)

    def closed(self, handle: Handle) -> None:
        """The kernel has let go of a handle. To be called before the Vfs looks for what was written last:
        the backing file must be nobody's then."""
        how = self._how.pop(handle.number, None)
        if how is None:
            return
        ino = handle.node.ino
        inode = self._enter(ino)
        try:
            with inode.guard:
                inode.paged -= how == Fopen(0)
                inode.borrowers -= how is Fopen.PASSTHROUGH
                if inode.backing and not inode.borrowers:
                    self._unregister(inode)
        finally:
            self._leave(ino, inode)

    def _enter(self, ino: int) -> _Inode:
        with self._guard:
            inode = self._inodes.setdefault(ino, _Inode())
            inode.waiting += 1
            return inode

    def _leave(self, ino: int, inode: _Inode) -> None:
        with self._guard:
            inode.waiting -= 1
            if not (inode.waiting or inode.paged or inode.borrowers):
                del self._inodes[ino]

    def _choose(self, inode: _Inode, handle: Handle) -> Fopen:
        """Under the inode's guard."""
        if not inode.paged and self._borrow(inode, handle):
            inode.borrowers += 1
            return Fopen.PASSTHROUGH
        if handle.appends or inode.borrowers:
            return Fopen.DIRECT_IO
        inode.paged += 1
        return Fopen(0)

    def _borrow(self, inode: _Inode, handle: Handle) -> bool:
        """Whether the backing file is there for this handle. A copy that is written past us knows it from
        ``lend`` on, for every open anew."""
        if not self._is_possible or not (inode.borrowers or _is_worth_it(handle)):
            return False
        try:
            lent = self._vfs.lend(handle.number)
            return lent is not None and self._is_backed_by(inode, lent)
        except OSError as error:
            log.info("inode %d is not lent to the kernel: %s", handle.node.ino, error)
            return False

    def _is_backed_by(self, inode: _Inode, lent: int) -> bool:
        """Whether the inode's backing file is this one, which becomes it if there is none."""
        with os.fdopen(lent, "rb", buffering=0):
            number = os.fstat(lent).st_ino
            if not inode.borrowers:
                inode.backing = register(self._descriptor, lent)
                inode.file_number = number
            return inode.file_number == number

    def _unregister(self, inode: _Inode) -> None:
        backing, inode.backing = inode.backing, 0
        try:
            unregister(self._descriptor, backing)
        except OSError as error:
            log.info("backing file %d could not be given back: %s", backing, error)


def register(descriptor: int, file: int) -> int:
    """The id under which the kernel knows an open file from now on. Raises OSError."""
    # Of a buffer that can be written to, Python tells what the call returns; else what is in the buffer.
    return int(fcntl.ioctl(descriptor, FUSE_DEV_IOC_BACKING_OPEN, bytearray(BACKING_MAP.pack(file, 0, 0))))


def unregister(descriptor: int, backing: int) -> None:
    """The kernel may forget it. Raises OSError."""
    fcntl.ioctl(descriptor, FUSE_DEV_IOC_BACKING_CLOSE, backing.to_bytes(4, sys.byteorder))


def is_possible(descriptor: int, folder: Path) -> bool:
    """Whether the kernel takes files of ``folder``: this process must be allowed to (CAP_SYS_ADMIN), and the
    file system must not be stacked on another one."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            unregister(descriptor, register(descriptor, file.fileno()))
        except OSError as error:
            log.info("the kernel serves no open files itself: %s", error)
            return False
        return True


def _is_worth_it(handle: Handle) -> bool:
    return handle.writable or handle.node.copy.size >= READ_BYTES_MIN
