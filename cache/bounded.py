"""A map that has room for so many, in which what was used longest ago makes room for what comes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """The ``items_max`` pairs that were used last; ``on_drop`` hears of those that go for others. Not
    thread-safe."""

    def __init__(self, items_max: int, on_drop: Callable[[V], None] = lambda _value: None) -> None:
        self._items: OrderedDict[K, V] = OrderedDict()
        self._items_max = items_max
        self._on_drop = on_drop

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: K) -> V | None:
        """Counts as use."""
        value = self._items.get(key)
        if value is not None:
            self._items.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Counts as use."""
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._items_max:
            self._on_drop(self._items.popitem(last=False)[1])

    def drop(self, key: K) -> None:
        """If it is there."""
        self._items.pop(key, None)

    def oldest(self) -> V | None:
        """What was used longest ago."""
        return next(iter(self._items.values()), None)

    def clear(self) -> None:
        """Nothing is left, and ``on_drop`` does not hear of it."""
        self._items.clear()
