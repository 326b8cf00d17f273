"""Operations that are about names."""

import re

from mount.bindings.fusepy.paths import Paths, to_bytes, to_text, umask
from wire.messages.common import Caller

_HIDDEN_NAME = re.compile(r"/\.fuse_hidden[0-9a-f]{16}$")
"""libfuse, hidden_name() in lib/fuse.c. A program can give an open file such a name too: then that is removed
when it is closed, as libfuse itself does."""


class Names(Paths):
    """As mfusepy calls them."""

    def mkdir(self, path: str, mode: int) -> int:
        """A new directory."""
        mask = umask()
        self._in_parent(path, lambda parent, name, who: self.vfs.mkdir(parent, name, mode, who, mask))
        return 0

    def mknod(self, path: str, mode: int, dev: int) -> int:
        """A new file, not to be opened."""
        mask = umask()
        self._in_parent(path, lambda parent, name, who: self.vfs.mknod(parent, name, mode, dev, who, mask))
        return 0

    def symlink(self, target: str, source: str) -> int:
        """mfusepy's ``target`` is the new path and ``source`` what stands in the link."""
        content = to_bytes(source)
        self._in_parent(target, lambda parent, name, who: self.vfs.symlink(parent, name, content, who))
        return 0

    def link(self, target: str, source: str) -> int:
        """mfusepy's ``target`` is the new path and ``source`` the old one."""
        ino = self._target(source)
        self._in_parent(target, lambda parent, name, who: self.vfs.link(ino, parent, name, who))
        return 0

    def readlink(self, path: str) -> str:
        """Where a symlink points."""
        return to_text(self.vfs.readlink(self._attr(path).ino, self._who()))

    def unlink(self, path: str) -> int:
        """A name less."""
        self._in_parent(path, self.vfs.unlink)
        return 0

    def rmdir(self, path: str) -> int:
        """A directory less."""
        self._in_parent(path, self.vfs.rmdir)
        return 0

    def rename_with(self, old: str, new: str, flags: int) -> None:
        """renameat2(2), and what libfuse does instead of removing an open file."""
        hides = bool(_HIDDEN_NAME.search(new)) and self._pages.was_open(old)
        if hides and not self._pages.is_in_use(old):
            self.unlink(old)  # it was just being closed: nobody needs it any more
            return
        self._rename(old, new, flags)
        self._pages.renamed(old, new)
        if hides and not self._pages.hidden_at(new):
            self._remove_hidden(new)

    def _rename(self, old: str, new: str, flags: int) -> None:
        vfs = self.vfs

        def move(parent: int, name: bytes, who: Caller | None) -> None:
            self._in_parent(new, lambda folder, last, _: vfs.rename(parent, name, folder, last, flags, who))

        self._in_parent(old, move)
