"""What is acknowledged on one mount is what all mounts show, through the kernel's caches."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import RealMount
from tests.support.never_stale import Walk, local_folder, told
from tests.support.realm import RealRealm

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

ROUNDS = 300


@pytest.fixture
def mounts(realm: RealRealm) -> Iterator[list[RealMount]]:
    """Three of one user."""
    realm.join("alice")
    with (
        RealMount(realm, "stale-1", "alice") as one,
        RealMount(realm, "stale-2", "alice") as two,
        RealMount(realm, "stale-3", "alice") as three,
    ):
        yield [one, two, three]


@pytest.fixture
def reference() -> Iterator[Path]:
    with local_folder() as folder:
        yield folder


def test_a_walk_through_three_mounts(mounts: list[RealMount], reference: Path) -> None:
    with Walk([mount.path for mount in mounts], reference, seed=1) as walk:
        for _ in range(ROUNDS):
            walk.go()
            assert not walk.differences, "\n".join(map(told, walk.differences))
    assert not walk.unsure
