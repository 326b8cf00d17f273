"""Names and attributes: what the mount believes, for how long, and how it asks.

Believed for ``BELIEF_SECONDS``: attributes and names, for stat and for walking. Never believed when it
matters: ``fresh`` walks (open, change) ask the directory in one call for the whole path, and listings
are always asked for.
"""

import errno
from collections.abc import Sequence

from cache.metadata import MetadataCache
from clients.directory import DirectoryClient
from clients.session import Numbering
from wire.errors import fail
from wire.messages.common import Caller
from wire.messages.directory import ROOT_INO, Attr, Listing, Op, Resolved, Result

BELIEF_SECONDS = 1.0


class Names:
    """What the Vfs knows of names; thread-safe."""

    def __init__(self, directory: DirectoryClient) -> None:
        self._directory = directory
        self._cache = MetadataCache()

    def walk(self, names: Sequence[bytes], caller: Caller | None, *, fresh: bool = False) -> list[Attr]:
        """The attributes of the root and of each name. Raises what the walk met: ENOENT …"""
        if not fresh:
            known = self._walk_cached(names)
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
        resolved = self._directory.resolve(start, list(names), caller, content=content)
        for attr in resolved.attrs:
            self._cache.put_attr(attr, BELIEF_SECONDS)
        for parent, name, attr in zip(resolved.attrs, names, resolved.attrs[1:], strict=False):
            self._cache.put_entry(parent, name, attr.ino, BELIEF_SECONDS)
        if resolved.errno:
            met = len(resolved.attrs)
            if 0 < met <= len(names):
                self._cache.drop_entry(resolved.attrs[-1].ino, names[met - 1])
            raise fail(getattr(errno, resolved.errno, errno.EIO))
        return resolved

    def attr_seconds(self, ino: int) -> float:
        """How much longer the attributes are believed: a binding may tell them for no longer."""
        return self._cache.attr_seconds(ino)

    def believed(self, names: Sequence[bytes]) -> int:
        """The inode that a path is believed to name, 0 if nothing is."""
        known = self._walk_cached(names)
        return known[-1].ino if known else 0

    def _walk_cached(self, names: Sequence[bytes]) -> list[Attr] | None:
        attr = self._cache.get_attr(ROOT_INO)
        if attr is None:
            return None
        attrs = [attr]
        for name in names:
            ino = self._cache.get_entry(attr.ino, name)
            if ino is None:
                return None
            attr = self._cache.get_attr(ino)
            if attr is None:
                return None
            attrs.append(attr)
        return attrs

    def believed_child(self, parent: int, name: bytes) -> Attr | None:
        """The attributes of a name in a directory, if both are believed."""
        ino = self._cache.get_entry(parent, name)
        return None if ino is None else self._cache.get_attr(ino)

    def child(self, parent: int, name: bytes, caller: Caller | None, *, fresh: bool = False) -> Attr:
        """The attributes of a name in a directory. Raises ENOENT …"""
        if not fresh and (known := self.believed_child(parent, name)):
            return known
        resolved = self._directory.resolve(parent, [name], caller)
        for attr in resolved.attrs:
            self._cache.put_attr(attr, BELIEF_SECONDS)
        if resolved.errno:
            raise fail(getattr(errno, resolved.errno, errno.EIO))
        self._cache.put_entry(resolved.attrs[0], name, resolved.attrs[1].ino, BELIEF_SECONDS)
        return resolved.attrs[1]

    def attr(self, ino: int, caller: Caller | None, *, fresh: bool = False) -> Attr:
        """The attributes of an inode. Raises ESTALE if it is gone."""
        if not fresh and (known := self._cache.get_attr(ino)):
            return known
        attr = self._directory.attrs([ino], caller)[0]
        if attr is None:
            raise fail(errno.ESTALE, f"inode {ino} is gone")
        self._cache.put_attr(attr, BELIEF_SECONDS)
        return attr

    def page(self, ino: int, after: int, limit: int, change: int, caller: Caller | None) -> Listing:
        """A page of a directory, after the cookie ``after``; "unchanged" if it is as of ``change`` still."""
        page = self._directory.list_page(ino, after, limit=limit, change=change, caller=caller)
        self._cache.put_attr(page.attr, BELIEF_SECONDS)
        for entry in page.entries:
            if entry.attr.change:  # 0: without SEARCH a listing has names and types only
                self._cache.put_attr(entry.attr, BELIEF_SECONDS)
                self._cache.put_entry(page.attr, entry.name, entry.attr.ino, BELIEF_SECONDS)
        return page

    def is_as_of(self, ino: int, change: int) -> bool:
        """Whether the inode is believed to be as of ``change`` still."""
        known = self._cache.get_attr(ino)
        return known is not None and known.change == change

    def change(
        self, ops: Sequence[Op], caller: Caller | None, numbering: Numbering | None = None
    ) -> list[Result]:
        """Changes the directory, and believes what it answers at once."""
        results = self._directory.mutate(list(ops), caller, numbering)
        for result in results:
            for attr in (result.attr, *result.touched):
                if attr is not None:
                    self._cache.put_attr(attr, BELIEF_SECONDS)
        return results

    def learn(self, attr: Attr) -> None:
        """Attributes that came another way (a commit's answer)."""
        self._cache.put_attr(attr, BELIEF_SECONDS)

    def add(self, parent: Attr, name: bytes, ino: int) -> None:
        """A name that this mount has made; ``parent`` is as it was answered with the change."""
        self._cache.put_entry(parent, name, ino, BELIEF_SECONDS)

    def remove(self, parent: int, name: bytes) -> None:
        """A name that this mount has taken away."""
        self._cache.drop_entry(parent, name)

    def target(self, ino: int, caller: Caller | None) -> bytes:
        """Where a symlink points: it never changes, so it is asked for once."""
        target = self._cache.get_target(ino)
        if target is None:
            target = self._directory.target(ino, caller)
            self._cache.put_target(ino, target)
        return target

    def drop_all(self) -> None:
        """Believes nothing any more."""
        self._cache.drop_all()
