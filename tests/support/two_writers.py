"""Two mounts, a program on each, at work on the same things at the same time: no error, nothing lost.

``git``: each commits to a clone of its own, pushes to a branch of its own in one bare repository, and fetches
the other's. ``sqlite``: each makes transactions in one database. Nothing is tried again. On mounts that are
there already::

    python -m tests.support.two_writers git --seconds 300 /mnt/one/folder /mnt/two/folder

The folders are one empty folder as two mounts show it. Any error of a program ends it all; the exit status is
then 1, and what went wrong is printed.
"""

import argparse
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

BUSY_SECONDS = 30.0
PAUSE_SECONDS = 0.02
STEP_SECONDS = 300.0


class Failed(Exception):
    """A program said that something went wrong."""


def git(folder: Path, *words: str) -> str:
    """Runs git, with no settings but these. Raises Failed."""
    who = {"GIT_AUTHOR_NAME": "Paula", "GIT_AUTHOR_EMAIL": "paula@example.org"}
    who |= {"GIT_COMMITTER_NAME": "Paula", "GIT_COMMITTER_EMAIL": "paula@example.org"}
    none = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", *words],
        cwd=folder,
        env=os.environ | who | none,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=STEP_SECONDS,
        check=False,
    )
    if done.returncode:
        raise Failed(f"git {' '.join(words)} in {folder}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


class Git:
    """Two clones of one bare repository, which is given it in the first folder."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        git(folders[0], "init", "-q", "--bare", "-b", "main", "shared")

    def work(self, index: int, seconds: float) -> int:
        """Commits, pushes and fetches. How many commits; raises Failed."""
        folder, branch, other = self._folders[index], f"branch-{index}", f"origin/branch-{1 - index}"
        git(folder, "init", "-q", "-b", branch, f"work-{index}")
        work = folder / f"work-{index}"
        git(work, "remote", "add", "origin", "../shared")
        end = time.monotonic() + seconds
        count, seen = 0, 0
        while time.monotonic() < end:
            count += 1
            (work / f"file-{count % 50}").write_text(f"change {count} of {branch}\n")
            (work / "log").open("a").write(f"{count}\n")
            git(work, "add", "-A")
            git(work, "commit", "-q", "-m", f"{branch} {count}")
            git(work, "push", "-q", "origin", branch)
            git(work, "fetch", "-q", "origin")
            if git(work, "branch", "-r", "--list", other):
                found = int(git(work, "rev-list", "--count", other))
                if found < seen:
                    raise Failed(f"{other} had {seen} commits, and has {found}")
                seen = found
        return count

    def check(self, counts: Sequence[int]) -> None:
        """Everything that was pushed is there, on both mounts. Raises Failed."""
        for folder in self._folders:
            shared = folder / "shared"
            git(shared, "fsck", "--strict")
            for index, count in enumerate(counts):
                if git(shared, "log", "--format=%s", f"branch-{index}").split("\n") != [
                    f"branch-{index} {number}" for number in range(count, 0, -1)
                ]:
                    raise Failed(f"{shared}: branch-{index} has not its {count} commits")
                git(folder / f"work-{index}", "fsck", "--strict")
                if git(folder / f"work-{index}", "status", "--porcelain"):
                    raise Failed(f"work-{index} is not as it was committed")


class Sqlite:
    """One database: each counts up a number that both share, and writes a row in the same transaction."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._paths = [folder / "base.db" for folder in folders]
        with closing(self._open(0)) as base:
            base.execute("create table total (number integer)")
            base.execute("create table rows (number integer primary key, of integer, text text)")
            base.execute("insert into total values (0)")

    def work(self, index: int, seconds: float) -> int:
        """How many transactions; raises Failed.

        Between two of them there is a pause, as in a program that has something else to do: SQLite asks again
        after up to 100 ms, so that a program without pauses keeps others away on a local disk too.
        """
        end = time.monotonic() + seconds
        count = 0
        try:
            with closing(self._open(index)) as base:
                while time.monotonic() < end:
                    base.execute("begin immediate")
                    (total,) = base.execute("select number from total").fetchone()
                    base.execute("update total set number = ?", (total + 1,))
                    base.execute(
                        "insert into rows values (?, ?, ?)", (total + 1, index, "x" * (total % 3000))
                    )
                    base.execute("commit")
                    count += 1
                    time.sleep(PAUSE_SECONDS)
        except sqlite3.Error as error:
            raise Failed(f"sqlite of {index}, after {count} transactions: {error}") from error
        return count

    def check(self, counts: Sequence[int]) -> None:
        """Every transaction is there, on both mounts. Raises Failed."""
        for index in range(len(self._paths)):
            with closing(self._open(index)) as base:
                found = [
                    base.execute("select number, (select count(*) from rows) from total").fetchone(),
                    dict(base.execute("select of, count(*) from rows group by of").fetchall()),
                    base.execute("pragma integrity_check").fetchall(),
                ]
            if found != [
                (sum(counts), sum(counts)),
                {index: count for index, count in enumerate(counts) if count},
                [("ok",)],
            ]:
                raise Failed(f"{self._paths[index]}: {found}, and {counts} were made")

    def _open(self, index: int) -> sqlite3.Connection:
        return sqlite3.connect(self._paths[index], timeout=BUSY_SECONDS, isolation_level=None)


KINDS: dict[str, type[Git] | type[Sqlite]] = {"git": Git, "sqlite": Sqlite}


def run(kind: str, folders: Sequence[Path], seconds: float) -> list[int]:
    """How often each did it. Raises Failed."""
    job = KINDS[kind](folders)
    # Processes: SQLite's locks are a process's, so that two threads of one would not exclude each other.
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        counts = [pool.submit(job.work, index, seconds) for index in (0, 1)]
        job.check([count.result() for count in counts])
    return [count.result() for count in counts]


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folders", nargs=2, type=Path)
    parser.add_argument("--seconds", type=float, default=300.0)
    options = parser.parse_args()
    try:
        counts = run(options.kind, options.folders, options.seconds)
    except Failed as failed:
        print(failed)
        return 1
    print(f"{options.kind}: {counts[0]} and {counts[1]} in {options.seconds:.0f} s, no error, nothing lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
