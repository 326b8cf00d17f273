"""Two mounts of one user, and a fresh folder for each test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs.sides import Sides
from tests.support.mounts import RealMount
from tests.support.realm import RealRealm


@pytest.fixture(scope="session")
def mounts(shared_realm: RealRealm) -> Iterator[tuple[Path, Path]]:
    """Two mounts of ``petra``."""
    if not os.access("/dev/fuse", os.W_OK):
        pytest.skip("there is no /dev/fuse")
    shared_realm.join("petra")
    with (
        RealMount(shared_realm, "of-petra-1", "petra") as one,
        RealMount(shared_realm, "of-petra-2", "petra") as two,
    ):
        yield one.path, two.path


@pytest.fixture
def sides(mounts: tuple[Path, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Sides:
    """Empty folders of the same name and mode."""
    name = request.node.name
    (mounts[0] / name).mkdir()
    for folder in (tmp_path / name, tmp_path / "home"):
        folder.mkdir()
    return Sides(tmp_path / name, (mounts[0] / name, mounts[1] / name), tmp_path / "home")
