"""The walk that looks for anything old (tests.support.never_stale) while things break.

Services and the workers of mounts are killed, services also in the middle of a change, and mounts are stopped
for longer than their lease. As a program it makes a realm and three mounts of its own::

    python -m tests.support.mishaps --seconds 600 --seed 1
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.looker import Looker, perform
from tests.support.mounts import RealMount
from tests.support.never_stale import PLACES, Difference, Walk, local_folder, told
from tests.support.realm import RealRealm

LEASE_SECONDS = 2.0
SERVICES = ("directory", "directory", "lock", "files-1", "files-2")


def short_leases(seconds: float = LEASE_SECONDS) -> tuple[str, ...]:
    """Options of a realm in which a test need not wait long for a lease to end."""
    return ("--set", f"directory.lease-seconds={seconds}")


class Mishaps:
    """What happens to ``walk`` on ``mounts`` of ``realm``, which has ``short_leases``.

    ``answered_while_stopped`` counts what the kernel answered for a mount that was stopped, ``waited`` how
    long others' changes took then, in seconds.
    """

    def __init__(self, realm: RealRealm, mounts: Sequence[RealMount], walk: Walk, seed: int) -> None:
        self._realm = realm
        self._mounts = mounts
        self._walk = walk
        self._random = random.Random(seed)
        self.count: Counter[str] = Counter()
        self.answered_while_stopped = 0
        self.waited: list[float] = []
        for mount in mounts:
            mount.expect_log(r"the worker \d+ died \(status -9\)")

    def happen(self) -> None:
        """One of them, and what is to be seen then."""
        which = self._random.choice(("service", "service", "pause", "worker", "stop"))
        if which == "pause":
            self.pause_directory()
        elif which == "service":
            self.kill_service(self._random.choice(SERVICES))
        elif which == "worker":
            self.kill_worker(self._random.randrange(len(self._mounts)))
        else:
            index = self._random.randrange(len(self._mounts))
            self.stop(index, kills_directory=self._random.random() < 0.5)

    def kill_service(self, name: str) -> None:
        """While a round goes on; a few more follow while it is away and comes back."""
        self.count[name] += 1
        pids: list[int] = []
        delay = self._random.uniform(0, 0.03)
        killer = threading.Timer(delay, lambda: pids.append(self._realm.kill(name)))
        killer.start()
        for _ in range(5):
            self._walk.go()
        killer.join()
        self._realm.wait_running(name, other_than=pids[0])

    def pause_directory(self) -> None:
        """It stands still for longer than all leases: nothing is believed, and calls wait."""
        self.count["pause"] += 1
        pid = self._realm.pid("directory")
        os.kill(pid, signal.SIGSTOP)
        going_on = threading.Timer(LEASE_SECONDS + 1, os.kill, (pid, signal.SIGCONT))
        going_on.start()
        for _ in range(5):
            self._walk.go()
        going_on.join()

    def kill_worker(self, index: int) -> None:
        """Its keeper starts another one. What the kernel was told by the first still holds, or is dropped."""
        self.count["worker"] += 1
        os.kill(self._mounts[index].record().worker_pid, signal.SIGKILL)
        self._walk.go()
        self._walk.look([index])

    def stop(self, index: int, *, kills_directory: bool = False) -> None:
        """A mount stands still for longer than its lease; the others change things meanwhile. A directory
        that begins anew must wait for it though it does not know what it was promised."""
        self.count["stop"] += 1
        self._walk.look_everywhere(index)
        with contextlib.ExitStack() as watchers, self._stopped(index):
            began = time.monotonic()
            if kills_directory:
                self._realm.kill("directory")
            while time.monotonic() - began < LEASE_SECONDS + 1:
                asked = time.monotonic()
                self._walk.go()
                self.waited.append(time.monotonic() - asked)
                self._watch(index, watchers.enter_context(Looker(self._walk.lookers[index].folder)))
            self._walk.is_away.remove(index)
            os.kill(self._mounts[index].record().worker_pid, signal.SIGCONT)
            self._walk.look([index])
        self._walk.look_everywhere(index)

    def _watch(self, index: int, watcher: Looker) -> None:
        """What the kernel answers alone while its mount stands still is right, or it does not answer."""
        for command in [("stat", path) for path in (*self._walk.changed, self._random.choice(PLACES))]:
            watcher.begin([command])
            try:
                seen = watcher.answers(0.1)[0]
            except TimeoutError:
                return
            self.answered_while_stopped += 1
            expected = perform(self._walk.reference, command)
            if not self._walk.is_right(seen, expected):
                found = Difference(self._walk.round, index, command, seen, expected, [], None)
                self._walk.differences.append(found)

    @contextlib.contextmanager
    def _stopped(self, index: int) -> Iterator[None]:
        record = self._mounts[index].record()
        pids = [record.pid, record.worker_pid]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        self._walk.is_away.add(index)
        try:
            yield
        finally:
            self._walk.is_away.discard(index)
            for pid in reversed(pids):
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def three_mounts(realm: RealRealm) -> Iterator[list[RealMount]]:
    """Of one user, who is made."""
    realm.join("alice")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RealMount(realm, f"stale-{n}", "alice")) for n in (1, 2, 3)]


def main() -> int:
    """The program: prints what it finds; its exit status is 1 if that is anything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=100, help="rounds between two mishaps")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="mishaps-") as folder,
        RealRealm(Path(folder) / "realm", options=short_leases()) as realm,
        three_mounts(realm) as mounts,
        local_folder() as reference,
        Walk([mount.path for mount in mounts], reference, options.seed) as walk,
    ):
        mishaps = Mishaps(realm, mounts, walk, options.seed)
        end = time.monotonic() + options.seconds
        shown = 0
        while time.monotonic() < end and len(walk.differences) < 20:
            for _ in range(options.every):
                walk.go()
            mishaps.happen()
            for difference in walk.differences[shown:]:
                print(f"seed {options.seed}: {told(difference)}", flush=True)
            shown = len(walk.differences)
            slowest = max(mishaps.waited, default=0)
            print(
                f"{walk.round} rounds, {walk.looks} looks, {dict(mishaps.count)}, {shown} differences, "
                f"unsure {walk.unsure}, answered while stopped {mishaps.answered_while_stopped}, "
                f"a change waited {slowest:.1f} s, longest {walk.longest}",
                flush=True,
            )
    return 1 if walk.differences else 0


if __name__ == "__main__":
    sys.exit(main())
