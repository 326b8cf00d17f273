"""Locks of programs through libfuse: flock(2), and fcntl(2) with F_SETLK, F_SETLKW and F_GETLK.

libfuse answers a request in the thread that has read it, and only there it says whether the kernel has
interrupted it, and only if it is asked. So a lock that must be waited for is waited for in a thread of its
own, and the one of libfuse looks now and then whether its program still wants it.

It remembers granted ranges itself, to answer F_GETLK from. It would never forget those of an open file
(F_OFD_SETLK) and those that were lost, so it is not let know of any.
"""

import ctypes
import errno
import fcntl
import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from mount import interruption
from mount.bindings.fusepy.libfuse import mfusepy
from mount.bindings.fusepy.pages import Pages
from mount.bindings.ranges import LAST_BYTE, kind_of, range_of, signed
from mount.vfs import Vfs
from wire.errors import fail
from wire.messages.lock import Range

log = logging.getLogger(__name__)

CAN_DROP = mfusepy.fuse_version_major >= 3
"""libfuse 2 cannot drop the kernel's pages of a path. Who has a lock would not see what others have written,
so there locks stay what the kernel makes of them: between the programs of one mount."""

WAITERS_MAX = 40
"""Each has a thread of libfuse, which has more."""

LOOK_SECONDS = 0.2

_libfuse = mfusepy._libfuse
if CAN_DROP:
    _libfuse.fuse_invalidate_path.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    _libfuse.fuse_get_session.argtypes = [ctypes.c_void_p]
    _libfuse.fuse_get_session.restype = ctypes.c_void_p
    _libfuse.fuse_session_exited.argtypes = [ctypes.c_void_p]


class ProgramLockCalls:
    """The operations ``lock`` and ``flock``. To be called in threads of libfuse."""

    def __init__(self, vfs: Vfs, pages: Pages) -> None:
        self._vfs = vfs
        self._pages = pages
        self._waiters = threading.BoundedSemaphore(WAITERS_MAX)
        self._numbers = itertools.count(1)

    def lock(self, number: int, owner: int, command: int, asked: Any) -> None:
        """``asked`` is a struct flock, from the beginning of the file. Raises EAGAIN and EDEADLK, ENOLCK,
        InterruptedError, and what stands in the way of a commit."""
        last = asked.l_start + asked.l_len - 1 if asked.l_len else LAST_BYTE
        wanted = range_of(owner, asked.l_start, last, asked.l_type, asked.l_pid, is_flock=False)
        if command == fcntl.F_GETLK:
            self._tell(number, wanted, asked)
        elif asked.l_type == fcntl.F_UNLCK:
            self._unlock(number, wanted)
        else:
            self._take(number, wanted, waits=command == fcntl.F_SETLKW)
            asked.l_type = fcntl.F_UNLCK  # what libfuse is to remember of it

    def flock(self, number: int, owner: int, operation: int) -> None:
        """As ``lock``."""
        _, _, pid = mfusepy.fuse_get_context()
        is_exclusive = bool(operation & fcntl.LOCK_EX)
        wanted = Range(True, signed(owner), 0, LAST_BYTE, is_exclusive, pid)
        if operation & fcntl.LOCK_UN:
            self._unlock(number, wanted)
        else:
            self._take(number, wanted, waits=not operation & fcntl.LOCK_NB)

    def _tell(self, number: int, wanted: Range, asked: Any) -> None:
        """Of another machine's program no number is told: it would be one of a program here."""
        answer = self._vfs.conflict(number, wanted)
        found = answer.conflict
        if found is None:
            asked.l_type = fcntl.F_UNLCK
            return
        asked.l_type, asked.l_pid = kind_of(found), found.pid if answer.is_own else 0
        asked.l_start, asked.l_len = (
            found.first,
            0 if found.last == LAST_BYTE else found.last + 1 - found.first,
        )

    def _take(self, number: int, wanted: Range, *, waits: bool) -> None:
        if not wanted.is_exclusive:
            self._collect_mapped(number, wanted)
        if self._vfs.lock(number, wanted, waits=False).conflict is not None:
            if not waits:
                raise fail(errno.EAGAIN)
            self._wait(number, wanted)
        self._pages.validated(number, _drop)

    def _unlock(self, number: int, gone: Range) -> None:
        self._collect_mapped(number, gone)
        self._vfs.unlock(number, gone)

    def _collect_mapped(self, number: int, gone: Range) -> None:
        """What was written through a map is only in the kernel's pages until these are dropped."""
        if self._vfs.has_exclusive(number, gone) and (path := self._pages.mapped_at(number)) is not None:
            _drop(path)

    def _wait(self, number: int, wanted: Range) -> None:
        """Takes it as soon as it can be had. Raises ENOLCK if too many wait already."""
        if not self._waiters.acquire(blocking=False):
            raise fail(errno.ENOLCK, "too many programs of this mount wait for locks")
        try:
            unique = next(self._numbers)
            taking = _in_a_thread(unique, lambda: self._vfs.lock(number, wanted, waits=True))
            while not wait([taking], LOOK_SECONDS).done:
                if _is_interrupted():
                    interruption.interrupt(unique)
            taking.result()
        finally:
            self._waiters.release()


def _in_a_thread(unique: int, do: Callable[[], object]) -> "Future[object]":
    """Raises ENOLCK if there is no thread to be had."""
    future: Future[object] = Future()

    def run() -> None:
        try:
            with interruption.Call(unique):
                future.set_result(do())
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=run, name="fuse-waiting", daemon=True).start()
    except RuntimeError as error:
        raise fail(errno.ENOLCK, "there is no thread to wait in") from error
    return future


def _is_interrupted() -> bool:
    """Whether the kernel has said so, or libfuse has been told to end."""
    session = _libfuse.fuse_get_session(_fuse())
    return bool(_libfuse.fuse_interrupted() or _libfuse.fuse_session_exited(session))


def _drop(path: str) -> None:
    """Has the kernel write back what is dirty in its pages of this path, and forget all of them."""
    status = _libfuse.fuse_invalidate_path(_fuse(), path.encode("utf-8", "surrogateescape"))
    if status not in (0, -errno.ENOENT):
        log.info("the pages of %s could not be dropped: %s", path, errno.errorcode.get(-status, status))


def _fuse() -> Any:
    return _libfuse.fuse_get_context().contents.fuse
