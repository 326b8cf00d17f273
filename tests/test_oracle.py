"""Two mounts in turn do what a local directory does: see tests/support/oracle."""

import os
from collections.abc import Iterator

import pytest

from tests.support.oracle.run import Pair, run
from tests.support.twins import World

pytestmark = [
    pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root lets other users in, and becomes them"),
]

SEEDS = (1, 2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two mounts and a local directory, where other users can go."""
    folder = tmp_path_factory.mktemp("oracle")
    tmp_path_factory.getbasetemp().chmod(0o711)
    with Pair(folder) as world:
        yield world


@pytest.mark.parametrize("seed", SEEDS)
def test_two_mounts_in_turn_do_what_a_local_directory_does(world: World, seed: int) -> None:
    run(world, 10, 40, seed=seed)
