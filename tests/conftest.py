"""Fixtures that many tests use, and what this machine can test."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.processes import mark_children, sweep, sweep_own
from tests.support.realm import RealRealm
from tests.support.stack import Stack

# An example takes as long as a busy machine lets it take.
settings.register_profile("dfs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dfs")

LONG = (
    "test_mount_recovery",
    "stack/test_faults",
    "test_mount_worker",
    "test_takeover",
    "test_never_stale",
    "test_mount_passthrough",
    "test_supervisor",
    "test_mount_",
    "programs/",
    "test_oracle",
    "test_on_the_wire",
    "test_examples",
    "test_cli",
    "stack/",
    "test_bad_messages",
    "test_program_locks",
    "test_passthrough_modes",
    "test_users_model",
    "test_ranges",
    "test_listing",
    "test_bench",
)
"""How the names of the modules begin that take longest, the longest first: they start processes, and end
some, or have many realms in their own."""


def pytest_sessionstart() -> None:
    """What runs that were killed have left goes first."""
    sweep()
    mark_children()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Nothing outlives the tests: each process that ran some ends what they have left. What a worker that was
    killed has left, the process that started it ends, which is the last one to come here."""
    sweep_own()
    sweep()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first: when several run at a time, none shall begin when all others are done."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """When a test's module begins: its place in LONG."""
    return next(
        (turn for turn, name in enumerate(LONG) if item.nodeid.startswith(f"tests/{name}")), len(LONG)
    )


def pytest_collection_finish() -> None:
    """What was imported for the tests stays: to look for cycles in it again and again takes a sixth of their
    time."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A realm in this process, of this test's own."""
    with Stack(tmp_path) as stack:
        yield stack


@pytest.fixture(scope="module")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A realm in this process for those tests of a module that break nothing in it."""
    with Stack(tmp_path_factory.mktemp("shared")) as stack:
        yield stack


@pytest.fixture(scope="session")
def shared_realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRealm]:
    """A realm for tests that break nothing in it; its admin is logged in as ``admin``. Each test uses users
    and names of its own."""
    with RealRealm(tmp_path_factory.mktemp("shared") / "realm") as realm:
        realm.join("admin")
        yield realm
