"""The file servers of a test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.files import Realm


@pytest.fixture
def realm(tmp_path: Path) -> Iterator[Realm]:
    realm = Realm(tmp_path)
    yield realm
    for server in realm.servers:
        server.close()
