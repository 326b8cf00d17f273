"""One request that changes the directory: its identity, its clock, and the inodes that it works on.

Inodes are read once and written once: operations change the copies here, ``flush`` writes those that
changed. Entries are written at once. So what is read of ``inodes`` behind the back of the copies
(a chain of directories) needs a flush before it.
"""

import errno
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection

from servers.directory import store
from servers.directory.access import Access, Change
from servers.directory.clock import Clock
from servers.directory.config import DirectoryConfig
from servers.directory.store import Inode
from servers.directory.view import View, is_directory
from wire.errors import Conflict, TicketRefused, fail
from wire.names import check_name
from wire.permissions import SEARCH, WRITE, Identity, may_remove
from wire.tickets import Grant, Receipt, open_grant


class Transaction(View):
    """The writer's view. ``change`` is told before directories change who may enter them; ``receipts``
    are those of the request that opened, by their sealed text."""

    def __init__(
        self,
        connection: Connection,
        access: Access,
        who: Identity,
        session: int,
        *,
        config: DirectoryConfig,
        clock: Clock,
        change: Change,
        receipts: Mapping[bytes, Receipt],
    ) -> None:
        super().__init__(connection, access, who, session, None)
        self.config = config
        self.clock = clock
        self.receipts = receipts
        self._change = change
        self._inodes: dict[int, Inode] = {}
        self._new: dict[int, Inode] = {}
        self._changed: dict[int, Inode] = {}
        self._clock_moved = False
        self.stamped: dict[int, int] = {}
        """The inodes that have changed, to their ``change``."""
        self.is_repeated = False
        """Whether what was asked for had been done before: others may not have been told of it yet."""

    # Reading

    def find(self, ino: int) -> Inode | None:
        """As View, through the copies."""
        if ino not in self._inodes and (inode := super().find(ino)):
            self._inodes[ino] = inode
        return self._inodes.get(ino)

    def find_all(self, inos: Iterable[int]) -> dict[int, Inode]:
        """As View, through the copies."""
        wanted = list(inos)
        for ino, inode in super().find_all(set(wanted) - self._inodes.keys()).items():
            self._inodes[ino] = inode
        return {ino: self._inodes[ino] for ino in wanted if ino in self._inodes}

    def chain(self, ino: int) -> list[Inode]:
        """As View."""
        self.flush()
        return super().chain(ino)

    def may_enter(self, ino: int) -> bool:
        """As View; what is not committed may be rolled back, so answers are not always kept."""
        self._generation = self._access.writers_generation
        return super().may_enter(ino)

    def directory(self, ino: int) -> Inode:
        """A directory that the identity may enter, to look up names in. Raises ENOENT, ENOTDIR, EACCES."""
        inode = self.reach(ino)
        if not is_directory(inode):
            raise fail(errno.ENOTDIR)
        self.need(inode, SEARCH)
        return inode

    def look_up(self, parent: Inode, name: bytes) -> Inode | None:
        """What the entry names, or None. Raises ENAMETOOLONG, EINVAL."""
        check_name(name)
        found = store.get_child(self.connection, parent.ino, name)
        if found is None:
            return None
        ino, inode = found
        if inode is not None:
            self._inodes.setdefault(ino, inode)
        return self._inodes[ino]

    def child(self, parent: Inode, name: bytes) -> Inode:
        """What the entry names. Raises ENOENT and as ``look_up``."""
        inode = self.look_up(parent, name)
        if inode is None:
            raise fail(errno.ENOENT)
        return inode

    # Permission

    def need_to_add(self, parent: Inode) -> None:
        """Raises ENOENT for a removed directory, EACCES without WRITE on it."""
        if not parent.nlink:
            raise fail(errno.ENOENT, "the directory was removed")
        self.need(parent, WRITE)

    def need_to_remove(self, parent: Inode, child: Inode) -> None:
        """Raises EACCES without WRITE on the parent, EPERM if its sticky bit forbids it."""
        self.need(parent, WRITE)
        if not may_remove(self.who, parent, child):
            raise fail(errno.EPERM, "the directory is sticky, and neither it nor the entry is yours")

    def open_grant(self, sealed: bytes, ino: int) -> Grant:
        """The grant inside. Raises EPERM if it is another inode's or session's."""
        try:
            grant = open_grant(self.config.keys.grant, sealed)
        except TicketRefused as error:
            # Not as it is: a client would take that for its own ticket, and renew it.
            raise fail(errno.EPERM, error.detail) from error
        if (grant.ino, grant.session) != (ino, self.session):
            raise fail(errno.EPERM, "the grant is for another file or session")
        return grant

    def take_grant(self, sealed: bytes, inode: Inode) -> None:
        """Raises the inode's token mark to the grant's, which makes all earlier holders' tokens void. To be
        called only for who may write: a commit under the mark's own token is not asked again.

        Raises EPERM as ``open_grant``, Conflict if its token is void already.
        """
        grant = self.open_grant(sealed, inode.ino)
        if grant.token < inode.token:
            raise Conflict("another session has had the lock since")
        if grant.token > inode.token:
            inode.token = grant.token
            self.mark(inode)

    # Changing

    def tick(self) -> int:
        """The time of a change: later than all before."""
        self._clock_moved = True
        return self.clock.tick()

    def new_inos(self, count: int) -> range:
        """Numbers that no inode ever had."""
        self._clock_moved = True
        return self.clock.new_inos(count)

    def add(self, inode: Inode) -> None:
        """A new inode."""
        self._inodes[inode.ino] = self._new[inode.ino] = inode

    def mark(self, inode: Inode) -> None:
        """The copy was changed and must be written."""
        if inode.ino not in self._new:
            self._changed[inode.ino] = inode

    def stamp(self, inode: Inode, now: int) -> None:
        """Something of the inode has changed."""
        inode.ctime = inode.change = self.stamped[inode.ino] = now
        self.mark(inode)

    def stamp_directory(self, directory: Inode, now: int) -> None:
        """An entry of the directory has changed."""
        directory.mtime = now
        self.stamp(directory, now)

    def unname(self, inode: Inode, now: int, hold: bool = False) -> None:
        """The inode has lost a name; a directory, which has one only, is gone from the tree."""
        if is_directory(inode):
            self.change_ways()
            inode.nlink = 0
        else:
            inode.nlink -= 1
        self.stamp(inode, now)
        if hold:
            self.hold([inode.ino])

    def hold(self, inos: list[int]) -> None:
        """The session keeps these inodes."""
        store.hold(self.connection, inos, self.session, self.clock.now_seconds())

    def change_ways(self) -> None:
        """To be called before a directory changes its mode, owner or place."""
        self._change.begin()

    def flush(self) -> None:
        """Writes the inodes that are new or changed."""
        if self._new:
            store.insert_inodes(self.connection, self._new.values())
            self._new.clear()
        if self._changed:
            store.update_inodes(self.connection, self._changed.values())
            self._changed.clear()

    def finish(self) -> None:
        """Writes what is left, as the last thing of the request."""
        self.flush()
        if self._clock_moved:
            self.clock.save(self.connection)
