"""Fixtures of real processes, and what this machine can test."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import sweep
from tests.support.realm import RealRealm


def pytest_sessionstart() -> None:
    """What runs that were killed have left goes first."""
    sweep()


def pytest_report_header() -> str:
    """What this machine can test."""
    can = {
        "root": os.geteuid() == 0,
        "/dev/fuse": os.access("/dev/fuse", os.R_OK | os.W_OK),
        "fusermount3": shutil.which("fusermount3") is not None,
    }
    return "this machine has: " + ", ".join(f"{name} {'yes' if has else 'NO'}" for name, has in can.items())


@pytest.fixture
def realm(tmp_path: Path) -> Iterator[RealRealm]:
    """A realm of this test's own."""
    with RealRealm(tmp_path / "realm") as realm:
        yield realm


@pytest.fixture(scope="session")
def shared_realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRealm]:
    """A realm for tests that break nothing in it; its admin is logged in as ``admin``. Each test uses users
    and names of its own."""
    with RealRealm(tmp_path_factory.mktemp("shared") / "realm") as realm:
        realm.join("admin")
        yield realm
