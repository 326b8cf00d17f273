"""What is said to the kernel unasked."""

import errno
import logging
import os
import threading

from mount import turns
from mount.bindings.native.protocol import INVAL_INODE_OUT, OUT_HEADER, Notify

log = logging.getLogger(__name__)

NOTIFYING_MAX = 16
"""Threads that may wait for a page at the same time: others must be there to answer the read of that page."""

ALL, NONE = 0, -1
"""In place of an offset: all pages, and no page but the attributes alone."""


class Notifications:
    """Written to the descriptor that requests are read from; thread-safe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._places = threading.BoundedSemaphore(NOTIFYING_MAX)

    def resend(self) -> bool:
        """Has the kernel hand out again what an earlier reader of the descriptor has read and not answered.
        False if it does not know how (before Linux 6.9)."""
        try:
            os.write(self._descriptor, OUT_HEADER.pack(OUT_HEADER.size, Notify.RESEND, 0))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def drop_attributes(self, ino: int) -> bool:
        """Makes the kernel forget the attributes of an inode, and waits for nothing. False if the kernel does
        not know the inode. Raises OSError if it could not be done."""
        body = INVAL_INODE_OUT.pack(ino, NONE, 0)
        header = OUT_HEADER.pack(OUT_HEADER.size + len(body), Notify.INVAL_INODE, 0)
        try:
            os.write(self._descriptor, header + body)
        except FileNotFoundError:
            return False
        return True

    def next_epoch(self) -> None:
        """Makes the kernel believe no name any more that it has asked for. Raises OSError."""
        os.write(self._descriptor, OUT_HEADER.pack(OUT_HEADER.size, Notify.INC_EPOCH, 0))

    def drop(self, ino: int, offset: int, wait_seconds: float = 0.0) -> bool:
        """Makes the kernel forget the attributes of an inode, and its pages from ``offset`` (or ALL, NONE)
        on. Waits for those that are being read, or that are written back before; for so long for its turn to
        do so. False if it could not be done."""
        body = INVAL_INODE_OUT.pack(ino, offset, 0)
        header = OUT_HEADER.pack(OUT_HEADER.size + len(body), Notify.INVAL_INODE, 0)
        if offset != NONE:
            turns.about_to_wait()  # for a page that another thread must bring
        if not self._places.acquire(timeout=wait_seconds):
            return False
        try:
            os.write(self._descriptor, header + body)
        except FileNotFoundError:
            return True  # the kernel does not know the inode, so it has nothing of it
        except OSError as error:
            log.info("inode %d: the kernel could not be made to forget it: %s", ino, error)
            return False
        finally:
            self._places.release()
        return True
