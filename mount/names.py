"""Names and attributes: what the mount believes, for how long, and how it asks.

Believed for ``BELIEF_SECONDS``: attributes and names, for stat and for walking. Never believed when it
matters: ``fresh`` walks (open, change) ask the directory in one call for the whole path, and listings
are always asked for.
"""

import errno
from collections.abc import Iterable, Iterator, Sequence

from cache.metadata import MetadataCache
from clients.directory import DirectoryClient
from clients.session import Numbering
from wire.errors import fail
from wire.messages.common import Caller
from wire.messages.directory import ROOT_INO, Attr, Entry, Listing, Op, Resolved, Result

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
        asked = self._cache.now()
        resolved = self._directory.resolve(start, list(names), caller, content=content)
        for attr in resolved.attrs:
            self._cache.put_attr(attr, BELIEF_SECONDS, asked)
        for parent, name, attr in zip(resolved.attrs, names, resolved.attrs[1:], strict=False):
            self._cache.put_entry(parent, name, attr.ino, BELIEF_SECONDS, asked)
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
        asked = self._cache.now()
        resolved = self._directory.resolve(parent, [name], caller)
        for attr in resolved.attrs:
            self._cache.put_attr(attr, BELIEF_SECONDS, asked)
        if resolved.errno:
            raise fail(getattr(errno, resolved.errno, errno.EIO))
        self._cache.put_entry(resolved.attrs[0], name, resolved.attrs[1].ino, BELIEF_SECONDS, asked)
        return resolved.attrs[1]

    def attr(self, ino: int, caller: Caller | None, *, fresh: bool = False) -> Attr:
        """The attributes of an inode. Raises ESTALE if it is gone."""
        if not fresh and (known := self._cache.get_attr(ino)):
            return known
        asked = self._cache.now()
        attr = self._directory.attrs([ino], caller)[0]
        if attr is None:
            raise fail(errno.ESTALE, f"inode {ino} is gone")
        self._cache.put_attr(attr, BELIEF_SECONDS, asked)
        return attr

    def entries(self, ino: int, caller: Caller | None) -> Iterator[Entry]:
        """All entries of a directory with their attributes, page by page, without "." and "..". Whoever takes
        them may take his time: of a page that is not believed any more, the rest is asked for again."""
        after = b""
        more = True
        while more:
            asked = self._cache.now()
            page = self._directory.list_page(ino, after, caller=caller)
            self._believe(page, asked)
            believed_until = self._cache.now() + BELIEF_SECONDS
            more = page.more
            for entry in page.entries:
                yield entry
                after = entry.name
                if self._cache.now() >= believed_until:
                    more = more or entry is not page.entries[-1]
                    break

    def _believe(self, page: Listing, asked: float) -> None:
        self._cache.put_attr(page.attr, BELIEF_SECONDS, asked)
        for entry in page.entries:
            if entry.attr.change:  # 0: without SEARCH a listing has names and types only
                self._cache.put_attr(entry.attr, BELIEF_SECONDS, asked)
                self._cache.put_entry(page.attr, entry.name, entry.attr.ino, BELIEF_SECONDS, asked)

    def change(
        self, ops: Sequence[Op], caller: Caller | None, numbering: Numbering | None = None
    ) -> list[Result]:
        """Changes the directory, and believes what it answers at once."""
        asked = self._cache.now()
        results = self._directory.mutate(list(ops), caller, numbering)
        for result in results:
            for attr in (result.attr, *result.touched):
                if attr is not None:
                    self._cache.put_attr(attr, BELIEF_SECONDS, asked)
        return results

    def learn(self, attr: Attr) -> None:
        """Attributes that came another way (a commit's answer)."""
        self._cache.put_attr(attr, BELIEF_SECONDS)

    def add(self, parent: Attr, name: bytes, ino: int) -> None:
        """A name that this mount has made; ``parent`` is as it was answered with the change. Not
        believed if that is not either: it came too late."""
        if self._cache.get_attr(parent.ino) is not None:
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

    def forget(self, inos: Iterable[int], names: Iterable[tuple[int, bytes]]) -> None:
        """What nobody here knows any more, and so will not ask for: inodes, and names in directories."""
        self._cache.forget(inos, names)

    def drop_all(self) -> None:
        """Believes nothing any more."""
        self._cache.drop_all()
