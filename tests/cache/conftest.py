"""A store of local copies, and one that is complete."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cache.copies import CopyStore, LocalCopy
from tests.support.copies import LIMIT
from tests.support.lending import filled


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CopyStore]:
    with closing(CopyStore(tmp_path / "cache", LIMIT)) as store:
        yield store


@pytest.fixture
def copy(store: CopyStore) -> LocalCopy:
    return filled(store)
