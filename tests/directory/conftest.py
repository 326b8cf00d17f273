"""The directory server of a test, and who asks it: two users of one team, and root."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.directory import ALICE, BOB, TEAM, DirectoryRealm, User
from tests.support.storage import World


@pytest.fixture
def realm(tmp_path: Path) -> Iterator[DirectoryRealm]:
    realm = DirectoryRealm(tmp_path)
    yield realm
    realm.server.close()


@pytest.fixture
def alice(realm: DirectoryRealm) -> User:
    return realm.user(ALICE, ALICE, TEAM)


@pytest.fixture
def bob(realm: DirectoryRealm) -> User:
    return realm.user(BOB, BOB, TEAM)


@pytest.fixture
def root(realm: DirectoryRealm) -> User:
    return realm.user(0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()
