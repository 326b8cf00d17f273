"""What a mount believes of inodes and names, and until when. In memory only.

Answers of the directory may arrive in another order than they were given. Every inode bears the
directory's clock (``change``), so an answer that is older than what is known is recognised and not
believed. Each of the three maps (attributes, names, targets of symlinks) is bounded; what was used
longest ago goes first.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

from wire.messages.directory import Attr

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

ITEMS_MAX = 200_000


class _Known(NamedTuple):
    attr: Attr
    believed_until: float


class _Bounded(Generic[K, V]):
    """The ``items_max`` pairs that were used last."""

    def __init__(self, items_max: int) -> None:
        self._items: OrderedDict[K, V] = OrderedDict()
        self._items_max = items_max

    def get(self, key: K) -> V | None:
        value = self._items.get(key)
        if value is not None:
            self._items.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._items_max:
            self._items.popitem(last=False)

    def drop(self, key: K) -> None:
        self._items.pop(key, None)

    def clear(self) -> None:
        self._items.clear()


class MetadataCache:
    """Thread-safe. Lifetimes are in seconds from now, by ``clock`` (monotonic)."""

    def __init__(self, items_max: int = ITEMS_MAX, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._attrs: _Bounded[int, _Known] = _Bounded(items_max)
        self._entries: _Bounded[tuple[int, bytes], tuple[int, float]] = _Bounded(items_max)
        self._targets: _Bounded[int, bytes] = _Bounded(items_max)

    def put_attr(self, attr: Attr, lifetime: float) -> None:
        """Believes ``attr``, unless something newer is known of the inode."""
        until = self._clock() + lifetime
        with self._lock:
            known = self._attrs.get(attr.ino)
            if known is None or attr.change >= known.attr.change:
                self._attrs.put(attr.ino, _Known(attr, until))

    def get_attr(self, ino: int) -> Attr | None:
        """The attributes, as long as they are believed."""
        now = self._clock()
        with self._lock:
            known = self._attrs.get(ino)
        return known.attr if known is not None and now < known.believed_until else None

    def attr_seconds(self, ino: int) -> float:
        """How much longer the attributes are believed, 0 if they are not."""
        with self._lock:
            known = self._attrs.get(ino)
        return 0.0 if known is None else max(0.0, known.believed_until - self._clock())

    def put_entry(self, parent: Attr, name: bytes, ino: int, lifetime: float) -> None:
        """Believes that ``name`` stands for ``ino`` (0: for nothing), as the directory said it with the
        attributes ``parent``. Not if something newer is known of the parent: then the answer was under
        way while the directory was changed."""
        until = self._clock() + lifetime
        with self._lock:
            known = self._attrs.get(parent.ino)
            if known is None or parent.change >= known.attr.change:
                self._entries.put((parent.ino, name), (ino, until))

    def get_entry(self, parent: int, name: bytes) -> int | None:
        """The inode of a name (0: the name is known to be free), as long as it is believed."""
        now = self._clock()
        with self._lock:
            entry = self._entries.get((parent, name))
        return entry[0] if entry is not None and now < entry[1] else None

    def drop_entry(self, parent: int, name: bytes) -> None:
        """The name is not believed any more."""
        with self._lock:
            self._entries.drop((parent, name))

    def put_target(self, ino: int, target: bytes) -> None:
        """Where a symlink points: that never changes."""
        with self._lock:
            self._targets.put(ino, target)

    def get_target(self, ino: int) -> bytes | None:
        """Where a symlink points, if it was heard of."""
        with self._lock:
            return self._targets.get(ino)

    def drop_all(self) -> None:
        """Nothing is believed any more."""
        with self._lock:
            self._attrs.clear()
            self._entries.clear()
            self._targets.clear()
