"""The authentication server of a test, and its first users."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.auth import House
from wire.messages.auth import Session


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.server.close()


@pytest.fixture
def alice(house: House) -> Session:
    """The first user, hence the admin."""
    house.signup("alice")
    return house.login("alice")


@pytest.fixture
def bob(house: House, alice: Session) -> Session:
    """An ordinary user."""
    house.signup("bob")
    return house.login("bob")
