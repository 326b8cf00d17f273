"""What the kernel's pages of a path are of, as far as a path-based binding can know."""

import threading
from collections import Counter, OrderedDict

from mount.nodes import Handle

PAGES_REMEMBERED = 100_000


class Pages:
    """Whether the kernel's pages of a path may be kept when it is opened.

    They may if they are of the version that is opened. libfuse has one kernel inode for a path, whatever
    it names: while a handle of another file is open there (the path was replaced elsewhere), that one's
    reads would fill the new one's pages, so the new handle goes without any.

    The kernel drops old pages when it gets the answer to an open, and answers may overtake each other: only a
    handle that has come to its first flush proves that this is done, and says of which version they are.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._versions: OrderedDict[str, int] = OrderedDict()
        self._open: dict[int, tuple[str, Handle, int]] = {}
        self._inos: dict[str, Counter[int]] = {}

    def opened(self, path: str, handle: Handle) -> tuple[bool, bool]:
        """``(direct_io, keep_cache)`` for a new handle."""
        ino, version = handle.node.ino, handle.node.copy.version
        with self._guard:
            at_path = self._inos.setdefault(path, Counter())
            at_path[ino] += 1
            self._open[handle.number] = (path, handle, version)
            keep = len(at_path) == 1 and self._versions.get(path) == version
            if not keep:
                self._versions.pop(path, None)
            return len(at_path) > 1, keep

    def flushed(self, path: str, number: int, written: int) -> None:
        """What was ``written`` through this handle has become that version, or (0) nothing was: the pages are
        of it, or still of the version that was opened."""
        with self._guard:
            opened_at, handle, version = self._open[number]
            node = handle.node
            of_now = written or (version == node.copy.version and not node.is_ours)
            # Another name of the same file has pages of its own, which nobody drops.
            is_alone = node.attr.nlink == 1 and set(self._inos[opened_at]) == {node.ino}
            if of_now and is_alone and path == opened_at and node.failure is None:
                self._label(path, written or version)

    def doubted(self, path: str) -> None:
        """The pages may have what is no version."""
        with self._guard:
            self._versions.pop(path, None)

    def renamed(self, old: str, new: str) -> None:
        """libfuse has moved the kernel's inode along; open handles are left where they were opened."""
        with self._guard:
            self._versions.pop(old, None)
            self._versions.pop(new, None)

    def closed(self, number: int) -> None:
        """A handle is gone."""
        with self._guard:
            path, handle, _ = self._open.pop(number)
            at_path = self._inos[path]
            at_path[handle.node.ino] -= 1
            at_path += Counter()
            if not at_path:
                del self._inos[path]

    def _label(self, path: str, version: int) -> None:
        self._versions[path] = version
        self._versions.move_to_end(path)
        if len(self._versions) > PAGES_REMEMBERED:
            self._versions.popitem(last=False)
