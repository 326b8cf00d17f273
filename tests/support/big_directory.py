"""A directory of very many entries: made in batches, listed while it changes, in how much memory.

As a program it makes a realm and two mounts of its own, and prints what it took::

    python -m tests.support.big_directory --entries 1000000
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clients.directory import DirectoryClient
from dfs.logins import own_services
from tests.support.mounts import RealMount
from tests.support.realm import RealRealm
from wire.limits import OPS_MAX
from wire.messages.directory import Create

CHANGE_EVERY = 500


def name_of(number: int) -> str:
    """Of an entry."""
    return f"entry-{number:07}"


def load(directory: DirectoryClient, parent: int, entries: int) -> None:
    """Makes so many empty files, as many as a request may."""
    for first in range(0, entries, OPS_MAX):
        numbers = range(first, min(first + OPS_MAX, entries))
        directory.mutate([Create(parent, name_of(number).encode(), 0o100644) for number in numbers])


def fill(realm: RealRealm, user: str, folder: Path, entries: int) -> None:
    """``load`` of a folder in a mount, by the login in the state folder of this process."""
    with own_services(realm.url, user) as services:
        load(services.directory, folder.stat().st_ino, entries)


class Listing:
    """A listing of ``here`` while some names are made, removed and renamed ``there``, on another mount.

    ``told`` has how often each name was told, ``changed`` those that came, went or were renamed meanwhile.
    """

    def __init__(self, here: Path, there: Path) -> None:
        self._there = there
        self.told: Counter[str] = Counter()
        self.changed: set[str] = set()
        self._numbers = iter(range(0, 10**9, 7))
        with os.scandir(here) as entries:
            for count, entry in enumerate(entries):
                assert entry.is_file(follow_symlinks=False)
                self.told[entry.name] += 1
                if count % CHANGE_EVERY == 0:
                    self._change()

    def missing(self, entries: int) -> Iterator[str]:
        """What was there all the time and was not told exactly once."""
        for number in range(entries):
            name = name_of(number)
            if name not in self.changed and self.told[name] != 1:
                yield name

    def _change(self) -> None:
        removed, renamed = (name_of(next(self._numbers)) for _ in range(2))
        made, after = f"made-{len(self.changed)}", f"renamed-{len(self.changed)}"
        (self._there / made).touch()
        for old, change in (
            (removed, os.unlink),
            (renamed, lambda path: os.rename(path, self._there / after)),
        ):
            if (self._there / old).exists():
                change(self._there / old)
        self.changed |= {removed, renamed, made, after}


def resident_mib(pid: int) -> int:
    """What a process has in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="big-", dir=options.folder) as folder,
        RealRealm(Path(folder) / "realm") as realm,
    ):
        realm.join("bert")
        os.environ["DFS_STATE"] = str(realm.state("bert"))
        with RealMount(realm, "one", "bert") as one, RealMount(realm, "two", "bert") as two:
            return measure(realm, one, two, options.entries)


def measure(realm: RealRealm, one: RealMount, two: RealMount, entries: int) -> int:
    """Makes, lists three times, and says what it took; the program's exit status."""
    (one.path / "many").mkdir()
    began = time.monotonic()
    fill(realm, "bert", one.path / "many", entries)
    print(f"{entries} entries made in {time.monotonic() - began:.0f} s", flush=True)
    status = 0
    for turn in range(3):
        pids = {"mount": one.record().worker_pid, "directory": realm.pid("directory")}
        before = {who: resident_mib(pid) for who, pid in pids.items()}
        began = time.monotonic()
        listing = Listing(one.path / "many", two.path / "many")
        seconds = time.monotonic() - began
        grown = ", ".join(f"{who} {before[who]} to {resident_mib(pid)} MiB" for who, pid in pids.items())
        print(f"{sum(listing.told.values())} listed in {seconds:.0f} s, {grown}", flush=True)
        if missing := list(listing.missing(entries)) if not turn else []:
            print(f"not told once: {len(missing)}, as {missing[:5]}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
