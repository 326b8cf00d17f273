"""What the kernel's pages of a path are of, as far as a path-based binding can know."""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from mount.nodes import Handle

PAGES_REMEMBERED = 100_000
CLOSED_REMEMBERED = 1000

MOMENT_SECONDS = 2.0
"""libfuse looks whether a file is open, and a moment later hides it: it may have been closed in between."""


@dataclass
class _Open:
    """``opened_at`` and ``version`` are those of the open, ``path`` is where it is now: a rename moves the
    kernel's inode. The kernel's pages there are of the content with the number ``moves``, but for what is
    written through this mount."""

    opened_at: str
    handle: Handle
    version: int
    path: str
    moves: int
    is_closing: bool = False


class Pages:
    """Whether the kernel's pages of a path may be kept when it is opened.

    They may if they are of the version that is opened. libfuse has one kernel inode for a path, whatever
    it names: while a handle of another file is open there (the path was replaced elsewhere), that one's
    reads would fill the new one's pages, so the new handle goes without any.

    The kernel drops old pages when it gets the answer to an open, and answers may overtake each other: only a
    handle that has come to its first flush proves that this is done, and says of which version they are.
    """

    def __init__(self) -> None:
        self._guard = threading.Condition()
        self._versions: OrderedDict[str, int] = OrderedDict()
        self._open: dict[int, _Open] = {}
        self._inos: dict[str, Counter[int]] = {}
        self._hidden: set[str] = set()
        self._closed: OrderedDict[str, float] = OrderedDict()

    def opened(self, path: str, handle: Handle) -> tuple[bool, bool]:
        """``(direct_io, keep_cache)`` for a new handle."""
        ino, (version, moves) = handle.node.ino, handle.node.shown
        with self._guard:
            at_path = self._inos.setdefault(path, Counter())
            at_path[ino] += 1
            self._open[handle.number] = _Open(path, handle, version, path, moves)
            keep = len(at_path) == 1 and self._versions.get(path) == version
            if not keep:
                self._versions.pop(path, None)
            return len(at_path) > 1, keep

    def flushed(self, number: int, written: int) -> None:
        """What was ``written`` through this handle has become that version, or (0) nothing was: the pages are
        of it, or still of the version that was opened."""
        with self._guard:
            file = self._open[number]
            node = file.handle.node
            version, moves = node.shown
            of_now = written or (file.version == version and not node.is_ours)
            # Another name of the same file has pages of its own, which nobody drops.
            is_alone = node.attr.nlink == 1 and set(self._inos[file.opened_at]) == {node.ino}
            stayed = file.path == file.opened_at and file.moves == moves
            if of_now and is_alone and stayed and node.failure is None:
                self._label(file.path, written or file.version)

    def doubted(self, number: int) -> None:
        """The pages of this handle's path may have what is no version."""
        with self._guard:
            self._versions.pop(self._open[number].path, None)

    def validated(self, number: int, drop: Callable[[str], None]) -> None:
        """Whose handle this is may now read what others have written: what is older is dropped. ``drop``
        must not be called with a lock that a request may need."""
        with self._guard:
            file = self._open[number]
            path, moves = file.path, file.handle.node.shown[1]
        if file.moves != moves:
            drop(path)
            file.moves = moves

    def mapped_at(self, number: int) -> str | None:
        """The path where the kernel may have what was written through a map; None if it cannot."""
        with self._guard:
            file = self._open[number]
            return file.path if file.handle.may_map_for_writing else None

    def renamed(self, old: str, new: str) -> None:
        """libfuse has moved the kernel's inode along, of the file or of all below a directory. (What was at
        ``new`` and is open has got a hidden name before; or the two were exchanged.)"""
        with self._guard:
            self._versions.pop(old, None)
            self._versions.pop(new, None)
            for file in self._open.values():
                file.path = _moved(file.path, old, new)

    def was_open(self, path: str) -> bool:
        """Whether a handle is open there, or was a moment ago."""
        with self._guard:
            since = time.monotonic() - MOMENT_SECONDS
            return bool(self._files_at(path)) or self._closed.get(path, since) > since

    def is_in_use(self, path: str) -> bool:
        """Whether a handle is open there; waits for those that are just being closed."""
        with self._guard:
            self._guard.wait_for(lambda: not any(file.is_closing for file in self._files_at(path)))
            return bool(self._files_at(path))

    def hidden_at(self, path: str) -> bool:
        """What is open there has no other name any more, see ``closed``. False: nothing is."""
        with self._guard:
            if not self._files_at(path):
                return False
            self._hidden.add(path)
            return True

    def closing(self, number: int) -> None:
        """A handle is about to go."""
        with self._guard:
            self._open[number].is_closing = True

    def closed(self, number: int) -> str | None:
        """A handle is gone. Returns the name to be removed if that was hidden and is of no use any more."""
        with self._guard:
            file = self._open.pop(number)
            self._guard.notify_all()
            self._closed[file.path] = time.monotonic()
            self._closed.move_to_end(file.path)
            if len(self._closed) > CLOSED_REMEMBERED:
                self._closed.popitem(last=False)
            at_path = self._inos[file.opened_at]
            at_path[file.handle.node.ino] -= 1
            at_path += Counter()
            if not at_path:
                del self._inos[file.opened_at]
            if file.path not in self._hidden or self._files_at(file.path):
                return None
            self._hidden.remove(file.path)
            return file.path

    def _files_at(self, path: str) -> list[_Open]:
        return [file for file in self._open.values() if file.path == path]

    def _label(self, path: str, version: int) -> None:
        self._versions[path] = version
        self._versions.move_to_end(path)
        if len(self._versions) > PAGES_REMEMBERED:
            self._versions.popitem(last=False)


def _moved(path: str, old: str, new: str) -> str:
    """Where a path leads to when ``old`` and ``new`` have changed places."""
    for here, there in ((old, new), (new, old)):
        if path == here or path.startswith(f"{here}/"):
            return there + path[len(here) :]
    return path
