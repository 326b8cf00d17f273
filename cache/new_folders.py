"""Directories that this mount has made: what it has not put there is not there.

Programs look for most names before they make them, and a directory that was just made has none. So who has
made it, and is told when anybody else changes it (mount.lease), need not ask. Kept are at least the names
that are there: one is added before it is asked to be made, and again when it was; none is taken away.
"""

from wire.limits import NAME_BYTES_MAX

NAMES_MAX = 100_000
"""In all of them together; some 10 MB. Beyond, all is forgotten, and asked for as in any other directory."""


class NewFolders:
    """Not thread-safe."""

    def __init__(self, names_max: int = NAMES_MAX) -> None:
        self._names_max = names_max
        self._folders: dict[int, set[bytes]] = {}
        self._count = 0

    def begin(self, ino: int) -> None:
        """The directory was made, and has no names."""
        self._grow()
        self._folders[ino] = set()

    def put(self, ino: int, name: bytes) -> None:
        """The name is there, or may soon be."""
        names = self._folders.get(ino)
        if names is not None and name not in names:
            names.add(name)
            self._grow()

    def lacks(self, ino: int, name: bytes) -> bool:
        """Whether it is known that there is no such name. One that is too long is not free, but refused."""
        names = self._folders.get(ino)
        return names is not None and name not in names and len(name) <= NAME_BYTES_MAX

    def drop(self, ino: int) -> None:
        """Somebody else may have put something there."""
        names = self._folders.pop(ino, None)
        if names is not None:
            self._count -= len(names) + 1

    def clear(self) -> None:
        """As ``drop``, of all."""
        self._folders.clear()
        self._count = 0

    def _grow(self) -> None:
        self._count += 1
        if self._count > self._names_max:
            self.clear()
