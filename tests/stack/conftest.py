"""A realm in this process that the tests of a module share, with two clients in it."""

from collections.abc import Iterator

import pytest

from tests.support.stack import Client, Stack


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A realm for tests that break nothing in it."""
    with Stack(tmp_path_factory.mktemp("shared")) as stack:
        yield stack


@pytest.fixture(scope="module")
def pair(shared: Stack) -> tuple[Client, Client]:
    """Two clients of the same user in it."""
    return shared.client(lock_wait_seconds=0.2), shared.client(lock_wait_seconds=0.2)


@pytest.fixture
def place(pair: tuple[Client, Client], request: pytest.FixtureRequest) -> str:
    """A fresh directory."""
    path = f"/{request.node.name}"
    pair[0].mkdir(path)
    return path
