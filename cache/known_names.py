"""What names stand for, by directory: if there are too many, the directory goes that was used longest ago."""

from collections import OrderedDict
from typing import NamedTuple


class Name(NamedTuple):
    """``ino`` is 0 for a name that is free; ``mark`` says for how long that is believed (cache.lifetimes)."""

    ino: int
    mark: float


class KnownNames:
    """So many names at the most. Not thread-safe."""

    def __init__(self, names_max: int) -> None:
        self._names_max = names_max
        self._folders: OrderedDict[int, dict[bytes, Name]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, parent: int, name: bytes) -> Name | None:
        """Counts as use of the directory."""
        folder = self._folders.get(parent)
        if folder is None:
            return None
        self._folders.move_to_end(parent)
        return folder.get(name)

    def put(self, parent: int, name: bytes, value: Name) -> None:
        """Counts as use of the directory."""
        while self._count >= self._names_max:
            self._count -= len(self._folders.popitem(last=False)[1])
        folder = self._folders.setdefault(parent, {})
        self._folders.move_to_end(parent)
        self._count -= len(folder)
        folder[name] = value
        self._count += len(folder)

    def drop(self, parent: int, name: bytes) -> None:
        """If it is there."""
        folder = self._folders.get(parent)
        if folder is not None and folder.pop(name, None) is not None:
            self._count -= 1
            if not folder:  # it would stay the oldest, which has nothing that could go
                del self._folders[parent]

    def drop_folder(self, parent: int) -> None:
        """All names in it."""
        self._count -= len(self._folders.pop(parent, ()))

    def oldest(self) -> tuple[int, Name] | None:
        """The directory that was used longest ago, and the last name that came there."""
        parent, folder = next(iter(self._folders.items()), (0, {}))
        return (parent, next(reversed(folder.values()))) if folder else None

    def clear(self) -> None:
        """Nothing is left."""
        self._folders.clear()
        self._count = 0
