"""What a mount believes of inodes and names. In memory only.

For how long is not decided here: a ``Lifetime`` marks each question, and says of a mark whether answers to
such questions still hold. What is *doubted* holds no more, whatever its mark.

Answers may arrive in another order than they were given, and some are on their way while we hear that they
hold no more. So a question notes which doubts and changes were known when it was asked (``Asked``), and its
answer is believed only if nothing has been heard of the inode since. The order of this mount's own changes is
told by the directory's clock (``change``): of two answers the one with the later change is right.

Invariant: what is believed of an inode was answered to a question that was asked after all doubts of it that
are known, and no older than the last change of this mount that is known.

Attributes, names and symlinks' targets are bounded, each by itself; what was used longest ago goes first.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, NamedTuple, Protocol, TypeVar

from cache.new_folders import NewFolders
from wire.messages.directory import Attr

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

ITEMS_MAX = 200_000
KEPT = 20_000
"""So many are kept though the kernel forgets them: it also does so when names must be looked up anew."""

EVENTS_MAX = 10_000
"""Inodes of which it is remembered when something was heard last. Questions that are older than what was
forgotten get no answer that is believed."""


class Lifetime(Protocol):
    """How long answers are believed. Thread-safe."""

    is_exact: bool
    """Whether what is believed is true: then nobody need ask to be sure."""

    slack_seconds: float
    """For so much longer may somebody believe what he was told to believe for ``seconds``."""

    def mark(self) -> float:
        """To be kept with the answer to a question that is asked now."""

    def seconds(self, mark: float) -> float:
        """For how much longer such an answer holds, 0 if it does no more."""


class ForSeconds:
    """Believed for some seconds, true or not."""

    is_exact = False
    slack_seconds = float("inf")

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock

    def mark(self) -> float:
        """See Lifetime: the end."""
        return self._clock() + self._seconds

    def seconds(self, mark: float) -> float:
        """See Lifetime."""
        return max(0.0, mark - self._clock())


class Asked(NamedTuple):
    """A question: what had been heard when it was asked, and its mark."""

    heard: int
    mark: float


class _Heard(NamedTuple):
    """What was heard last of an inode: when (a number) anything, when a doubt, and the latest change."""

    number: int
    doubt: int
    change: int


class _Known(NamedTuple):
    attr: Attr
    mark: float


class _Name(NamedTuple):
    ino: int
    mark: float


class _Bounded(Generic[K, V]):
    """The ``items_max`` pairs that were used last; ``on_drop`` hears of those that go for others."""

    def __init__(self, items_max: int, on_drop: Callable[[V], None] = lambda _value: None) -> None:
        self._items: OrderedDict[K, V] = OrderedDict()
        self._items_max = items_max
        self._on_drop = on_drop

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: K) -> V | None:
        value = self._items.get(key)
        if value is not None:
            self._items.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._items_max:
            self._on_drop(self._items.popitem(last=False)[1])

    def drop(self, key: K) -> None:
        self._items.pop(key, None)

    def oldest(self) -> V | None:
        return next(iter(self._items.values()), None)

    def clear(self) -> None:
        self._items.clear()


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
        self._items_max = items_max
        self._kept = kept
        self._lock = threading.Lock()
        self._number = 0
        self._floor = 0  # what was asked before this was heard may be old, whatever it is about
        self._heard: _Bounded[int, _Heard] = _Bounded(events_max, self._forget_heard)
        self._attrs: _Bounded[int, _Known] = _Bounded(items_max)
        self._names: OrderedDict[int, dict[bytes, _Name]] = OrderedDict()  # by directory
        self._names_count = 0
        self._targets: _Bounded[int, bytes] = _Bounded(items_max)
        self._new_folders = NewFolders()

    def __len__(self) -> int:
        return len(self._attrs) + len(self._targets) + self._names_count

    def ask(self) -> Asked:
        """To be called before a question is sent."""
        return Asked(self._number, self._lifetime.mark())

    # Answers

    def put_attr(self, attr: Attr, asked: Asked) -> None:
        """The answer to a question."""
        with self._lock:
            self._sweep()
            known = self._attrs.get(attr.ino)
            if self._is_current(attr.ino, asked) and (known is None or attr.change >= known.attr.change):
                self._attrs.put(attr.ino, _Known(attr, asked.mark))

    def put_entry(self, parent: Attr, name: bytes, ino: int, asked: Asked) -> None:
        """The answer to a question: ``name`` stands for ``ino`` (0: for nothing) in a directory that then had
        the attributes ``parent``."""
        with self._lock:
            known = self._attrs.get(parent.ino)
            if self._is_current(parent.ino, asked) and (known is None or parent.change >= known.attr.change):
                self._put_name(parent.ino, name, _Name(ino, asked.mark))

    def changed(self, attr: Attr, asked: Asked) -> None:
        """What the directory has answered to a change that this mount has made. Questions that were asked
        before this may have been answered before the change."""
        with self._lock:
            heard = self._heard.get(attr.ino) or _Heard(0, self._floor, 0)
            if heard.doubt > asked.heard:
                self._doubt(attr.ino)
            elif attr.change >= heard.change:  # else a later change has been answered before
                self._number += 1
                self._heard.put(attr.ino, _Heard(self._number, heard.doubt, attr.change))
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
                self._put_name(parent, name, _Name(ino, known.mark))
            else:
                self._drop_name(parent, name)

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
            self._drop_name(parent, name)

    def drop_all(self) -> None:
        """Nothing is believed any more, nor what was asked until now."""
        with self._lock:
            self._number += 1
            self._floor = self._number
            self._heard.clear()
            self._attrs.clear()
            self._names.clear()
            self._names_count = 0
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
                self._drop_folder(ino)
                self._new_folders.drop(ino)
            for parent, name in names:
                self._drop_name(parent, name)

    # What is believed

    def state(self) -> tuple[int, float]:
        """As long as this stays the same, and its mark is not 0, all that was believed when it was asked for
        is true, whether it is still remembered or not: nothing has been heard since."""
        return self._number, self._lifetime.mark()

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
        found = self._find_name(parent, name)
        return found.ino if found is not None and self._lifetime.seconds(found.mark) > 0.0 else None

    def is_free(self, parent: int, name: bytes) -> bool:
        """Whether the directory is believed to have no such name: because it was said, or because this mount
        has made the directory and nothing of that name."""
        with self._lock:
            known, found = self._attrs.get(parent), self._name_in(parent, name)
            if found is None and known is not None and self._new_folders.lacks(parent, name):
                found = _Name(0, known.mark)
                self._put_name(parent, name, found)
        return found is not None and not found.ino and self._lifetime.seconds(found.mark) > 0.0

    def entry_seconds(self, parent: int, name: bytes, ino: int) -> float:
        """For how much longer the name is believed to stand for ``ino``, 0 if it is not."""
        found = self._find_name(parent, name)
        return self._lifetime.seconds(found.mark) if found is not None and found.ino == ino else 0.0

    def get_way(self, start: int, names: Iterable[bytes]) -> list[Attr] | None:
        """The attributes of ``start`` and of each name from there, if all that is believed."""
        with self._lock:
            known = self._attrs.get(start)
            found = [] if known is None else [known]
            marks = set() if known is None else {known.mark}
            for name in names:
                entry = None if known is None else self._name_in(known.attr.ino, name)
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
        parent, folder = next(iter(self._names.items()), (0, {}))
        if folder and not self._lifetime.seconds(next(reversed(folder.values())).mark):
            self._drop_folder(parent)

    def _is_current(self, ino: int, asked: Asked) -> bool:
        heard = self._heard.get(ino)
        return asked.heard >= (self._floor if heard is None else heard.number)

    def _doubt(self, ino: int) -> None:
        self._number += 1
        heard = self._heard.get(ino)
        self._heard.put(ino, _Heard(self._number, self._number, 0 if heard is None else heard.change))
        self._attrs.drop(ino)
        self._drop_folder(ino)
        self._new_folders.drop(ino)

    def _forget_heard(self, heard: _Heard) -> None:
        self._floor = max(self._floor, heard.number)

    def _find_name(self, parent: int, name: bytes) -> _Name | None:
        with self._lock:
            return self._name_in(parent, name)

    def _name_in(self, parent: int, name: bytes) -> _Name | None:
        folder = self._names.get(parent)
        if folder is None:
            return None
        self._names.move_to_end(parent)
        return folder.get(name)

    def _put_name(self, parent: int, name: bytes, value: _Name) -> None:
        while self._names_count >= self._items_max:
            self._names_count -= len(self._names.popitem(last=False)[1])
        folder = self._names.setdefault(parent, {})
        self._names.move_to_end(parent)
        self._names_count -= len(folder)
        folder[name] = value
        self._names_count += len(folder)

    def _drop_name(self, parent: int, name: bytes) -> None:
        folder = self._names.get(parent)
        if folder is not None and folder.pop(name, None) is not None:
            self._names_count -= 1

    def _drop_folder(self, ino: int) -> None:
        self._names_count -= len(self._names.pop(ino, ()))
