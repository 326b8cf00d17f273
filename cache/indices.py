"""Sets of chunk indices that are mostly runs: what a local copy has, and what is dirty in it."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

END = 2**62
"""Beyond every index: the end of a run that does not end."""


class IndexSet:
    """Kept as the sorted edges of its runs, ``[first, end, first, end, …]``: an index is inside when an odd
    number of edges is at or before it. Cost goes with the number of runs, never with their length."""

    __slots__ = ("_edges",)

    def __init__(self, edges: Iterable[int] = ()) -> None:
        self._edges = list(edges)

    @property
    def edges(self) -> list[int]:
        """A copy of the edges, to be stored."""
        return list(self._edges)

    def copy(self) -> "IndexSet":
        """A set of its own with the same indices."""
        return IndexSet(self._edges)

    def __contains__(self, index: int) -> bool:
        return bisect_right(self._edges, index) & 1 == 1

    def __bool__(self) -> bool:
        return bool(self._edges)

    def __iter__(self) -> Iterator[int]:
        for first, end in self.runs():
            yield from range(first, end)

    def runs(self) -> list[tuple[int, int]]:
        """``(first, end)`` of each run, in order."""
        return list(zip(self._edges[::2], self._edges[1::2], strict=True))

    def covers(self, first: int, end: int) -> bool:
        """Whether all of ``range(first, end)``, which is not empty, is in the set."""
        place = bisect_right(self._edges, first)
        return place & 1 == 1 and self._edges[place] >= end

    def stretch(self, index: int) -> tuple[bool, int]:
        """Whether ``index`` is in the set, and the first one after it of which that is not so (or END)."""
        place = bisect_right(self._edges, index)
        return place & 1 == 1, self._edges[place] if place < len(self._edges) else END

    def gaps(self, first: int, end: int) -> list[tuple[int, int]]:
        """The runs of ``range(first, end)`` that are not in the set."""
        rest = IndexSet((first, end) if first < end else ())
        for run in zip(*[iter(self._edges[bisect_right(self._edges, first) & ~1 :])] * 2, strict=True):
            if run[0] >= end:
                break
            rest.remove(*run)
        return rest.runs()

    def add(self, first: int, end: int | None = None) -> None:
        """Adds ``range(first, end)``; without ``end`` the one index."""
        self._splice(first, first + 1 if end is None else end, inside=0)

    def remove(self, first: int, end: int | None = None) -> None:
        """Takes ``range(first, end)`` out; without ``end`` the one index."""
        self._splice(first, first + 1 if end is None else end, inside=1)

    def update(self, other: "IndexSet") -> None:
        """Adds everything in ``other``."""
        for first, end in other.runs():
            self.add(first, end)

    def difference_update(self, other: "IndexSet") -> None:
        """Takes everything in ``other`` out."""
        for first, end in other.runs():
            self.remove(first, end)

    def _splice(self, first: int, end: int, inside: int) -> None:
        # An edge is needed at a border only where what is beyond it differs from what is put in.
        if first >= end:
            return
        low = bisect_left(self._edges, first)
        high = bisect_right(self._edges, end)
        borders = ([first] if low & 1 == inside else []) + ([end] if high & 1 == inside else [])
        self._edges[low:high] = borders
