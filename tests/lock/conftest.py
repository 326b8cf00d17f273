"""The lock server of a test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lock import LockRealm


@pytest.fixture
def house(tmp_path: Path) -> Iterator[LockRealm]:
    house = LockRealm(tmp_path)
    yield house
    house.close()
