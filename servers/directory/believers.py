"""Which sessions were promised which inodes, and which inodes changed lately. Plain tables, no locks.

A million promises are kept in one process, so each is a bit: an inode has one number whose bits stand for
sessions (their feeds' slots). A bit that is there without need costs a message too many; one that is missing
would show somebody old content.
"""

from collections import OrderedDict


class Believers:
    """Inodes to the bits of those who were promised them.

    Two generations: what is promised, also again, goes to the younger one; what is to be given up is taken
    from the elder one in the order of its age, and when that is empty the younger one becomes it.
    """

    def __init__(self) -> None:
        self.pairs = 0
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._ages: list[int] = []  # the inodes of the elder one, the eldest last; some are gone already

    def add(self, ino: int, bit: int) -> None:
        """The one with ``bit`` is promised ``ino``."""
        bits = self._young.get(ino)
        if bits is None:
            self._young[ino] = bit  # the same object each time: a thousand sessions have long numbers
            self.pairs += 1
        elif not bits & bit:
            self._young[ino] = bits | bit
            self.pairs += 1

    def take(self, ino: int, own: int) -> int:
        """Forgets who was promised ``ino``, but for the bit ``own``, and says who they are."""
        bits = self._take_from(self._old, ino, 0)
        if bits & own:
            self.add(ino, own)
        return (bits & ~own) | self._take_from(self._young, ino, own)

    def _take_from(self, table: dict[int, int], ino: int, own: int) -> int:
        bits = table.get(ino, 0)
        kept = bits & own
        if kept:
            table[ino] = kept
        elif bits:
            del table[ino]
        self.pairs -= (bits & ~own).bit_count()
        return bits & ~own

    def pop(self) -> tuple[int, int]:
        """Gives up an inode of the elder generation: its number, and who was promised it and not again
        since. There must be one."""
        if not self._old:
            self._old, self._young = self._young, {}
            self._ages = list(reversed(self._old))
        while (ino := self._ages.pop()) not in self._old:
            pass  # it was taken
        bits = self._old.pop(ino)
        self.pairs -= bits.bit_count()
        return ino, bits & ~self._young.get(ino, 0)


class Recent:
    """The last ``size_max`` changes, in the order in which they were told. ``sequence`` counts all.

    Who has begun to read at sequence S, and reads an inode as of change C, has read what is true still if no
    later change than C is here, and nothing was dropped here since S (``floor`` is not above it).
    """

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self.sequence = self.floor = 1  # so that 0 is before everything, also before this process
        self._changes: OrderedDict[int, tuple[int, int]] = OrderedDict()

    def note(self, ino: int, change: int) -> None:
        """The inode has changed; told in another order, the later change counts."""
        self.sequence += 1
        known = self._changes.pop(ino, None)
        self._changes[ino] = (change if known is None else max(change, known[0]), self.sequence)
        if len(self._changes) > self._size_max:
            _, (_, self.floor) = self._changes.popitem(last=False)

    def is_current(self, ino: int, change: int) -> bool:
        """Whether no later change is known here."""
        known = self._changes.get(ino)
        return known is None or known[0] <= change
