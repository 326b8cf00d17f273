"""The two sides of the machine: what is open on both, and how one thing is done to both and compared."""

import itertools
import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

from hypothesis.stateful import RuleBasedStateMachine

from tests.support.oracle.draws import USERS
from tests.support.syscalls import as_user
from tests.support.twins import Twin, Watch, World, failed, outcome

_roots = itertools.count(1)


@dataclass
class Opened:
    """A file or a directory that is open on both sides; ``ino`` is the local one's."""

    mount: int
    there: int
    here: int
    flags: int
    ino: int
    is_folder: bool
    maps: list[tuple[mmap.mmap, mmap.mmap]] = field(default_factory=list)

    @property
    def writes(self) -> bool:
        """Whether it has the write lock, as O_TRUNC has too."""
        asked = self.flags & (os.O_ACCMODE | os.O_TRUNC)
        return not self.is_folder and not self.flags & os.O_PATH and bool(asked)

    def close(self) -> None:
        for pair in self.maps:
            for one in pair:
                one.close()
        os.close(self.there)
        os.close(self.here)


class Sides(RuleBasedStateMachine):
    """A directory on each side. ``world`` is set before the first run."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        name = str(next(_roots))
        self.here = f"{self.world.local / name}/root/"
        self.there = [f"{mount / name}/root/" for mount in self.world.mounts]
        self.opened: list[Opened] = []
        self.identities: dict[int, int] = {}
        self.vague: set[int] = set()
        self.is_alone = False  # all is done by root, and programs lock
        for root in (self.here, self.there[0]):
            for folder in (os.path.dirname(root.rstrip("/")), root):  # links lead one up, to nobody else's
                os.mkdir(folder)
                os.chmod(folder, 0o777)

    def _inos(self, *places: str) -> set[int]:
        found = set()
        for place in places:
            for way in (os.stat, os.lstat):
                with suppress(OSError):
                    found.add(way((self.here + place).rstrip("/")).st_ino)
        return found

    def _mount(self, wanted: int, *places: str) -> int | None:
        """The mount that has one of the places open for writing, or else the wanted one; None if each has."""
        inos = self._inos(*places, *map(os.path.dirname, places))  # what should be a directory may be a file
        theirs = {one.mount for one in self.opened if one.writes and one.ino in inos}
        return wanted if not theirs else theirs.pop() if len(theirs) == 1 else None

    def _twins(self, mount: int, places: Sequence[str]) -> list[Twin]:
        folders = {os.path.dirname(place.rstrip("/")) for place in places}
        targets = {self._target(place) for place in places} - {*places, ""}
        return [Twin(self.there[mount] + place, self.here + place) for place in (*places, *folders, *targets)]

    def _target(self, place: str) -> str:
        """What a symlink leads to, nothing if that is not below the root."""
        real = os.path.realpath(self.here + place)
        return real.removeprefix(self.here) if real.startswith(self.here) else ""

    def _do(
        self,
        wanted: int,
        user: int,
        places: Sequence[str],
        run: Callable[[str], object],
        *,
        same: bool = True,
    ) -> object:
        """Does it to the root of each side, and compares; returns what came out of it."""
        mount = self._mount(wanted, *places)
        if mount is None:
            return None
        watch = Watch(self._twins(mount, places), self.identities, self.vague)
        back = self._become(user)
        try:
            there, here = outcome(lambda: run(self.there[mount])), outcome(lambda: run(self.here))
        finally:
            back()
        self._same(there, here, same=same)
        watch.check()
        watch.forget_gone()
        return here

    def _with(
        self,
        one: Opened,
        user: int,
        run: Callable[[int], object],
        *,
        same: bool = True,
        more: Sequence[Twin] = (),
    ) -> object:
        """Does it to what is open on each side."""
        watch = Watch([Twin(one.there, one.here), *more], self.identities, self.vague)
        back = self._become(user)
        try:
            there, here = outcome(lambda: run(one.there)), outcome(lambda: run(one.here))
        finally:
            back()
        self._same(there, here, same=same)
        watch.check()
        return here

    def _become(self, user: int) -> Callable[[], None]:
        return as_user(*USERS[0 if self.is_alone else user])

    @staticmethod
    def _same(there: object, here: object, *, same: bool) -> None:
        if same or failed(there) or failed(here):
            assert there == here, f"{_short(there)} in place of {_short(here)}"


def _short(result: object) -> str:
    text = repr(result)
    return text if len(text) < 200 else f"{text[:200]}… ({len(text)})"


def listing(place: str) -> list[tuple[str, bool, bool]]:
    """The names in a directory, with whether each is a symlink and a directory."""
    with os.scandir(place) as entries:
        return sorted((one.name, one.is_symlink(), one.is_dir(follow_symlinks=False)) for one in entries)
