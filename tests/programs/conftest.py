"""Two mounts of one user, and a fresh folder for each test."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs.sides import Sides
from tests.support.mounts import RealMount
from tests.support.realm import RealRealm


@pytest.fixture(scope="session")
def mounts(shared_realm: RealRealm) -> Iterator[tuple[Path, Path]]:
    """Two mounts of ``selma``."""
    if not os.access("/dev/fuse", os.W_OK):
        pytest.skip("there is no /dev/fuse")
    shared_realm.join("selma")
    with (
        RealMount(shared_realm, "of-selma-1", "selma") as one,
        RealMount(shared_realm, "of-selma-2", "selma") as two,
    ):
        yield one.path, two.path


@pytest.fixture
def sides(mounts: tuple[Path, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Sides]:
    """Empty folders of the same name and mode; what is in the one of DFS is removed afterwards."""
    name = request.node.name
    (mounts[0] / name).mkdir()
    for folder in (tmp_path / name, tmp_path / "home"):
        folder.mkdir()
    yield Sides(tmp_path / name, (mounts[0] / name, mounts[1] / name), tmp_path / "home")
    shutil.rmtree(mounts[1] / name)
