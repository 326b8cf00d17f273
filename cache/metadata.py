"""What a mount believes of inodes and names, and until when. In memory only.

Answers of the directory may arrive in another order than they were given. Every inode bears the
directory's clock (``change``), so an answer that is older than what is known is recognised and not
believed. That needs what is known to be there when the older answer comes. So an answer that was under
way for longer than ``ANSWER_SECONDS`` is not believed at all, and attributes are kept for at least as long
after they came, believed or not: whatever was asked for before they came is recognised, or not believed.

Memory follows what is in use: each new belief takes away two of the oldest that are of no use any more, and
``forget`` what nobody will ask for. Besides, each of the three maps (attributes, names, targets of symlinks)
is bounded; what was used longest ago goes first.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

from wire.messages.directory import Attr

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

ITEMS_MAX = 200_000

ANSWER_SECONDS = 5.0
"""How long an answer that is believed may have been under way."""

SWEPT = 2
"""More than come at a time: so what is of no use becomes less, until it is gone."""


class _Belief(NamedTuple, Generic[V]):
    value: V
    believed_until: float
    kept_until: float


class _Bounded(Generic[K, V]):
    """The ``items_max`` beliefs that were used last."""

    def __init__(self, items_max: int) -> None:
        self._items: OrderedDict[K, _Belief[V]] = OrderedDict()
        self._items_max = items_max

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: K) -> _Belief[V] | None:
        belief = self._items.get(key)
        if belief is not None:
            self._items.move_to_end(key)
        return belief

    def put(self, key: K, belief: _Belief[V], now: float) -> None:
        for _ in range(SWEPT):
            oldest = next(iter(self._items), None)
            if oldest is None or now < self._items[oldest].kept_until:
                break
            del self._items[oldest]
        self._items[key] = belief
        self._items.move_to_end(key)
        if len(self._items) > self._items_max:
            self._items.popitem(last=False)

    def drop(self, key: K) -> None:
        self._items.pop(key, None)

    def forget(self, key: K, now: float) -> None:
        belief = self._items.get(key)
        if belief is not None and now >= belief.kept_until:
            del self._items[key]

    def clear(self) -> None:
        self._items.clear()


class MetadataCache:
    """Thread-safe. Lifetimes are in seconds from now, by ``clock`` (monotonic). ``asked`` is what ``now`` was
    before the directory was asked; without it the answer is taken to have come at once."""

    def __init__(self, items_max: int = ITEMS_MAX, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._attrs: _Bounded[int, Attr] = _Bounded(items_max)
        self._entries: _Bounded[tuple[int, bytes], int] = _Bounded(items_max)
        self._targets: _Bounded[int, bytes] = _Bounded(items_max)

    def __len__(self) -> int:
        return len(self._attrs) + len(self._entries) + len(self._targets)

    def now(self) -> float:
        """To be noted before a question, and told with its answer."""
        return self._clock()

    def put_attr(self, attr: Attr, lifetime: float, asked: float | None = None) -> None:
        """Believes ``attr``, unless something newer is known of the inode, or may have been known and
        forgotten since."""
        now = self._clock()
        if asked is not None and now - asked >= ANSWER_SECONDS:
            return
        belief = _Belief(attr, now + lifetime, now + max(lifetime, ANSWER_SECONDS))
        with self._lock:
            known = self._attrs.get(attr.ino)
            if known is None or attr.change >= known.value.change:
                self._attrs.put(attr.ino, belief, now)

    def get_attr(self, ino: int) -> Attr | None:
        """The attributes, as long as they are believed."""
        now = self._clock()
        with self._lock:
            known = self._attrs.get(ino)
        return known.value if known is not None and now < known.believed_until else None

    def attr_seconds(self, ino: int) -> float:
        """How much longer the attributes are believed, 0 if they are not."""
        with self._lock:
            known = self._attrs.get(ino)
        return 0.0 if known is None else max(0.0, known.believed_until - self._clock())

    def put_entry(
        self, parent: Attr, name: bytes, ino: int, lifetime: float, asked: float | None = None
    ) -> None:
        """Believes that ``name`` stands for ``ino`` (0: for nothing), as the directory said it with the
        attributes ``parent``. Not if something newer is known of the parent, or may have been: then the
        answer was under way while the directory was changed."""
        now = self._clock()
        if asked is not None and now - asked >= ANSWER_SECONDS:
            return
        with self._lock:
            known = self._attrs.get(parent.ino)
            if known is None or parent.change >= known.value.change:
                self._entries.put((parent.ino, name), _Belief(ino, now + lifetime, now + lifetime), now)

    def get_entry(self, parent: int, name: bytes) -> int | None:
        """The inode of a name (0: the name is known to be free), as long as it is believed."""
        now = self._clock()
        with self._lock:
            entry = self._entries.get((parent, name))
        return entry.value if entry is not None and now < entry.believed_until else None

    def drop_entry(self, parent: int, name: bytes) -> None:
        """The name is not believed any more."""
        with self._lock:
            self._entries.drop((parent, name))

    def put_target(self, ino: int, target: bytes) -> None:
        """Where a symlink points: that never changes."""
        with self._lock:
            self._targets.put(ino, _Belief(target, math.inf, math.inf), self._clock())

    def get_target(self, ino: int) -> bytes | None:
        """Where a symlink points, if it was heard of."""
        with self._lock:
            known = self._targets.get(ino)
        return None if known is None else known.value

    def forget(self, inos: Iterable[int], names: Iterable[tuple[int, bytes]]) -> None:
        """Nobody will ask for these inodes, and these names in directories, for a while. Attributes by which
        older answers are recognised stay for as long as one may come."""
        now = self._clock()
        with self._lock:
            for ino in inos:
                self._targets.drop(ino)
                self._attrs.forget(ino, now)
            for name in names:
                self._entries.drop(name)

    def drop_all(self) -> None:
        """Nothing is believed any more."""
        with self._lock:
            self._attrs.clear()
            self._entries.clear()
            self._targets.clear()
