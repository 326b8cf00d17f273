"""What programs do here, they do as in a local directory: see tests/support/oracle."""

import mmap
import os
from collections.abc import Iterator

import pytest

from tests.support.exerciser import Exerciser
from tests.support.oracle.flags import differences
from tests.support.oracle.run import Pair, run
from tests.support.realm import RealRealm
from tests.support.twins import World

pytestmark = [
    pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root lets other users in, and becomes them"),
    pytest.mark.timeout(3600),
]

SEEDS = tuple(range(1, int(os.environ.get("ORACLE_SEEDS", "2")) + 1))
EVERY = os.environ.get("OPEN_FLAGS_EVERY", "")
"""Of 245 760 cases one in so many is tried. A prime: every flag is in the sample with every target, also in
the smaller one through libfuse, which takes ten times as long for each."""


@pytest.fixture(scope="module")
def native(shared_realm: RealRealm) -> Iterator[World]:
    """Two mounts and a local directory, where other users can go."""
    with Pair(shared_realm, "native") as world:
        yield world


@pytest.fixture(scope="module")
def fusepy(shared_realm: RealRealm) -> Iterator[World]:
    """The same through libfuse, with one mount."""
    with Pair(shared_realm, "fusepy", has_second=False) as world:
        yield world


@pytest.mark.parametrize("seed", SEEDS)
def test_two_mounts_in_turn_do_what_a_local_directory_does(native: World, seed: int) -> None:
    run(native, 8, 40, seed=seed)


@pytest.mark.parametrize(("binding", "every"), [("native", 421), ("fusepy", 809)])
def test_open_does_with_all_flags_what_it_does_locally(
    binding: str, every: int, request: pytest.FixtureRequest
) -> None:
    world: World = request.getfixturevalue(binding)
    there, here = world.mounts[0] / "flags", world.local / "flags"
    found = list(differences(there, here, int(EVERY or every), has_nameless=binding == "native"))
    told = [f"{case}\n  {there}\n  {here}" for case, there, here in found]
    assert not told, f"{len(told)} differ\n" + "\n".join(told[:40])


@pytest.mark.parametrize("seed", SEEDS)
def test_one_file_is_written_through_two_mounts_in_turn(native: World, seed: int) -> None:
    exerciser = Exerciser(seed, native.mounts, f"exercised-{seed}")
    try:
        exerciser.run(8)
    except BaseException:
        print(f"seed {seed}\n" + "\n".join(exerciser.said))
        raise


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDONLY | os.O_APPEND, os.O_WRONLY, os.O_RDWR])
def test_what_was_mapped_does_not_come_into_a_file_that_open_truncates(native: World, flags: int) -> None:
    path = native.mounts[0] / f"truncated-{flags}"
    with path.open("w+b") as file:
        os.truncate(path, 5000)
        with mmap.mmap(file.fileno(), 5000) as mapped:
            mapped[100:101] = b"x"
            os.close(os.open(path, flags | os.O_TRUNC))
            assert path.stat().st_size == 0
    assert path.read_bytes() == b""
