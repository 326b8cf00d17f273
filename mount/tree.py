"""The tree as the Vfs shows it: names and attributes, with what is open and dirty here on top."""

import errno
import logging
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cache.copies import CopyStore
from mount.following import Follower
from mount.names import BELIEF_SECONDS
from mount.node_table import NodeTable
from mount.nodes import Node
from mount.pending import PendingAttrs
from mount.proxy import Proxy
from mount.stream import Stream
from wire import acl
from wire.errors import Unavailable, fail
from wire.messages.common import Caller
from wire.messages.directory import (
    ROOT_INO,
    Attr,
    Create,
    CreateNameless,
    Drop,
    Entry,
    Link,
    Listing,
    Op,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Statfs,
    Unlink,
)
from wire.names import check_name
from wire.permissions import READ, SEARCH, SET_IDS, is_owner, may

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Changes:
    """What setattr shall set; None stays. Times in ns; the ``_now`` ones take the directory's clock."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    atime_now: bool = False
    mtime_now: bool = False

    @property
    def has_times(self) -> bool:
        """Whether it sets any."""
        return self.atime_now or self.mtime_now or (self.atime, self.mtime) != (None, None)


class Tree:
    """Names, attributes and extended attributes of a mounted realm. Thread-safe."""

    def __init__(self, proxy: Proxy, copies: CopyStore) -> None:
        self._who = proxy.identity
        self._proxy = proxy
        self._copies = copies
        self._names = proxy.names
        self._calls = proxy.calls
        self._table = NodeTable(copies, proxy.slate, proxy.calls, proxy.identity)
        self._follower = Follower(proxy)

    # Names

    def walk(self, names: Sequence[bytes], who: Caller | None, *, fresh: bool = False) -> Attr:
        """The attributes of what a path names. ``fresh`` asks the directory, in one call."""
        known = self.known_way(names, who)
        return self._shown((known or self._names.walk(names, who, fresh=fresh))[-1])

    def known_way(
        self, names: Sequence[bytes], who: Caller | None, start: int = ROOT_INO
    ) -> list[Attr] | None:
        """The attributes of ``start`` and of each name from there, if all are known without asking, and
        ``who`` may take that way."""
        attrs = self._names.believed_way(names, start) if self._names.is_exact else None
        if attrs is None:
            return None
        identity = self._who(who)
        return attrs if all(may(identity, folder, SEARCH) for folder in attrs[:-1]) else None

    def lookup(self, parent: int, name: bytes, who: Caller | None) -> Attr:
        """The attributes of a name in a directory, now: who asks believes the answer for a while."""
        if self._names.is_exact and self._may_search(parent, who):
            if self._names.is_believed_free(parent, name):
                raise fail(errno.ENOENT)
            return self._shown(self._names.child(parent, name, who))
        return self._shown(self._names.child(parent, name, who, fresh=True))

    def may_search(self, folder: Attr) -> bool:
        """Whether the session's user may walk through a directory."""
        return may(self._who(None), folder, SEARCH)

    def _may_search(self, folder: int, who: Caller | None) -> bool:
        """Whether a believed name may be told; the directory has the last word if not."""
        attr = self._names.believed_attr(folder)
        return attr is not None and may(self._who(who), attr, SEARCH)

    def name_seconds(self, parent: int, name: bytes, ino: int) -> float:
        """For how long it may be believed elsewhere that a name stands for ``ino`` (0: for nothing). 0.0
        unless that is true as long."""
        return self._names.name_seconds(parent, name, ino) if self._names.is_exact else 0.0

    def stream(self, ino: int, who: Caller | None) -> Stream:
        """A way through a directory, to be begun."""
        return Stream(self._names, self._shown, lambda: self._listing_of_now(ino, who), ino, who)

    def _listing_of_now(self, ino: int, who: Caller | None) -> Listing | None:
        """All of a directory, if it is known without asking and ``who`` may list it."""
        listing = self._names.believed_listing(ino)
        return listing if listing is not None and may(self._who(who), listing.attr, READ) else None

    def is_listing_of_now(self, ino: int, change: int, who: Caller | None) -> bool:
        """Whether it is known without asking that a directory is as of ``change`` still, and ``who`` may list
        it."""
        attr = self._names.believed_attr(ino) if self._names.is_exact else None
        return attr is not None and attr.change == change and may(self._who(who), attr, READ)

    def readdir(self, ino: int, who: Caller | None) -> Iterator[Entry]:
        """All entries of a directory as it is now, as a ``Stream`` tells them."""
        stream = self.stream(ino, who)
        stream.begin()
        while (entry := stream.peek()) is not None:
            stream.advance()
            yield entry

    def mkdir(self, parent: int, name: bytes, mode: int, who: Caller | None, umask: int = 0) -> Attr:
        """A new directory. ``umask`` counts unless the parent has a default ACL."""
        return self._make(Create(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), umask=umask), who)

    def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, who: Caller | None, umask: int = 0
    ) -> Attr:
        """A new file of any type but directory and symlink; ``mode`` says which. ``umask`` as for mkdir."""
        return self._make(Create(parent, name, mode, rdev, umask=umask), who)

    def symlink(self, parent: int, name: bytes, target: bytes, who: Caller | None) -> Attr:
        """A new symbolic link."""
        return self._make(Create(parent, name, stat.S_IFLNK | 0o777, target=target), who)

    def link(self, ino: int, parent: int, name: bytes, who: Caller | None) -> Attr:
        """Another name for an inode."""
        check_name(name)
        return self._changed(Link(ino, parent, name), who)

    def _make(self, op: Create, who: Caller | None) -> Attr:
        check_name(op.name)
        return self._changed(op, who)

    def _changed(
        self, op: Create | CreateNameless | Link | SetAttr | SetXattr | RemoveXattr, who: Caller | None
    ) -> Attr:
        attr, _ = self._change(op, who)
        assert attr is not None, "these are answered with attributes"
        return self._shown(attr)

    def _change(self, op: Op, who: Caller | None) -> tuple[Attr | None, list[Attr]]:
        result = self._names.change([op], who, self._calls.numbering(op))[0]
        for attr in (result.attr, *result.touched):
            node = None if attr is None else self._table.peek(attr.ino)
            if node is not None and attr is not None:
                node.accept(attr)
        return result.attr, result.touched

    def unlink(self, parent: int, name: bytes, who: Caller | None) -> None:
        """Takes a name away. An inode that is open here lives on until it is closed."""
        is_open = self._is_open(parent, name, who)
        attr, _ = self._change(Unlink(parent, name, hold=is_open), who)
        if attr is not None and attr.nlink == 0:
            self._forget(attr.ino, is_held=is_open)

    def rmdir(self, parent: int, name: bytes, who: Caller | None) -> None:
        """Removes an empty directory."""
        self._change(Rmdir(parent, name), who)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, who: Caller | None
    ) -> None:
        """rename(2) with the flags of renameat2(2), all at once."""
        check_name(new_name)
        hold = self._is_open(new_parent, new_name, who)
        _, touched = self._change(Rename(parent, name, new_parent, new_name, flags, hold), who)
        for other in touched:
            if other.nlink == 0:
                self._forget(other.ino, is_held=hold)

    def readlink(self, ino: int, who: Caller | None) -> bytes:
        """Where a symlink points."""
        return self._names.target(ino, who)

    def _is_open(self, parent: int, name: bytes, who: Caller | None) -> bool:
        try:
            attr = self._names.child(parent, name, who)
            return attr.nlink == 1 and self._has_open(attr.ino)
        except OSError:
            return False  # the change itself will say what is wrong

    def _has_open(self, ino: int) -> bool:
        return self._table.peek(ino) is not None

    def _forget(self, ino: int, *, is_held: bool) -> None:
        """Of what has no name any more. If it is open, its last close does so; one that came while the name
        was taken away did not know of it."""
        if self._table.peek(ino) is not None:
            return
        try:
            self._copies.drop(ino)
        except ValueError:
            log.warning("inode %d has content that was never committed; its copy is kept", ino)
        if is_held:
            self._let_go_of(ino)

    def _let_go_of(self, ino: int) -> None:
        """The directory need not hold an inode without a name any longer."""
        try:
            self._proxy.directory.mutate([Drop([ino])])
        except OSError as error:
            log.info("inode %d is left to the directory's own clearing: %s", ino, error)

    # Attributes

    def getattr(self, ino: int, who: Caller | None) -> Attr:
        """The attributes as this mount shows them."""
        node = self._table.peek(ino)
        if node is not None and node.is_ours:
            return self._our_attr(node, who)
        return self._shown(self._names.attr(ino, who))

    def _our_attr(self, node: Node, who: Caller | None) -> Attr:
        """Of an inode whose content is this mount's own now. Others may still have changed its mode, names or
        times; but what a program has written it shall see also while the directory is away, and when no way
        leads there any more."""
        if not self._names.is_exact:
            return node.shown_attr()
        try:
            return self._shown(self._names.attr(node.ino, who))
        except OSError as error:
            if not isinstance(error, Unavailable) and error.errno != errno.ESTALE:
                raise
            return node.shown_attr()

    def attr_seconds(self, attr: Attr) -> float:
        """For how long attributes that this mount has shown may be believed elsewhere."""
        node = self._table.peek(attr.ino)
        seconds = self._names.attr_seconds(attr)
        if node is None or not (node.is_ours or node.copy.is_past_us):
            return seconds
        return min(BELIEF_SECONDS, seconds) if self._names.is_exact else BELIEF_SECONDS

    def fresh_attr(self, ino: int, who: Caller | None) -> Attr:
        """The attributes as the directory says them now. Raises ESTALE if the inode is gone."""
        return self._shown(self._names.attr(ino, who, fresh=not self._names.is_exact))

    def _set_attributes(self, ino: int, changes: Changes, who: Caller | None) -> Attr:
        """Sets what ``changes`` names but the size."""
        op = SetAttr(
            ino,
            changes.mode,
            changes.uid,
            changes.gid,
            changes.atime,
            changes.mtime,
            changes.atime_now,
            changes.mtime_now,
        )
        if op == SetAttr(ino):
            return self.getattr(ino, who)
        return self._changed(op, who)

    def _set_with_commit(self, node: Node, changes: Changes, who: Caller | None) -> bool:
        """Mode and times of dirty content go with its commit, which would overrule them otherwise, and
        cost no call of their own. An owner that does not change costs none either."""
        with node.guard:
            node.rescan()
            is_to_come = node.lock is not None or node.is_shared
            if not is_to_come or not (node.copy.dirty or node.pending) or who != node.caller:
                return False  # the commit is made in the name of who opened for writing
            if not is_owner(self._who(who), node.attr):
                return False
            if changes.mode is not None and (node.attr.size or changes.mode & SET_IDS):
                return False  # it holds at once; but in a file that is being made there is nothing yet
            if changes.uid not in (None, node.attr.uid) or changes.gid not in (None, node.attr.gid):
                return False
            now = time.time_ns()
            mode = atime = mtime = None
            if changes.mode is not None:
                mode = stat.S_IFMT(node.attr.mode) | stat.S_IMODE(changes.mode)
            if changes.atime is not None or changes.atime_now:
                atime = now if changes.atime is None else changes.atime
            if changes.mtime is not None or changes.mtime_now:
                mtime = now if changes.mtime is None else changes.mtime
            node.pending = node.pending.overruled(PendingAttrs(mode, atime, mtime))
            node.set_at = now
            return True

    def target(self, names: Sequence[bytes], who: Caller | None) -> int:
        """The inode that a change of a path is for. What this mount has open for writing is believed to be
        what is meant (a descriptor's change comes as a path's); else the directory is asked."""
        believed = self._names.walk(names, who)[-1].ino
        node = self._table.peek(believed)
        if node is not None and node.is_ours:
            return believed
        return self.walk(names, who, fresh=True).ino

    def access(self, ino: int, wanted: int, who: Caller | None) -> None:
        """Raises EACCES unless ``who`` has all wanted bits (R 4, W 2, X 1)."""
        if not may(self._who(who), self.getattr(ino, who), wanted):
            raise fail(errno.EACCES)

    def _shown(self, attr: Attr) -> Attr:
        node = self._table.peek(attr.ino)
        if node is None:
            return attr
        self._follower.follow_early(node, attr)
        return node.shown_attr()

    # Extended attributes

    def getxattr(self, ino: int, name: bytes, who: Caller | None) -> bytes:
        """The value. Raises ENODATA."""
        _check_xattr_name(name)
        attr = self.getattr(ino, who)
        if name == acl.ACCESS:
            if not attr.acl:
                raise fail(errno.ENODATA)
            return acl.build(attr.mode, attr.acl)
        if name.startswith(b"user.") and not may(self._who(who), attr, READ):
            raise fail(errno.EACCES)
        values = self._xattrs(attr, who)
        if name not in values:
            raise fail(errno.ENODATA)
        value = values[name]
        if value is None:
            raise fail(errno.EACCES)
        return value

    def listxattr(self, ino: int, who: Caller | None) -> list[bytes]:
        """The names."""
        attr = self.getattr(ino, who)
        found = self._xattrs(attr, who)
        return [acl.ACCESS, *found] if attr.acl else list(found)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int, who: Caller | None) -> Attr:
        """setxattr(2)."""
        _check_xattr_name(name)
        return self._changed(SetXattr(ino, name, value, flags), who)

    def removexattr(self, ino: int, name: bytes, who: Caller | None) -> Attr:
        """removexattr(2)."""
        _check_xattr_name(name)
        return self._changed(RemoveXattr(ino, name), who)

    def _xattrs(self, attr: Attr, who: Caller | None) -> dict[bytes, bytes | None]:
        # The kernel asks for security.capability before every write, and ls for ACLs of every file.
        if not attr.has_xattrs:
            return {}
        return self._proxy.directory.xattrs(attr.ino, who)

    def statfs(self) -> Statfs:
        """Space and inodes of the realm."""
        return self._proxy.directory.statfs()


def _check_xattr_name(name: bytes) -> None:
    """What is never there costs no call."""
    if not name.startswith((b"user.", b"trusted.", b"security.")) and name not in acl.NAMES:
        raise fail(errno.EOPNOTSUPP)
    if name.endswith(b".") and name.count(b".") == 1:
        raise fail(errno.EINVAL, "an attribute has a name besides its name space")
