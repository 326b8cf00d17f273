"""Looks for anything old: what is changed through one mount is looked at through all of them.

A random walk over a small tree, so that names collide often. Each round one mount, or several at once, makes
some changes while the others look around; when the calls have returned, all look at what was concerned and at
some of the rest. The same is done in a folder of the local file system: what it shows is what is right.

On mounts that are there already::

    python -m tests.support.never_stale --rounds 100000 --seed 1 /mnt/one /mnt/two /mnt/three
"""

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.support.acls import extended
from tests.support.looker import Command, Looker, perform

MIB = 1024 * 1024
FOLDERS = ("", "p", "q")
NAMES = ("a", "b", "c", "d")
TARGETS = ("a", "b", "../q/c", "../p/d", "nowhere", "p", "../q")
SIZES = (0, 1, 10, 10, 10, 4096, 5000, 70_000)
MODES = (0o700, 0o740, 0o744, 0o755, 0o777)
ALLOWED = [
    extended(mode, users=[(4711, user)], group=5).hex() for mode, user in ((0o770, 7), (0o750, 5), (0o744, 6))
]
BIG = 0.04
"""The part of the contents that is larger than a MiB."""
TOGETHER = 0.25
"""The part of the rounds in which several mounts change something at once."""
SECOND_LOOKS_SECONDS = 15.0
UNSURE = ("EIO", "ETIMEDOUT", "EBUSY", "ESTALE", "ENOTCONN", "ECONNABORTED")
"""Errors after which a change may have happened or not. Locally there are none of them."""


def inside(path: str, name: str) -> str:
    """A path below a folder of the walk."""
    return f"{path}/{name}" if path else name


PATHS = [inside(folder, name) for folder in FOLDERS for name in NAMES]
PLACES = [*PATHS, *(f"{path}/x" for path in PATHS)]
"""What may be there: names in folders that are always there, and one in each that may be a folder."""


@dataclass(frozen=True)
class Difference:
    """Something that was not right. ``until_right``: the seconds until it was; None: never, while asked."""

    round: int
    mount: int
    command: Command
    seen: Any
    expected: Any
    changes: list[tuple[int, Command]]
    until_right: float | None


@dataclass
class Known:
    """What the local folder cannot tell: which inode is which here, and the times, which all mounts share.
    By local inode number; learned from whoever looks first."""

    numbers: dict[int, int] = field(default_factory=dict)
    times: dict[int, list[int]] = field(default_factory=dict)

    def agrees(self, seen: Any, expected: Any) -> bool:
        """Whether a mount's answer is the right one."""
        if isinstance(seen, dict) and isinstance(expected, dict):
            ino = expected["ino"]
            own = {"ino": ino, "times": expected["times"]}
            return (
                seen | own == expected
                and self.numbers.setdefault(ino, seen["ino"]) == seen["ino"]
                and self.times.setdefault(ino, seen["times"]) == seen["times"]
            )
        if isinstance(seen, list) and isinstance(expected, list):
            return len(seen) == len(expected) and all(map(self.agrees, seen, expected))
        return bool(seen == expected)


class Walk:
    """A walk with ``seed`` below ``name`` in each of ``mounts``. ``differences`` is what was found.

    ``reference`` is a folder on a file system that uses no inode number twice (tmpfs).
    """

    def __init__(self, mounts: Sequence[Path], reference: Path, seed: int, name: str = "walk") -> None:
        self._random = random.Random(seed)
        self.reference = os.path.realpath(reference)
        self._known = Known()
        self._tag = 0
        self.round = 0
        self.changed: list[str] = []  # in the last round
        self.looks = 0
        self.differences: list[Difference] = []
        self.unsure: list[tuple[Command, str, bool]] = []
        self.longest: tuple[float, int, list[tuple[int, Command]]] = (0.0, 0, [])
        (mounts[0] / name).mkdir()
        for folder in FOLDERS[1:]:
            (mounts[0] / name / folder).mkdir()
            (reference / folder).mkdir()
        self.lookers = [Looker(str(mount / name)) for mount in mounts]
        self.is_away: set[int] = set()  # mounts that are not asked now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for looker in self.lookers:
            looker.close()

    def go(self) -> None:
        """One round."""
        self.round += 1
        here = [index for index in range(len(self.lookers)) if index not in self.is_away]
        self._random.shuffle(here)
        changes = self._changes(here)
        for index in here[len(changes) :]:
            self.lookers[index].begin(self._noise(changes))
        self._make(changes)
        done = changes
        if len(changes) == 1:
            for _ in range(self._random.choice((0, 0, 1, 3))):
                self._shut(done)
                again = [(here[0], self._draw(self._paths(changes[0][1])))]
                self._make(again)
                done = done + again
        self.look(here, done)
        self._shut(done)
        self.changed = [path for _, change in done for path in self._paths(change)]

    def _make(self, changes: list[tuple[int, Command]]) -> None:
        """All at the same time."""
        before = self._concerned(changes)
        began = time.monotonic()
        for index, change in changes:
            self.lookers[index].begin([change])
        given = [self.lookers[index].answers()[0] for index, _ in changes]
        self.longest = max(self.longest, (time.monotonic() - began, self.round, changes))
        differs = [
            self._change(*change, answer, changes) for change, answer in zip(changes, given, strict=True)
        ]
        self._times_change(before | self._concerned(changes))
        self.differences += filter(None, differs)

    def _times_change(self, inos: set[int]) -> None:
        for ino in inos:
            self._known.times.pop(ino, None)

    def look(self, who: Sequence[int], changes: Sequence[tuple[int, Command]] = ()) -> None:
        """All of ``who`` look at what was concerned by ``changes`` and at some of the rest."""
        asked = [self._looks(changes) for _ in who]
        for index, looks in zip(who, asked, strict=True):
            self.lookers[index].begin(looks)
        right: dict[Command, Any] = {}
        for index, looks in zip(who, asked, strict=True):
            for command, seen in zip(looks, self.lookers[index].answers(), strict=True):
                if command not in right:
                    right[command] = perform(self.reference, command)
                self.judge(index, command, seen, right[command], changes)
        self.looks += sum(map(len, asked))

    def look_everywhere(self, index: int) -> None:
        """One mount looks at everything."""
        looks: list[Command] = [
            (how, path) for path in (*PLACES, *FOLDERS) for how in ("read", "stat", "list", "acls")
        ]
        for command, seen in zip(looks, self.lookers[index].ask(*looks), strict=True):
            self.judge(index, command, seen, perform(self.reference, command), ())

    def is_right(self, seen: Any, expected: Any) -> bool:
        """Whether a mount's answer agrees with the local one."""
        return self._known.agrees(seen, expected)

    def judge(
        self, index: int, command: Command, seen: Any, expected: Any, changes: Sequence[tuple[int, Command]]
    ) -> None:
        """Notes a difference, and how long it lasts."""
        if self._known.agrees(seen, expected):
            return
        began = time.monotonic()
        until_right = None
        while until_right is None and time.monotonic() - began < SECOND_LOOKS_SECONDS:
            if self._known.agrees(self.lookers[index].ask(command)[0], expected):
                until_right = time.monotonic() - began
        if isinstance(expected, dict):
            expected = expected | {"known": [self._known.numbers.get(expected["ino"])]}
        found = Difference(self.round, index, command, seen, expected, list(changes), until_right)
        self.differences.append(found)

    # Changing

    def _change(
        self, index: int, change: Command, answer: Any, changes: list[tuple[int, Command]]
    ) -> Difference | None:
        """Does locally what was done; if that is not sure, the mount is asked."""
        if answer in UNSURE:
            self._settle(index, change, answer)
            return None
        expected = perform(self.reference, change)
        if answer == expected:
            return None
        return Difference(self.round, index, change, answer, expected, changes, None)

    def _settle(self, index: int, change: Command, answer: str) -> None:
        looks: list[Command] = [
            (how, path)
            for path in self._paths(change)
            for how in ("read", "stat", "attribute", "acls", "readlink")
        ]
        seen = self.lookers[index].ask(*looks)
        while any(one in UNSURE for one in seen):
            seen = self.lookers[index].ask(*looks)
        known = Known(dict(self._known.numbers))  # its times may have changed
        is_undone = known.agrees(seen, [perform(self.reference, look) for look in looks])
        if not is_undone:
            perform(self.reference, change)
        self.unsure.append((change, answer, not is_undone))

    def _shut(self, changes: Sequence[tuple[int, Command]]) -> None:
        for index in {index for index, change in changes if change[0] == "sync"}:
            self.lookers[index].ask(("shut", ""))
            perform(self.reference, ("shut", ""))
            self._times_change(self._concerned(changes))

    def _changes(self, who: Sequence[int]) -> list[tuple[int, Command]]:
        """A change for the first of ``who``, or for several, if they do not concern one another."""
        chosen = [(who[0], self._draw())]
        if self._random.random() < TOGETHER:
            for index in who[1:]:
                other = self._draw()
                if all(self._is_apart(other, change) for _, change in chosen):
                    chosen.append((index, other))
                else:
                    break
        return chosen

    def _draw(self, paths: Sequence[str] = PLACES) -> Command:
        draws: list[Callable[[str], Command]] = [
            *4 * [lambda path: ("write", path, *self._content())],
            *2 * [lambda path: ("create", path, *self._content())],
            *2 * [lambda path: ("append", path, *self._content())],
            *3 * [lambda path: ("patch", path, *self._content())],
            *2 * [lambda path: ("sync", path, *self._content())],
            lambda path: ("truncate", path, self._random.choice(SIZES)),
            *3 * [lambda path: ("unlink", path)],
            *4 * [lambda path: ("rename", path, self._random.choice(PLACES))],
            *2 * [lambda path: ("link", path, self._random.choice(PLACES))],
            lambda path: ("symlink", path, self._random.choice(TARGETS)),
            *2 * [lambda path: ("mkdir", path)],
            *2 * [lambda path: ("rmdir", path)],
            *2 * [lambda path: ("chmod", path, self._random.choice(MODES))],
            lambda path: ("utime", path, self._random.randrange(1_000_000_000)),
            *2 * [lambda path: ("allow", path, self._random.choice((0, 0, 1)), self._random.choice(ALLOWED))],
            lambda path: ("disallow", path, self._random.choice((0, 1))),
            *2 * [lambda path: ("mark", path, self._next_tag())],
            lambda path: ("unmark", path),
        ]
        for _ in range(3):  # what would only fail is worth less
            change = self._random.choice(draws)(self._random.choice(paths))
            is_there = os.path.lexists(os.path.join(self.reference, str(change[1])))
            if is_there != (change[0] in ("create", "mkdir", "symlink")):
                break
        return change

    def _content(self) -> tuple[int, int]:
        is_big = self._random.random() < BIG
        return self._next_tag(), MIB + 12_345 if is_big else self._random.choice(SIZES)

    def _next_tag(self) -> int:
        self._tag += 1
        return self._tag

    # What is concerned

    @staticmethod
    def _paths(change: Command) -> list[str]:
        return [str(path) for path in (change[1], *(change[2:] if change[0] in ("rename", "link") else ()))]

    def _concerned(self, changes: Sequence[tuple[int, Command]]) -> set[int]:
        """The local inodes that changes concern: what they name, and the folders of that."""
        found = set()
        for path in (path for _, change in changes for path in self._paths(change)):
            full = os.path.join(self.reference, path)
            for one in (full, os.path.dirname(full)):
                for ask in (os.stat, os.lstat):
                    with contextlib.suppress(OSError):
                        found.add(ask(one).st_ino)
        return found

    def _is_apart(self, one: Command, other: Command) -> bool:
        """Whether it makes no difference which of them is first. Of what symlinks are in, nobody says so."""
        names, others = (
            [os.path.join(self.reference, path) for path in self._paths(change)] for change in (one, other)
        )
        if any(os.path.realpath(path) != path for path in (*names, *others)):
            return False
        if any(f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/") for a in names for b in others):
            return False
        return not self._named(one) & self._named(other)

    def _named(self, change: Command) -> set[int]:
        found = set()
        for path in self._paths(change):
            for ask in (os.stat, os.lstat):
                with contextlib.suppress(OSError):
                    found.add(ask(os.path.join(self.reference, path)).st_ino)
        return found

    # Looking

    def _noise(self, changes: Sequence[tuple[int, Command]]) -> list[Command]:
        """What others look at meanwhile: half of it at what changes, so that old answers are on their way."""
        ways = ("stat", "read", "list", "scan", "follow", "attribute", "acls")
        paths = [path for _, change in changes for path in self._paths(change)]
        count = self._random.choice((0, 2, 10, 30))
        near = [("stat", self._random.choice(paths)) for _ in range(count)]
        return [command for pair in zip(near, self._draw_looks(ways, count), strict=True) for command in pair]

    def _looks(self, changes: Sequence[tuple[int, Command]]) -> list[Command]:
        ways = ("stat", "read", "map", "follow", "attribute", "acls", "readlink")
        looks: list[Command] = []
        for _, change in changes:
            for path in self._paths(change):
                looks += [(way, path) for way in self._random.sample(ways, 3)]
                looks.append((self._random.choice(("list", "scan", "stat")), os.path.dirname(path)))
        self._random.shuffle(looks)
        return looks + self._draw_looks((*ways, "list", "scan"), self._random.choice((2, 5, 20)))

    def _draw_looks(self, ways: Sequence[str], count: int) -> list[Command]:
        drawn = self._random.choices(ways, k=count)
        return [(way, self._random.choice(FOLDERS if way in ("list", "scan") else PLACES)) for way in drawn]


@contextlib.contextmanager
def local_folder() -> Iterator[Path]:
    """A folder in memory, for ``reference``."""
    folder = Path(tempfile.mkdtemp(prefix="never-stale-", dir="/dev/shm"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def told(difference: Difference) -> str:
    """A difference in lines."""
    return "\n  ".join(
        (
            f"round {difference.round}: mount {difference.mount}: {difference.command}",
            f"seen      {difference.seen}",
            f"expected  {difference.expected}",
            f"changes   {difference.changes}",
            f"right after {difference.until_right} s",
        )
    )


def main() -> int:
    """The program: prints what it finds; its exit status is 1 if that is anything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mounts", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    shown = 0
    name = f"walk-{options.seed}-{os.getpid()}"
    with local_folder() as reference, Walk(options.mounts, reference, options.seed, name) as walk:
        while walk.round < options.rounds and len(walk.differences) < 20:
            walk.go()
            for difference in walk.differences[shown:]:
                print(f"seed {options.seed}: {told(difference)}", flush=True)
            shown = len(walk.differences)
            if walk.round % 1000 == 0:
                seconds = time.monotonic() - began
                pace = f"{walk.round / seconds:.0f} rounds/s, {walk.looks / seconds:.0f} looks/s"
                print(f"{walk.round} rounds, {pace}, {shown} differences, longest {walk.longest}", flush=True)
    print(f"seed {options.seed}: {walk.round} rounds, {walk.looks} looks, {shown} differences")
    return 1 if walk.differences else 0


if __name__ == "__main__":
    sys.exit(main())
