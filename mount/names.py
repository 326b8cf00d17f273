"""Names and attributes: what the mount believes, and how it asks.

Under a lease (mount.lease) what is believed is true, and nobody asks twice. Without one, beliefs are for stat
and for walking and last ``BELIEF_SECONDS``; when it matters they are not enough: ``fresh`` walks (open,
change) ask the directory in one call for the whole path, and listings are always asked for.
"""

import errno
import stat
from collections.abc import Callable, Collection, Iterable, Sequence

from cache.folders import FolderCache
from cache.lifetimes import ForSeconds, Lifetime
from cache.metadata import Asked, MetadataCache
from clients.directory import DirectoryClient
from clients.session import Numbering
from wire.errors import fail
from wire.messages.common import Caller
from wire.messages.directory import (
    ROOT_INO,
    Attr,
    Create,
    Link,
    Listing,
    Op,
    Rename,
    Resolved,
    Result,
    Rmdir,
    Unlink,
)

BELIEF_SECONDS = 1.0

UNCERTAIN = frozenset({errno.EIO, errno.ETIMEDOUT})
"""What says nothing of whether a change was made: the directory's word was not heard, or it had none."""

RENAME_EXCHANGE = 2
"""<linux/fs.h>"""


class Names:
    """What a mount knows of names; thread-safe. Every change that the mount makes goes through ``change``."""

    def __init__(self, directory: DirectoryClient, lifetime: Lifetime | None = None) -> None:
        self._directory = directory
        self._lifetime = lifetime or ForSeconds(BELIEF_SECONDS)
        self._cache = MetadataCache(self._lifetime)
        self._folders = FolderCache()
        self.feed: Callable[[], int] = lambda: 0
        """At which feed this mount is, 0 for none."""
        self.on_given_up: Callable[[int], object] = lambda _feed: None
        """Called when a change that was begun at a feed is waited for no longer, and may be made later."""

    @property
    def is_exact(self) -> bool:
        """Whether what is believed is true."""
        return self._lifetime.is_exact

    @property
    def slack_seconds(self) -> float:
        """See Lifetime."""
        return self._lifetime.slack_seconds

    # Questions

    def walk(self, names: Sequence[bytes], caller: Caller | None, *, fresh: bool = False) -> list[Attr]:
        """The attributes of the root and of each name. Raises what the walk met: ENOENT …"""
        if not fresh:
            known = self.believed_way(names)
            if known is not None:
                return known
        return self.walk_now(names, caller).attrs

    def walk_now(
        self,
        names: Sequence[bytes],
        caller: Caller | None,
        *,
        content: bool = False,
        start: int = ROOT_INO,
    ) -> Resolved:
        """As a fresh ``walk``, from the inode ``start``; with ``content`` a file's manifest comes along."""
        asked = self._cache.ask()
        resolved = self._directory.resolve(start, list(names), caller, content=content)
        self._learn_walk(resolved, names, asked)
        if resolved.errno:
            raise fail(getattr(errno, resolved.errno, errno.EIO))
        return resolved

    def child(self, parent: int, name: bytes, caller: Caller | None, *, fresh: bool = False) -> Attr:
        """The attributes of a name in a directory. Raises ENOENT …"""
        if not fresh and (known := self.believed_child(parent, name)):
            return known
        asked = self._cache.ask()
        resolved = self._directory.resolve(parent, [name], caller)
        self._learn_walk(resolved, [name], asked)
        if resolved.errno:
            raise fail(getattr(errno, resolved.errno, errno.EIO))
        return resolved.attrs[1]

    def attr(self, ino: int, caller: Caller | None, *, fresh: bool = False) -> Attr:
        """The attributes of an inode. Raises ESTALE if it is gone."""
        if not fresh and (known := self._cache.get_attr(ino)):
            return known
        asked = self._cache.ask()
        attrs = self._directory.find([ino], caller)
        attr = attrs.attrs[0]
        if attr is None:
            raise fail(errno.ESTALE, f"inode {ino} is gone")
        self._learn([attr], asked, attrs.unpromised)
        return attr

    def page(self, ino: int, after: int, limit: int, change: int, caller: Caller | None) -> Listing:
        """A page of a directory, after the cookie ``after``; "unchanged" if it is as of ``change`` still."""
        asked = self._cache.ask()
        page = self._directory.list_page(ino, after, limit=limit, change=change, caller=caller)
        self._learn([page.attr], asked, page.unpromised)
        for entry in page.entries:
            if entry.attr.change:  # 0: without SEARCH a listing has names and types only
                self._learn([entry.attr], asked, page.unpromised)
                self._learn_name(page.attr, entry.name, entry.attr.ino, asked, page.unpromised)
        if self.is_exact and not page.unchanged:
            self._folders.put_page(ino, page.attr.change, after, page.entries, more=page.more)
        return page

    def believed_listing(self, ino: int) -> Listing | None:
        """All that is in a directory, if that is believed: of each name its inode and type (``attr.change``
        is 0). Whether somebody may list it is not looked at."""
        attr = self._cache.get_attr(ino) if self.is_exact else None
        entries = self._folders.get(ino, attr.change) if attr is not None else None
        return None if attr is None or entries is None else Listing(attr, 0, entries)

    def mark(self) -> float:
        """To be kept with what is asked now, for ``is_over``."""
        return self._lifetime.mark()

    def ask(self) -> Asked:
        """To be called before what is believed is looked at, for ``unheard_since``."""
        return self._cache.ask()

    def unheard_since(self, asked: Asked, inos: Iterable[int]) -> Asked | None:
        """See MetadataCache."""
        return self._cache.unheard_since(asked, inos)

    def is_over(self, mark: float) -> bool:
        """Whether what was asked then was believed for a while, and is no more."""
        return mark > 0 and not self._lifetime.seconds(mark)

    def is_as_of(self, ino: int, change: int) -> bool:
        """Whether the inode is believed to be as of ``change`` still."""
        known = self._cache.get_attr(ino)
        return known is not None and known.change == change

    def target(self, ino: int, caller: Caller | None) -> bytes:
        """Where a symlink points: it never changes, so it is asked for once."""
        target = self._cache.get_target(ino)
        if target is None:
            target = self._directory.target(ino, caller)
            self._cache.put_target(ino, target)
        return target

    # Beliefs

    def attr_seconds(self, attr: Attr) -> float:
        """How much longer these attributes are believed: a binding may tell them for no longer."""
        return self._cache.attr_seconds(attr.ino, attr.change)

    def name_seconds(self, parent: int, name: bytes, ino: int) -> float:
        """How much longer a name is believed to stand for ``ino`` (0: for nothing)."""
        return self._cache.entry_seconds(parent, name, ino)

    def believed(self, names: Sequence[bytes]) -> int:
        """The inode that a path is believed to name, 0 if nothing is."""
        known = self.believed_way(names)
        return known[-1].ino if known else 0

    def believed_attr(self, ino: int) -> Attr | None:
        """The attributes of an inode, if they are believed."""
        return self._cache.get_attr(ino)

    def believed_child(self, parent: int, name: bytes) -> Attr | None:
        """The attributes of a name in a directory, if both are believed."""
        ino = self._cache.get_entry(parent, name)
        return self._cache.get_attr(ino) if ino else None

    def is_believed_free(self, parent: int, name: bytes) -> bool:
        """Whether the directory is believed to have no such name."""
        return self._cache.is_free(parent, name)

    def believed_way(self, names: Sequence[bytes], start: int = ROOT_INO) -> list[Attr] | None:
        """The attributes of ``start`` and of each name from there, if all are believed."""
        return self._cache.get_way(start, names)

    # Changes

    def change(
        self, ops: Sequence[Op], caller: Caller | None, numbering: Numbering | None = None
    ) -> list[Result]:
        """Changes the directory, and believes what it answers at once."""
        feed = self.feed()
        for op in ops:
            for parent, name in _names_made(op):
                self._cache.will_name(parent, name)
        asked = self._cache.ask()
        try:
            mutated = self._directory.apply(list(ops), caller, numbering, feed)
        except OSError as error:
            if error.errno in UNCERTAIN:
                self.drop_all()
                self.on_given_up(feed)
            raise
        self._cache.doubt(mutated.unpromised)
        for op, result in zip(ops, mutated.results, strict=True):
            attrs = [attr for attr in (result.attr, *result.touched) if attr is not None]
            for attr in attrs:
                if attr.ino not in mutated.unpromised:  # not for a moment: others would tell the kernel
                    self._cache.changed(attr, asked)
            changes = {attr.ino: attr.change for attr in attrs}
            for parent, name, ino in _names_after(op, result):
                self._cache.entry_changed(parent, name, ino, changes.get(parent, 0))
            if self.is_exact and isinstance(op, Create) and result.attr is not None and stat.S_ISDIR(op.mode):
                self._cache.made_folder(result.attr)
        return mutated.results

    # Doubts

    def doubt(self, inos: Collection[int]) -> None:
        """Nothing that was told of these inodes holds any more, names in them included."""
        self._cache.doubt(inos)

    def forget(self, inos: Iterable[int], names: Iterable[tuple[int, bytes]]) -> None:
        """The kernel has forgotten these inodes, and these names in directories."""
        self._cache.forget(inos, names)

    def drop_all(self) -> None:
        """Believes nothing any more."""
        self._cache.drop_all()
        self._folders.clear()

    # Answers

    def _learn(self, attrs: Iterable[Attr], asked: Asked, unpromised: Collection[int]) -> None:
        for attr in attrs:
            if attr.ino not in unpromised:
                self._cache.put_attr(attr, asked)

    def _learn_name(
        self, parent: Attr, name: bytes, ino: int, asked: Asked, unpromised: Collection[int]
    ) -> None:
        if parent.ino not in unpromised:
            self._cache.put_entry(parent, name, ino, asked)

    def _learn_walk(self, resolved: Resolved, names: Sequence[bytes], asked: Asked) -> None:
        attrs, unpromised = resolved.attrs, resolved.unpromised
        self._learn(attrs, asked, unpromised)
        for parent, name, attr in zip(attrs, names, attrs[1:], strict=False):
            self._learn_name(parent, name, attr.ino, asked, unpromised)
        if resolved.errno == "ENOENT" and attrs:
            self._learn_name(attrs[-1], names[len(attrs) - 1], 0, asked, unpromised)


def _names_made(op: Op) -> list[tuple[int, bytes]]:
    """Which names there may be once an operation was sent: parent, name."""
    match op:
        case Create() | Link():
            return [(op.parent, op.name)]
        case Rename():
            return [(op.parent, op.name), (op.new_parent, op.new_name)]
    return []


def _names_after(op: Op, result: Result) -> list[tuple[int, bytes, int]]:
    """Which names an operation has made or taken away: parent, name, and what it stands for now (0: for
    nothing)."""
    ino = 0 if result.attr is None else result.attr.ino
    match op:
        case Create() | Link():
            return [(op.parent, op.name, ino)]
        case Unlink() | Rmdir():
            return [(op.parent, op.name, 0)]
        case Rename():
            folders = (op.parent, op.new_parent)
            other = next((attr.ino for attr in result.touched if attr.ino not in folders), 0)
            left = other if op.flags == RENAME_EXCHANGE else 0
            return [(op.parent, op.name, left), (op.new_parent, op.new_name, ino)]
    return []
