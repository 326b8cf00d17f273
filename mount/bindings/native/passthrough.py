"""Which open files the kernel serves itself, from the local copy's file (FUSE passthrough, Linux 6.9).

An inode is in one of two modes as long as a file of it is open (fs/fuse/iomode.c): either some opens have
pages (or get them when they are mapped, as those with DIRECT_IO alone), or all have one backing file. Those
of the latter that must not read or write it by themselves are marked DIRECT_IO as well. What is answered to
an OPEN is what the kernel does until the RELEASE, so counting here between the two is counting a little
longer than the kernel does: what it would refuse is never answered.

The backing file is the file that the local copy has, also when that moves on (mount.following). When the copy
goes on with another file (a conflict; a version that is too large to be waited for), those who have the old
one keep it, and who opens then goes around it, until they are done. An O_DIRECT open of a file that has a
backing file goes around it too, but for its maps.

A map outlives the RELEASE of the open that it was made of, and is written to without a trace. So files that
are opened for reading and writing have pages, unless somebody reads them from a backing file already. Then
such a handle is released, as the Vfs knows it (that is: looked through for the last time, and unlocked), when
nobody has the local copy's file for writing any more.
"""

import errno
import fcntl
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mount import turns
from mount.bindings.native.protocol import BACKING_MAP, Fopen
from mount.nodes import Handle
from mount.vfs import Vfs
from wire.errors import fail

log = logging.getLogger(__name__)

FUSE_DEV_IOC_BACKING_OPEN, FUSE_DEV_IOC_BACKING_CLOSE = 0x4010E501, 0x4004E502
"""<linux/fuse.h>"""

READ_BYTES_MIN = 1024 * 1024
"""A smaller file that is only read is served from pages: to open it is faster, and they outlive the close."""

SHORT_WAITS_SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
"""The kernel lets go of a backing file some time after it has said RELEASE: up to 23 ms were seen."""

MAP_SECONDS = 1.0
"""How often it is looked whether a map is gone: nothing tells."""

PAGED = 0

PASSTHROUGH, DIRECT_IO = int(Fopen.PASSTHROUGH), int(Fopen.DIRECT_IO)
"""As numbers: each open asks for these bits many times, and of an IntFlag that takes a microsecond."""


@dataclass(slots=True)
class _Inode:
    """How one inode is open. ``visitors`` keep the record while they look at it."""

    guard: threading.Lock = field(default_factory=threading.Lock)
    visitors: int = 0
    paged: int = 0
    borrowers: int = 0
    writers: int = 0  # of the borrowers: who may write the backing file
    backing: int = 0
    file_number: int = 0
    put_aside: list[Handle] = field(default_factory=list)

    @property
    def is_in_use(self) -> bool:
        """Whether there is anything to be remembered."""
        return bool(self.visitors or self.paged or self.borrowers or self.put_aside)


class Passthrough:
    """The modes of all open inodes; thread-safe. ``is_possible`` is what ``is_possible`` said; ``release``
    is told of each handle when it may be released. ``close`` at the end."""

    def __init__(
        self, vfs: Vfs, descriptor: int, release: Callable[[Handle], None], *, is_possible: bool
    ) -> None:
        self._vfs = vfs
        self._descriptor = descriptor
        self._release = release
        self._is_possible = is_possible
        self._lock = threading.Lock()
        self._guard = threading.Condition(self._lock)  # the same: to enter it costs more
        self._inodes: dict[int, _Inode] = {}
        self._how: dict[int, int] = {}
        self._mapped: set[int] = set()
        self._restore(vfs.handles())
        self._stopping = False
        self._maps = threading.Thread(target=self._map_loop, name="maps", daemon=True)
        self._maps.start()

    def close(self) -> None:
        """Releases what waits for maps to go: nobody will look any more."""
        with self._guard:
            self._stopping = True
            self._guard.notify_all()
            inodes = list(self._inodes.values())
        self._maps.join()
        for inode in inodes:
            self._release_all(inode)

    def _restore(self, handles: Sequence[Handle]) -> None:
        """What an earlier worker has written down."""
        for handle in handles:
            record, how = handle.record, handle.record.served
            inode = self._inodes.setdefault(handle.node.ino, _Inode())
            if record.backing:  # the inode's, though some of its handles may have none
                inode.backing, inode.file_number = record.backing, record.file_number
            if record.is_aside:
                inode.put_aside.append(handle)
                self._mapped.add(handle.node.ino)
            else:
                self._count(inode, handle, how, 1)
                self._how[handle.number] = how
            if how == PASSTHROUGH or _writes_past_us(how, handle):
                maps = any(one.may_map_for_writing for one in handles if one.node is handle.node)
                handle.node.copy.lent_before(writes=bool(inode.writers), maps=maps)

    @staticmethod
    def _count(inode: _Inode, handle: Handle, how: int, step: int) -> None:
        """Under the inode's guard."""
        if how == PAGED:
            inode.paged += step
            return
        inode.paged += step * _may_have_pages(how, handle)
        inode.borrowers += step * bool(how & PASSTHROUGH)
        inode.writers += step * _writes_past_us(how, handle)

    # Opening

    def opened(self, handle: Handle) -> tuple[int, int]:
        """How the kernel shall serve a handle: PASSTHROUGH (and DIRECT_IO) with the id of the backing file,
        DIRECT_IO alone, or (0) with pages. Raises OSError if it cannot be served at all."""
        ino = handle.node.ino
        inode = self._enter(ino)
        try:
            with inode.guard:
                if handle.number in self._how:  # its open was answered by an earlier worker, who then died
                    self._count(inode, handle, self._how.pop(handle.number), -1)
                how = self._choose(inode, handle)
                backing = inode.backing if how & PASSTHROUGH else 0
                try:
                    number = inode.file_number if backing else 0
                    self._vfs.note_served(handle, how, backing, number, is_aside=False)
                except BaseException:
                    self._give_up_backing(inode, handle)
                    raise
                self._count(inode, handle, how, 1)
                self._how[handle.number] = how
                return how, backing
        finally:
            self._leave(ino, inode)

    def _give_up_backing(self, inode: _Inode, handle: Handle) -> None:
        """Under the inode's guard, for a handle that is not answered after all."""
        if inode.backing and not inode.borrowers:
            self._unregister(inode)
        if handle.writable and not inode.writers:
            handle.node.copy.take_back()

    def may_refuse(self, ino: int, flags: int) -> bool:
        """Whether a file that is opened with these flags may turn out not to be servable: it must not have
        been truncated before."""
        inode = self._inodes.get(ino)
        return flags & os.O_ACCMODE == os.O_RDWR and inode is not None and inode.borrowers > 0

    def _choose(self, inode: _Inode, handle: Handle) -> int:
        """Under the inode's guard."""
        if inode.borrowers:
            return self._join(inode, handle)
        if self._is_possible and not inode.paged and _is_worth_it(handle) and self._back(inode, handle):
            return PASSTHROUGH
        if handle.appends or handle.node.copy.is_past_us:
            return DIRECT_IO
        return PAGED

    def _back(self, inode: _Inode, handle: Handle) -> bool:
        """Gives the inode a backing file, if that can be."""
        try:
            lent = self._vfs.lend(handle.number)
            if lent is None:
                return False
            with open(lent, "rb", buffering=0), open(f"/proc/self/fd/{lent}", "rb", buffering=0) as file:
                # The kernel keeps this one as long as anybody borrows: it must not look like a writer's.
                inode.backing = register(self._descriptor, file.fileno())
                inode.file_number = os.fstat(lent).st_ino
                return True
        except OSError as error:
            log.info("inode %d is not lent to the kernel: %s", handle.node.ino, error)
            return False

    def _join(self, inode: _Inode, handle: Handle) -> int:
        """For one more handle of a file that has a backing file."""
        around = PASSTHROUGH | DIRECT_IO
        if _is_direct(handle) and not handle.may_map_for_writing:
            return around
        lent = self._vfs.lend(handle.number, at_any_size=True)
        if lent is not None:
            with open(lent, "rb", buffering=0):
                if os.fstat(lent).st_ino == inode.file_number:
                    return around if _is_direct(handle) else PASSTHROUGH
        if handle.may_map_for_writing:  # into the backing file, where nobody would look for it
            raise fail(errno.EBUSY, "a program here has content of this file open that was replaced")
        return around

    # Closing

    def closed(self, handle: Handle) -> bool:
        """The kernel has let go of a handle, which is released as soon as that may be. Returns whether the
        kernel's pages are of no use any more: the local copy was completed by what was read into them, and
        who opens the file next reads that. If nobody drops them, that open does, and its program waits."""
        how = self._how.pop(handle.number)
        is_served_next = how == PAGED and self._is_served_next(handle)
        wrote = _writes_past_us(how, handle)
        may_be_mapped = wrote and handle.may_map_for_writing
        ino = handle.node.ino
        inode = self._enter(ino)
        try:
            with inode.guard:
                self._count(inode, handle, how, -1)
                if may_be_mapped:
                    inode.put_aside.append(handle)
                    self._vfs.note_served(handle, how, 0, 0, is_aside=True)
                if inode.backing and not inode.borrowers:
                    self._unregister(inode)
                if wrote and not inode.writers:
                    handle.node.copy.take_back()
            try:
                if not may_be_mapped:
                    self._release(handle)
            finally:
                if inode.put_aside and not inode.writers:
                    self._release_when_home(ino, inode)
            return is_served_next and not inode.paged
        finally:
            self._leave(ino, inode)

    def _is_served_next(self, handle: Handle) -> bool:
        """Whether a reader like this one would be passed on now."""
        is_worth_it = self._is_possible and not handle.writable and _is_worth_it(handle)
        return is_worth_it and not handle.node.copy.lacking

    def _release_when_home(self, ino: int, inode: _Inode) -> None:
        """Releases what was put aside, now, or when the maps are gone."""
        turns.about_to_wait()
        for seconds in SHORT_WAITS_SECONDS:
            if self._try_to_release(inode):
                return
            time.sleep(seconds)
        with self._guard:
            self._mapped.add(ino)
            self._guard.notify_all()

    def _try_to_release(self, inode: _Inode) -> bool:
        """Whether there is nothing to wait for any more."""
        with inode.guard:
            if inode.writers or not inode.put_aside:
                return True  # the last of them will see to it
            if inode.put_aside[0].node.copy.take_back():
                return False
        self._release_all(inode)
        return True

    def _release_all(self, inode: _Inode) -> None:
        with inode.guard:
            handles, inode.put_aside = inode.put_aside, []
        for handle in handles:
            try:
                self._release(handle)
            except Exception:  # the others are to be released all the same
                log.exception("inode %d: a handle cannot be released", handle.node.ino)

    def _map_loop(self) -> None:
        while True:
            with self._guard:
                self._guard.wait_for(lambda: self._mapped or self._stopping)
                if self._guard.wait_for(lambda: self._stopping, MAP_SECONDS):
                    return
                # Who comes while these are looked at is in the next round.
                mapped, self._mapped = self._mapped, set()
            for ino in mapped:
                self._look_for_map(ino)

    def _look_for_map(self, ino: int) -> None:
        inode = self._enter(ino)
        try:
            is_done = self._try_to_release(inode)
        except Exception:
            log.exception("inode %d: what waits for a map cannot be released", ino)
            is_done = False
        finally:
            self._leave(ino, inode)
        if not is_done:
            with self._guard:
                self._mapped.add(ino)

    def _enter(self, ino: int) -> _Inode:
        with self._lock:
            inode = self._inodes.get(ino)
            if inode is None:
                inode = self._inodes[ino] = _Inode()
            inode.visitors += 1
            return inode

    def _leave(self, ino: int, inode: _Inode) -> None:
        with self._lock:
            inode.visitors -= 1
            if not inode.is_in_use:
                del self._inodes[ino]

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


def _may_have_pages(how: int, handle: Handle) -> bool:
    """A shared map of a file that goes around the pages has pages, and from then on, until its RELEASE, the
    kernel counts that file among those with pages."""
    return how == PAGED or (how == DIRECT_IO and handle.readable)


def _writes_past_us(how: int, handle: Handle) -> bool:
    """Either itself, or through a map."""
    if how == PAGED:
        return False
    past_us = how == PASSTHROUGH or (bool(how & PASSTHROUGH) and handle.may_map_for_writing)
    return past_us and handle.writable


def _is_direct(handle: Handle) -> bool:
    """The file system of the local copy may not know O_DIRECT, or have other rules for it."""
    return bool(handle.flags & os.O_DIRECT)


def _is_worth_it(handle: Handle) -> bool:
    if _is_direct(handle):
        return False
    if handle.writable:
        return not handle.may_map_for_writing
    return handle.node.copy.size >= READ_BYTES_MIN
