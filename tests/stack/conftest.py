"""Two clients: in a realm that the tests of a module share, and in a realm of a test's own."""

import pytest

from tests.support.stack import Client, Stack


@pytest.fixture(scope="module")
def pair(shared_stack: Stack) -> tuple[Client, Client]:
    """They are of the same user."""
    return shared_stack.client(lock_wait_seconds=0.2), shared_stack.client(lock_wait_seconds=0.2)


@pytest.fixture
def place(pair: tuple[Client, Client], request: pytest.FixtureRequest) -> str:
    """A fresh directory."""
    path = f"/{request.node.name}"
    pair[0].mkdir(path)
    return path


@pytest.fixture
def leased(stack: Stack) -> tuple[Client, Client]:
    """They believe what they are promised."""
    return stack.client(promised=True), stack.client(promised=True)
