"""One state of the database, as one identity in one session may see it.

An inode number opens nothing by itself: whoever names one must have a way to it. He must be able to enter
every directory on a path to it; a file may be reached through any of its names. An inode without a
name (an orphan) is there for the sessions that hold it, and for its owner.
"""

import errno
import stat
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection

from servers.directory import store
from servers.directory.access import Access
from servers.directory.store import Inode
from wire.errors import fail
from wire.messages.directory import ROOT_INO
from wire.permissions import Identity, is_owner, may


def is_directory(inode: Inode) -> bool:
    """Whether it can have entries."""
    return stat.S_ISDIR(inode.mode)


class View:
    """For reads. ``generation`` is that of ``access`` before ``connection`` saw anything."""

    def __init__(
        self, connection: Connection, access: Access, who: Identity, session: int, generation: int | None
    ) -> None:
        self.connection = connection
        self.who = who
        self.session = session
        self._access = access
        self._generation = generation

    def find(self, ino: int) -> Inode | None:
        """The inode whoever may see it, or None."""
        return store.get_inode(self.connection, ino)

    def find_all(self, inos: Iterable[int]) -> dict[int, Inode]:
        """Those that are there, whoever may see them."""
        return store.get_inodes(self.connection, inos)

    def chain(self, ino: int) -> list[Inode]:
        """The directory and all above it, the root last."""
        return store.chain(self.connection, ino)

    def may_enter(self, ino: int) -> bool:
        """SEARCH on the directory and on all above it."""
        return self._access.may_enter(ino, self.who, self._generation, lambda: self.chain(ino))

    def reachable(self, inodes: Sequence[Inode]) -> set[int]:
        """The numbers of those to which there is a way."""
        if self.who.is_root:
            return {inode.ino for inode in inodes}
        reached = {inode.ino for inode in inodes if self._reached_without_names(inode)}
        files = [inode.ino for inode in inodes if inode.nlink and not is_directory(inode)]
        if files:
            names = store.names_of(self.connection, files)
            reached.update(
                ino for ino in files if any(self.may_enter(parent) for parent, _ in names.get(ino, []))
            )
        orphans = [inode.ino for inode in inodes if not inode.nlink and inode.ino not in reached]
        if orphans:
            reached |= store.held(self.connection, orphans, self.session)
        return reached

    def _reached_without_names(self, inode: Inode) -> bool:
        if not inode.nlink:
            return is_owner(self.who, inode)
        return is_directory(inode) and (
            inode.ino == ROOT_INO or (inode.parent is not None and self.may_enter(inode.parent))
        )

    def reach(self, ino: int) -> Inode:
        """The inode. Raises ENOENT, or EACCES if there is no way to it."""
        inode = self.find(ino)
        if inode is None:
            raise fail(errno.ENOENT, f"there is no inode {ino}")
        if ino not in self.reachable([inode]):
            raise fail(errno.EACCES, f"no way leads to inode {ino}")
        return inode

    def need(self, inode: Inode, wanted: int) -> None:
        """Raises EACCES unless the identity has the ``wanted`` bits on it."""
        if not may(self.who, inode, wanted):
            raise fail(errno.EACCES)
