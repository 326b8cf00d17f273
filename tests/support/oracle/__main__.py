"""As a command: ``python -m tests.support.oracle --examples 1000 --steps 100 --seed 1``.

Examples are made in batches, each of a seed of its own that is printed: ``--seed`` and ``--examples`` of one
batch do the same again.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.support.oracle.run import BATCH, Pair, run
from tests.support.realm import RealRealm
from tests.support.twins import World


def main() -> int:
    """The exit status: 1 if there was a difference."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.oracle", description=__doc__)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shrink", action="store_true", help="look for fewer steps that differ")
    parser.add_argument("--go-on", action="store_true", help="with the next batch after a difference")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="dfs-oracle-", ignore_cleanup_errors=True) as folder,
        RealRealm(Path(folder) / "realm") as realm,
    ):
        realm.join("admin")
        with Pair(realm, "native") as world:
            different = compare(world, given)
    return 1 if different else 0


def compare(world: World, given: argparse.Namespace) -> int:
    """How many batches found a difference."""
    different = 0
    for seed, first in enumerate(range(0, given.examples, BATCH), given.seed):
        count, began = min(BATCH, given.examples - first), time.monotonic()
        print(f"seed {seed}: {count} examples of {given.steps} steps", end="", flush=True)
        try:
            run(world, count, given.steps, seed=seed, shrink=given.shrink)
        except (AssertionError, ExceptionGroup) as difference:
            different += 1
            inner = getattr(difference, "exceptions", ())  # what was found first, if it was not found again
            print("", difference, *inner, *getattr(difference, "__notes__", ()), sep="\n", flush=True)
            if not given.go_on:
                break
        else:
            print(f", the same, {time.monotonic() - began:.0f} s", flush=True)
    return different


if __name__ == "__main__":
    sys.exit(main())
