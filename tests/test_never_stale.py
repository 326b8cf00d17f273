"""What is acknowledged on one mount is what all mounts show, through the kernel's caches, whatever breaks."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mishaps import Mishaps, short_leases, three_mounts
from tests.support.never_stale import Walk, local_folder, told
from tests.support.realm import RealRealm

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

ROUNDS = 300
BETWEEN = 10


@pytest.fixture
def reference() -> Iterator[Path]:
    with local_folder() as folder:
        yield folder


def test_a_walk_through_three_mounts(realm: RealRealm, reference: Path) -> None:
    with three_mounts(realm) as mounts, Walk([mount.path for mount in mounts], reference, seed=1) as walk:
        for _ in range(ROUNDS):
            walk.go()
            assert not walk.differences, "\n".join(map(told, walk.differences))
    assert not walk.unsure


def test_a_walk_while_things_break(tmp_path: Path, reference: Path) -> None:
    with (
        RealRealm(tmp_path / "realm", options=short_leases()) as realm,
        three_mounts(realm) as mounts,
        Walk([mount.path for mount in mounts], reference, seed=2) as walk,
    ):
        mishaps = Mishaps(realm, mounts, walk, seed=2)
        happenings: list[Callable[[], None]] = [
            lambda: mishaps.kill_service("directory"),
            lambda: mishaps.kill_worker(0),
            lambda: mishaps.stop(1),
            lambda: mishaps.stop(2, kills_directory=True),
            lambda: mishaps.kill_service("lock"),
            mishaps.pause_directory,
        ]
        for happens in happenings:
            for _ in range(BETWEEN):
                walk.go()
            happens()
            assert not walk.differences, "\n".join(map(told, walk.differences))
