"""What is in directories: whole listings, so that a directory that is believed is listed without a question.

A listing is of one ``change`` of its directory, which every change of a name raises. So whoever believes the
directory's attributes (cache.metadata) need only compare: what is here is true if it is of that change. What
is not of it is never shown, and needs not be taken away. In memory only.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from wire.messages.directory import Entry

ENTRIES_MAX = 50_000
"""In all listings together: some 15 MB. One may have a quarter of it."""


class _Folder(msgspec.Struct):
    """Its names up to ``last`` (a cookie), or all of them."""

    change: int
    entries: list[Entry]
    last: int = 0
    is_whole: bool = False


class FolderCache:
    """Thread-safe. What was used longest ago goes first."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._lock = threading.Lock()
        self._folders: OrderedDict[int, _Folder] = OrderedDict()
        self._count = 0

    def put_page(self, ino: int, change: int, after: int, entries: Sequence[Entry], *, more: bool) -> None:
        """What came after the cookie ``after`` when the directory was as of ``change``. It is kept if it
        begins the listing, or goes on where that has ended."""
        with self._lock:
            folder = self._folders.get(ino)
            if after == 0:
                if folder is not None and folder.change == change and folder.is_whole:
                    return
                self._drop(ino)
                folder = self._folders[ino] = _Folder(change, [])
            elif folder is None or folder.is_whole or (folder.change, folder.last) != (change, after):
                return
            folder.entries += map(_name_only, entries)
            folder.last = entries[-1].cookie if entries else after
            folder.is_whole = not more
            self._count += len(entries)
            if len(folder.entries) > self._entries_max // 4:
                self._drop(ino)
            while self._count > self._entries_max:
                self._drop(next(iter(self._folders)))

    def get(self, ino: int, change: int) -> list[Entry] | None:
        """All that is in a directory as of ``change``, if it is here: names, inodes and types only, as where
        ``attr.change`` is 0 (mount.stream). Not to be changed."""
        with self._lock:
            folder = self._folders.get(ino)
            if folder is None or not folder.is_whole or folder.change != change:
                return None
            self._folders.move_to_end(ino)
            return folder.entries

    def clear(self) -> None:
        """Nothing is here any more."""
        with self._lock:
            self._folders.clear()
            self._count = 0

    def _drop(self, ino: int) -> None:
        folder = self._folders.pop(ino, None)
        if folder is not None:
            self._count -= len(folder.entries)


def _name_only(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, attr=msgspec.structs.replace(entry.attr, change=0))
