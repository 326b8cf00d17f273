"""What a mount believes of inodes and names. In memory only.

For how long is not decided here: a ``Lifetime`` marks each question, and says of a mark whether answers to
such questions still hold. What is *doubted* holds no more, whatever its mark.

What is heard of an inode while an answer is on its way may be newer than the answer (cache.heard). So a
question notes which doubts and changes were known when it was asked (``Asked``).

Invariant: what is believed of an inode was answered to a question that was asked after all doubts of it that
are known, and no older than the last change of this mount that is known.

Attributes, names and symlinks' targets are bounded, each by itself; what was used longest ago goes first.
"""

import threading
from collections.abc import Iterable
from typing import NamedTuple

from cache.bounded import Bounded
from cache.heard import EVENTS_MAX, Heard
from cache.known_names import KnownNames, Name
from cache.lifetimes import Lifetime
from cache.new_folders import NewFolders
from wire.messages.directory import Attr

ITEMS_MAX = 200_000
KEPT = 20_000
"""So many are kept though the kernel forgets them: it also does so when names must be looked up anew."""


class Asked(NamedTuple):
    """A question: what had been heard when it was asked, and its mark."""

    heard: int
    mark: float


class _Known(NamedTuple):
    attr: Attr
    mark: float


class MetadataCache:
    """Thread-safe."""

    def __init__(
        self,
        lifetime: Lifetime,
        items_max: int = ITEMS_MAX,
        events_max: int = EVENTS_MAX,
        kept: int = KEPT,
    ) -> None:
        self._lifetime = lifetime
        self._kept = kept
        self._lock = threading.Lock()
        self._heard = Heard(events_max)
        self._attrs: Bounded[int, _Known] = Bounded(items_max)
        self._names = KnownNames(items_max)
        self._targets: Bounded[int, bytes] = Bounded(items_max)
        self._new_folders = NewFolders()

    def __len__(self) -> int:
        return len(self._attrs) + len(self._targets) + len(self._names)

    def ask(self) -> Asked:
        """To be called before a question is sent."""
        return Asked(self._heard.number, self._lifetime.mark())

    # Answers

    def put_attr(self, attr: Attr, asked: Asked) -> None:
        """The answer to a question."""
        with self._lock:
            self._sweep()
            known = self._attrs.get(attr.ino)
            is_newer = known is None or attr.change >= known.attr.change
            if self._heard.nothing_since(attr.ino, asked.heard) and is_newer:
                self._attrs.put(attr.ino, _Known(attr, asked.mark))

    def put_entry(self, parent: Attr, name: bytes, ino: int, asked: Asked) -> None:
        """The answer to a question: ``name`` stands for ``ino`` (0: for nothing) in a directory that then had
        the attributes ``parent``."""
        with self._lock:
            known = self._attrs.get(parent.ino)
            is_newer = known is None or parent.change >= known.attr.change
            if self._heard.nothing_since(parent.ino, asked.heard) and is_newer:
                self._names.put(parent.ino, name, Name(ino, asked.mark))

    def changed(self, attr: Attr, asked: Asked) -> None:
        """What the directory has answered to a change that this mount has made. Questions that were asked
        before this may have been answered before the change."""
        with self._lock:
            if self._heard.is_doubted_since(attr.ino, asked.heard):
                self._doubt(attr.ino)
            elif self._heard.change(attr.ino, attr.change):
                self._attrs.put(attr.ino, _Known(attr, asked.mark))

    def entry_changed(self, parent: int, name: bytes, ino: int, change: int) -> None:
        """By a change that this mount has made, ``name`` stands for ``ino`` (0: for nothing); the directory
        was then as of ``change``. To be called after ``changed``. Not believed if the directory is doubted,
        or was changed again, since: nobody knows what became of the name."""
        with self._lock:
            if ino:
                self._new_folders.put(parent, name)
            known = self._attrs.get(parent)
            if known is not None and known.attr.change == change:
                self._names.put(parent, name, Name(ino, known.mark))
            else:
                self._names.drop(parent, name)

    def made_folder(self, attr: Attr) -> None:
        """This mount has made a directory, which had these attributes. To be called after ``changed``. Only
        what is believed of a state is known to hold until something is heard of it."""
        with self._lock:
            known = self._attrs.get(attr.ino)
            if known is not None and known.attr.change == attr.change:
                self._new_folders.begin(attr.ino)

    def will_name(self, parent: int, name: bytes) -> None:
        """A change is about to be sent that makes this name."""
        with self._lock:
            self._new_folders.put(parent, name)

    def put_target(self, ino: int, target: bytes) -> None:
        """Where a symlink points: that never changes."""
        with self._lock:
            self._targets.put(ino, target)

    # Doubts

    def doubt(self, inos: Iterable[int]) -> None:
        """Nothing of these inodes holds any more, nor what was asked about them until now."""
        with self._lock:
            for ino in inos:
                self._doubt(ino)

    def drop_entry(self, parent: int, name: bytes) -> None:
        """The name is not believed any more."""
        with self._lock:
            self._names.drop(parent, name)

    def drop_all(self) -> None:
        """Nothing is believed any more, nor what was asked until now."""
        with self._lock:
            self._heard.doubt_all()
            self._attrs.clear()
            self._names.clear()
            self._targets.clear()
            self._new_folders.clear()

    def forget(self, inos: Iterable[int], names: Iterable[tuple[int, bytes]]) -> None:
        """The kernel has forgotten these inodes, and these names in directories. Unless there are few, that
        is for lack of memory. It is no doubt: answers on their way may be believed."""
        with self._lock:
            if len(self) <= self._kept:
                return
            for ino in inos:
                self._attrs.drop(ino)
                self._targets.drop(ino)
                self._names.drop_folder(ino)
                self._new_folders.drop(ino)
            for parent, name in names:
                self._names.drop(parent, name)

    # What is believed

    def unheard_since(self, asked: Asked, inos: Iterable[int]) -> Asked | None:
        """To be asked instead of ``asked`` the next time, if all that was believed of these inodes then (and
        names in them) is true now, whether it is still remembered or not: nothing has been heard of them
        since. None if that is not known. Of use where what is believed is exact."""
        mark = self._lifetime.mark()
        if not mark or mark != asked.mark:
            return None
        now = Asked(self._heard.number, mark)  # in this order: a lease that goes on later says nothing of it
        if now.heard == asked.heard:
            return now
        with self._lock:
            return now if all(self._heard.nothing_since(ino, asked.heard) for ino in inos) else None

    def get_attr(self, ino: int) -> Attr | None:
        """The attributes, if they are believed."""
        with self._lock:
            known = self._attrs.get(ino)
        return known.attr if known is not None and self._lifetime.seconds(known.mark) > 0.0 else None

    def attr_seconds(self, ino: int, change: int) -> float:
        """For how much longer attributes as of ``change`` are believed, 0 if they are not."""
        with self._lock:
            known = self._attrs.get(ino)
        if known is None or known.attr.change != change:
            return 0.0
        return self._lifetime.seconds(known.mark)

    def get_entry(self, parent: int, name: bytes) -> int | None:
        """The inode of a name (0: the name is known to be free), if it is believed."""
        with self._lock:
            found = self._names.get(parent, name)
        return found.ino if found is not None and self._lifetime.seconds(found.mark) > 0.0 else None

    def is_free(self, parent: int, name: bytes) -> bool:
        """Whether the directory is believed to have no such name: because it was said, or because this mount
        has made the directory and nothing of that name."""
        with self._lock:
            known, found = self._attrs.get(parent), self._names.get(parent, name)
            if found is None and known is not None and self._new_folders.lacks(parent, name):
                found = Name(0, known.mark)
                self._names.put(parent, name, found)
        return found is not None and not found.ino and self._lifetime.seconds(found.mark) > 0.0

    def entry_seconds(self, parent: int, name: bytes, ino: int) -> float:
        """For how much longer the name is believed to stand for ``ino``, 0 if it is not."""
        with self._lock:
            found = self._names.get(parent, name)
        return self._lifetime.seconds(found.mark) if found is not None and found.ino == ino else 0.0

    def get_way(self, start: int, names: Iterable[bytes]) -> list[Attr] | None:
        """The attributes of ``start`` and of each name from there, if all that is believed."""
        with self._lock:
            known = self._attrs.get(start)
            found = [] if known is None else [known]
            marks = set() if known is None else {known.mark}
            for name in names:
                entry = None if known is None else self._names.get(known.attr.ino, name)
                known = None if entry is None else self._attrs.get(entry.ino)
                if entry is None or known is None:
                    return None
                found.append(known)
                marks |= {entry.mark, known.mark}
        is_believed = bool(found) and all(self._lifetime.seconds(mark) > 0.0 for mark in marks)
        return [known.attr for known in found] if is_believed else None

    def get_target(self, ino: int) -> bytes | None:
        """Where a symlink points, if it was heard of."""
        with self._lock:
            return self._targets.get(ino)

    # Under the lock

    def _sweep(self) -> None:
        """Takes away two of the oldest that are not believed any more: more than come at a time."""
        for _ in range(2):
            oldest = self._attrs.oldest()
            if oldest is not None and not self._lifetime.seconds(oldest.mark):
                self._attrs.drop(oldest.attr.ino)
        folder = self._names.oldest()
        if folder is not None and not self._lifetime.seconds(folder[1].mark):
            self._names.drop_folder(folder[0])

    def _doubt(self, ino: int) -> None:
        self._heard.doubt(ino)
        self._attrs.drop(ino)
        self._names.drop_folder(ino)
        self._new_folders.drop(ino)
