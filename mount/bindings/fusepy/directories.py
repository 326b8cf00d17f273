"""Operations that are about open directories. The handle of one is its inode."""

import stat
from collections.abc import Iterator

from mount.bindings.fusepy.paths import Paths, to_text
from wire.permissions import READ


class Directories(Paths):
    """As mfusepy calls them."""

    def opendir(self, path: str) -> int:
        """opendir(3)."""
        ino = self._attr(path).ino
        self.vfs.access(ino, READ, self._who())
        return ino

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        """All of it: libfuse cuts it into what the kernel's buffers hold."""
        ino = fh
        for dots in (".", ".."):
            yield dots, {"st_mode": stat.S_IFDIR, "st_ino": ino}, 0
        for entry in self.vfs.readdir(ino, self._who()):
            yield to_text(entry.name), {"st_mode": entry.attr.mode, "st_ino": entry.attr.ino}, 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        """A change of a name is durable when it is answered."""
        return 0

    def releasedir(self, path: str, fh: int) -> int:
        """Nothing was kept."""
        return 0
