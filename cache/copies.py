"""The local copies of a mount: one folder that outlives the process and keeps within a limit.

In the folder: ``lock`` (held while a mount uses it), ``index/`` (see cache.index) and
``copies/xx/<inode>``, one sparse file a copy. A file's modification time is when its copy was last
closed (to the minute, if this process is killed), so that the order of eviction survives the process too.

To load a copy costs several times what it costs to open a file. So copies that nobody has open any more
*rest* for a while: all that is known of them is stored, as if they were closed, but they stay as they are
for who opens them next.

Order of the locks: the store's own → a copy's → the index's; the counter's stands last. A copy
calls back without its lock held.
"""

import ctypes
import errno
import fcntl
import logging
import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cache.changes import Dirty, Pending
from cache.chunks import NeedsManifest
from cache.index import Index
from cache.local import LocalCopy
from wire.errors import fail

__all__ = ["CopyStore", "Dirty", "LocalCopy", "NeedsManifest", "Pending"]

log = logging.getLogger(__name__)

EVICT_DOWN_TO = 0.9
"""The share of the limit to which eviction frees, so that it does not run at every fill."""

_EVICTED_AT_ONCE = 64

RESTING_MAX = 4096
"""Copies that rest at the same time; each takes a descriptor, and some KB."""

_DESCRIPTORS_SHARE = 4
"""No more than this part of the descriptors that the process may have is for copies that rest; as many may be
open only because a handle rests (mount.resting)."""


class CopyStore:
    """The copies in ``folder``, at most ``limit_bytes`` of them if they are clean and nobody has them open.

    ``clock`` gives seconds since the epoch. Raises EBUSY if another mount uses the folder.
    """

    def __init__(self, folder: Path, limit_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._copies = folder / "copies"
        self.limit_bytes = limit_bytes
        self._clock = clock
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_fd = _lock(folder)
        try:
            self._copies.mkdir(mode=0o700, exist_ok=True)
            self._index = Index(folder / "index")
            self._kept, self._dirty = self._walk()
            self._used = sum(self._kept.values()) + sum(self._dirty.values())
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._lock = threading.Lock()
        self._counter = threading.Lock()
        self._open: dict[int, LocalCopy] = {}
        self._doomed: dict[int, bool] = {}
        self._resting: OrderedDict[int, LocalCopy] = OrderedDict()  # all of them are in ``_kept`` too
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.resting_max = min(RESTING_MAX, descriptors // _DESCRIPTORS_SHARE)
        self._closed = False

    def open(self, ino: int) -> LocalCopy:
        """The copy of an inode, the same object for all who have it open; an empty one if there is none."""
        with self._lock:
            copy = self._open.get(ino)
            if copy is None:
                copy = self._wake(ino) or LocalCopy(
                    ino, self._path(ino), self._index, on_close=self._release, on_growth=self._account
                )
                self._open[ino] = copy
                self._add(copy.allocated - self._kept.pop(ino, 0) - self._dirty.pop(ino, 0))
            copy.openers += 1
            return copy

    def has(self, ino: int) -> bool:
        """Whether there is anything of an inode here, as of now."""
        return ino in self._open or ino in self._kept or ino in self._dirty

    def dirty_inos(self) -> list[int]:
        """The inodes with changes that are not committed, those of earlier processes included."""
        with self._lock:
            return sorted(self._dirty.keys() | {ino for ino, copy in self._open.items() if copy.must_stay})

    def drop(self, ino: int, force: bool = False) -> None:
        """Forgets a copy; one that is open is forgotten at its last close, unless it is dirty then. Raises
        ValueError for a dirty one. With ``force`` dirty content is forgotten like any other."""
        with self._lock:
            copy = self._open.get(ino)
            if not force and (ino in self._dirty or (copy is not None and copy.must_stay)):
                raise ValueError(f"the copy of inode {ino} is dirty")
            if copy is not None:
                self._doomed[ino] = force
            elif ino in self._kept or ino in self._dirty:
                self._forget([ino])

    def used_bytes(self) -> int:
        """What all copies take on the disk."""
        return self._used

    def evict_all(self) -> None:
        """Forgets all clean copies that nobody has open."""
        with self._lock:
            self._forget(list(self._kept))

    def evict(self) -> None:
        """Frees room if the limit is passed: the copies that were closed longest ago go first."""
        while self._used > self.limit_bytes and self._evict_some():
            pass

    def close(self) -> None:
        """Stores what is known of all copies, open ones included, and lets go of the folder."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._forget([ino for ino, copy in self._resting.items() if copy.is_empty])
            settled = [self._settle(copy) for copy in [*self._open.values(), *self._resting.values()]]
            self._open.clear()
            self._resting.clear()
            # What the index says of the files is believed after a loss of power too.
            _sync(self._lock_fd)
            self._index.close(all_true=all(settled))
            os.close(self._lock_fd)

    def _path(self, ino: int) -> str:
        # Not a Path: making one costs more than opening the file.
        return f"{self._copies}/{ino & 0xFF:02x}/{ino}"

    def _walk(self) -> tuple[dict[int, int], dict[int, int]]:
        """Allocated bytes of the clean copies, least recently used first, and of the dirty ones."""
        found: list[tuple[float, int, int]] = []
        for folder in self._copies.iterdir():
            with os.scandir(folder) as files:
                for file in files:
                    if not file.name.isdigit():
                        os.unlink(file.path)  # begun when another file was left to its borrowers
                        continue
                    status = file.stat(follow_symlinks=False)
                    found.append((status.st_mtime, int(file.name), status.st_blocks * 512))
        found.sort()
        allocated = {ino: size for _, ino, size in found}
        dirty = {}
        for ino in self._index.dirty_inos():
            if ino in allocated:
                dirty[ino] = allocated.pop(ino)
            else:
                log.error("inode %d was changed here and not committed, and its content is gone", ino)
                self._index.forget([ino])
        return allocated, dirty

    def _release(self, copy: LocalCopy) -> None:
        with self._lock:
            copy.openers -= 1
            if copy.openers or self._closed:
                return
            del self._open[copy.ino]
            before = copy.allocated
            is_dirty = copy.must_stay or copy.is_past_us
            rests = not is_dirty and self._lay_to_rest(copy)
            if not rests:
                self._settle(copy)
                is_dirty = copy.must_stay or copy.is_past_us
            self._add(copy.allocated - before)
            (self._dirty if is_dirty else self._kept)[copy.ino] = copy.allocated
            forced = self._doomed.pop(copy.ino, None)
            # That of a file without content is complete, and at rest it is opened again at once.
            stays = rests and copy.version and not copy.size
            if forced or (not is_dirty and (forced is not None or (copy.is_empty and not stays))):
                self._forget([copy.ino])
        self.evict()

    def _lay_to_rest(self, copy: LocalCopy) -> bool:
        """Under the lock. False if all that is known of the copy could not be stored."""
        try:
            copy.rest(self._clock())
        except OSError as error:
            log.info("inode %d does not stay open: %s", copy.ino, error)
            return False
        self._resting[copy.ino] = copy
        if len(self._resting) > self.resting_max:
            _, oldest = self._resting.popitem(last=False)
            self._settle(oldest)
            if oldest.is_empty:
                self._forget([oldest.ino])
        return True

    def _wake(self, ino: int) -> LocalCopy | None:
        """Under the lock: the copy, if it rests."""
        copy = self._resting.pop(ino, None)
        if copy is not None:
            copy.wake()
        return copy

    def _settle(self, copy: LocalCopy) -> bool:
        """Whether all that is known of the copy could be stored."""
        try:
            copy.settle(self._clock())
        except OSError as error:
            log.warning("inode %d will be fetched again: %s", copy.ino, error)
            return False
        return True

    def _account(self, growth: int) -> None:
        self._add(growth)
        if growth > 0:
            self.evict()

    def _add(self, growth: int) -> None:
        if growth:
            with self._counter:
                self._used += growth

    def _evict_some(self) -> bool:
        """Whether there was anything to evict."""
        with self._lock:
            excess = self._used - int(self.limit_bytes * EVICT_DOWN_TO)
            victims: list[int] = []
            for ino, allocated in self._kept.items():
                if excess <= 0 or len(victims) == _EVICTED_AT_ONCE:
                    break
                victims.append(ino)
                excess -= allocated
            if victims:
                self._forget(victims)
            return bool(victims)

    def _forget(self, inos: list[int]) -> None:
        """Records first: a file that no record names is an empty copy."""
        self._index.forget(inos)
        for ino in inos:
            if (resting := self._resting.pop(ino, None)) is not None:
                resting.give_up()
            with suppress(FileNotFoundError):
                os.unlink(self._path(ino))
            self._add(-self._kept.pop(ino, 0) - self._dirty.pop(ino, 0))


def _lock(folder: Path) -> int:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise fail(errno.EBUSY, f"the cache folder {folder} is in use by another mount") from None
    return descriptor


def _sync(descriptor: int) -> None:
    if ctypes.CDLL(None).syncfs(descriptor) != 0:
        os.sync()
