"""What all operations share: who asks, and where a path leads."""

import errno
import logging
from collections.abc import Callable
from typing import TypeVar

from mount.bindings.callers import caller
from mount.bindings.fusepy.libfuse import mfusepy
from mount.bindings.fusepy.pages import Pages
from mount.owners import Owners
from mount.vfs import Vfs
from wire.messages.common import Caller
from wire.messages.directory import Attr

log = logging.getLogger(__name__)

T = TypeVar("T")


def to_bytes(text: str) -> bytes:
    """A name as the Vfs has it."""
    return text.encode("utf-8", "surrogateescape")


def to_text(data: bytes) -> str:
    """A name as mfusepy has it."""
    return data.decode("utf-8", "surrogateescape")


def split(path: str) -> list[bytes]:
    """The names on the way from the root of the mount."""
    return [to_bytes(name) for name in path.split("/") if name]


def umask() -> int:
    """Of the program whose call this is."""
    mask: int = mfusepy._libfuse.fuse_get_context().contents.umask
    return mask


class Paths:
    """A Vfs, and paths in it. To be called in threads of libfuse: these know whose call it is."""

    def __init__(self, vfs: Vfs, owners: Owners, *, trusted: bool) -> None:
        self.vfs = vfs
        self._owners = owners
        self._is_trusted = trusted
        self._pages = Pages()

    def _who(self) -> Caller | None:
        return caller(*mfusepy.fuse_get_context()) if self._is_trusted else None

    def _attr(self, path: str) -> Attr:
        return self.vfs.walk(split(path), self._who())

    def _target(self, path: str) -> int:
        return self.vfs.target(split(path), self._who())

    def _in_parent(self, path: str, do: Callable[[int, bytes, Caller | None], T]) -> T:
        """``do(parent inode, name, who)``; once more after a fresh walk if what we believed was old."""
        names, who = split(path), self._who()
        if not names:
            raise OSError(errno.EBUSY, "the root of the mount")
        parent = self.vfs.walk(names[:-1], who).ino
        try:
            return do(parent, names[-1], who)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
                raise
            fresh = self.vfs.walk(names[:-1], who, fresh=True).ino
            if fresh == parent:
                raise
            return do(fresh, names[-1], who)

    def _remove_hidden(self, path: str) -> None:
        """libfuse removes what it has hidden when it is closed, unless that is while it is being hidden."""
        try:
            self._in_parent(path, self.vfs.unlink)
        except OSError as error:
            log.debug("%s is not removed here: %s", path, error)
