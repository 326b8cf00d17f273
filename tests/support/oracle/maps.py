"""Maps of open files."""

import mmap
import os

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.support.oracle.descriptors import Descriptors
from tests.support.oracle.draws import content, lengths, offsets, picks, seeds
from tests.support.oracle.sides import Opened


class Maps(Descriptors):
    """What maps show, and what comes from them into files."""

    @precondition(lambda self: self.opened)
    @rule(pick=picks)
    def map(self, pick: int) -> None:
        one = self._pick(pick)
        if one is None or one.flags & (os.O_ACCMODE | os.O_PATH) != os.O_RDWR or len(one.maps) > 1:
            return
        size = os.fstat(one.here).st_size
        if size:
            one.maps.append((mmap.mmap(one.there, size), mmap.mmap(one.here, size)))

    def _map(self, pick: int) -> tuple[Opened, tuple[mmap.mmap, mmap.mmap], int] | None:
        """A map and how much of it is in the file still."""
        maps = [(one, pair) for one in self.opened for pair in one.maps]
        if not maps:
            return None
        one, pair = maps[pick % len(maps)]
        return one, pair, min(len(pair[1]), os.fstat(one.here).st_size)

    @precondition(lambda self: any(one.maps for one in self.opened))
    @rule(pick=picks, offset=offsets, length=lengths, seed=seeds, flush=st.booleans())
    def write_map(self, pick: int, offset: int, length: int, seed: int, flush: bool) -> None:
        if found := self._map(pick):
            one, pair, size = found
            data = content(max(0, min(length, size - offset)), seed)
            self.vague.add(one.ino)
            for side in pair:
                if data:
                    side[offset : offset + len(data)] = data
                if flush:
                    side.flush()

    @precondition(lambda self: any(one.maps for one in self.opened))
    @rule(pick=picks, offset=offsets, length=lengths)
    def read_map(self, pick: int, offset: int, length: int) -> None:
        if found := self._map(pick):
            _, (there, here), size = found
            end = max(offset, min(offset + length, size))
            assert there[offset:end] == here[offset:end], f"{end - offset} bytes of a map at {offset}"

    @precondition(lambda self: any(one.maps for one in self.opened))
    @rule(pick=picks)
    def unmap(self, pick: int) -> None:
        if found := self._map(pick):
            one, pair, _ = found
            one.maps.remove(pair)
            for side in pair:
                side.close()
