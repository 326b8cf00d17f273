"""What a mount has noted of its programs' locks: as granted by the lock server, and on the slate first.

The slate keeps them for the worker that follows this one. Nothing here asks a service.
"""

import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mount.slate import ProgramLock, Slate
from wire.messages.lock import Range
from wire.ranges import WHOLE, overlap, with_range, without


class Owner(NamedTuple):
    """Who locks, as the kernel knows him: a process, or an open file."""

    ino: int
    is_flock: bool
    number: int

    @classmethod
    def of(cls, ino: int, wanted: Range) -> "Owner":
        """Whose range that is."""
        return cls(ino, wanted.is_flock, wanted.owner)

    def everything(self) -> Range:
        """All that he can have."""
        return Range(self.is_flock, self.number, 0, WHOLE, False, 0)


class ProgramNotes:
    """Thread-safe. It begins with what an earlier worker has noted. If that was killed between two notes
    there are both: the stronger one counts, until the program's call is repeated."""

    def __init__(self, slate: Slate) -> None:
        self._kept = slate.program_locks
        self._guard = threading.RLock()
        self._slots: dict[Owner, dict[Range, int]] = {}
        self._handles: dict[Owner, int] = {}
        """Through which open file each has locked last."""
        self._take_over()

    def _take_over(self) -> None:
        found = sorted(self._kept.items(), key=lambda item: item[1].range.is_exclusive)
        for slot, lock in found:
            owner = Owner.of(lock.ino, lock.range)
            self._slots.setdefault(owner, {})[lock.range] = slot
            self._handles[owner] = lock.handle
        for _, lock in found:
            owner = Owner.of(lock.ino, lock.range)
            self._set(owner, with_range(self.of_owner(owner), lock.range))

    def __bool__(self) -> bool:
        return bool(self._slots)

    def inos(self) -> set[int]:
        """Of which there are any."""
        with self._guard:
            return {owner.ino for owner in self._slots}

    def of_inode(self, ino: int) -> list[Range]:
        """All owners'."""
        with self._guard:
            return [one for owner in self._slots if owner.ino == ino for one in self._slots[owner]]

    def of_owner(self, owner: Owner) -> list[Range]:
        """In order."""
        with self._guard:
            return sorted(self._slots.get(owner, ()), key=lambda one: one.first)

    def within(self, ino: int, bytes_: Range) -> Iterator[Range]:
        """What the owner has of these bytes."""
        return (one for one in self.of_owner(Owner.of(ino, bytes_)) if overlap(one, bytes_))

    def owners_through(self, ino: int, handle: int) -> list[Owner]:
        """Those who have locked through this open file last."""
        if not self._slots:
            return []
        with self._guard:
            return [owner for owner, last in self._handles.items() if owner.ino == ino and last == handle]

    def add(self, ino: int, new: Range, handle: int) -> None:
        """Granted. Raises ENFILE if no more can be remembered; then nothing is changed."""
        owner = Owner.of(ino, new)
        with self._guard:  # other threads of the same program may be about other bytes
            self._handles[owner] = handle
            self._set(owner, with_range(self.of_owner(owner), new))

    def remove(self, ino: int, gone: Range) -> None:
        """The owner has nothing of these bytes any more. Raises ENFILE."""
        owner = Owner.of(ino, gone)
        with self._guard:
            self._set(owner, without(self.of_owner(owner), gone))

    def refuse(self, ino: int, wanted: Range) -> None:
        """flock(2): "the existing lock is first removed, and then a new lock is established", or is not."""
        if wanted.is_flock:
            owner = Owner.of(ino, wanted)
            with self._guard:
                same = [one for one in self.of_owner(owner) if one.is_exclusive == wanted.is_exclusive]
                self._set(owner, same)

    def _set(self, owner: Owner, ranges: Iterable[Range]) -> None:
        """The new ones are written down before the old ones go."""
        old = self._slots.get(owner, {})
        now: dict[Range, int] = {}
        try:
            for one in ranges:
                slot = old.get(one)
                lock = ProgramLock(owner.ino, self._handles[owner], one)
                now[one] = self._kept.take(lock) if slot is None else slot
        except OSError:
            self._free_slots(now, old)
            raise
        self._free_slots(old, now)
        if now:
            self._slots[owner] = now
        else:
            self._slots.pop(owner, None)
            self._handles.pop(owner, None)

    def _free_slots(self, gone: dict[Range, int], but: dict[Range, int]) -> None:
        for one, slot in gone.items():
            if one not in but:
                self._kept.free(slot)
