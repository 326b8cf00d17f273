"""One folder of the local file system and one of DFS: the same is done to both, and must come to the same.

DFS has two mounts, and each command runs through the one that the command before did not run through: what
one of them left is what the next one finds.
"""

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from tests.support.same_tree import COPIES, differences

SECONDS = 600.0
"""For one program, on a machine that does much else."""
WHEN = "1500000000 +0000"

SETTINGS = ("GIT_", "PYTHON", "MAKE", "MFLAGS")
"""How variables begin by which whoever runs the tests tells his programs something."""


class Sides:
    """``local`` and ``mounts`` are the folders. Programs have their settings in ``home``, and find none."""

    def __init__(self, local: Path, mounts: tuple[Path, Path], home: Path) -> None:
        self.local = local
        self.mounts = mounts
        self._turns = itertools.cycle(mounts)
        who = {"NAME": "Paula", "EMAIL": "paula@example.org", "DATE": WHEN}
        names = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
        settings = {
            "GIT_CONFIG_NOSYSTEM": "1",
            "LC_ALL": "C",
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home),
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith(SETTINGS)}
        self.environment = kept | names | settings | {"TERM": "dumb"}

    @property
    def all(self) -> tuple[Path, Path, Path]:
        """The local folder, and the one of DFS twice."""
        return self.local, *self.mounts

    def run(self, *words: str, inside: str = "", **environment: str) -> str:
        """Runs a program in both folders, or in ``inside`` of both. What it printed, with the folder's name
        as ``HERE``. Asserts that both say the same, and that all went well."""
        expected, found = (
            masked(self.run_in(folder / inside, *words, **environment), folder)
            for folder in (self.local, next(self._turns))
        )
        assert found == expected, f"{words}: on DFS\n{found}\nand locally\n{expected}"
        return found

    def shell(self, script: str, inside: str = "", **environment: str) -> str:
        """``run`` of a script, which ends at the first command that fails."""
        return self.run("sh", "-ec", script, inside=inside, **environment)

    def do(self, what: Callable[[Path], object]) -> None:
        """Calls ``what`` with both folders. Asserts that it returns the same."""
        expected = what(self.local)
        assert what(next(self._turns)) == expected

    def check(self, *ignored: str, skipped: Collection[str] = ()) -> None:
        """Asserts that both mounts show what the local folder shows; see tests.support.same_tree."""
        for folder in (self.local, self.mounts[0]):
            os.utime(folder, ns=(0, 0))  # these two themselves were not changed at the same time
        for mount in self.mounts:
            found = differences(self.local, mount, {*COPIES, *ignored}, skipped)
            assert not found, "\n".join(map(ascii, found))

    def run_in(self, folder: Path, *words: str, **environment: str) -> str:
        """Runs a program in one folder. Its output; asserts that all went well."""
        done = subprocess.run(
            words,
            cwd=folder,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{words} in {folder}: {done.returncode}\n{done.stdout}"
        return done.stdout


def masked(text: str, folder: Path) -> str:
    """What was printed, without the folder's name. (Python and git say it with symlinks resolved.)"""
    return text.replace(str(folder.resolve()), "HERE").replace(str(folder), "HERE")


def need(*programs: str) -> pytest.MarkDecorator:
    """Skips on a machine without them."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"there is no {', '.join(missing)} here")
