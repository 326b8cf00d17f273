"""Services that are killed while programs work: they wait a moment and go on."""

import asyncio
import email
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount.registry import mountpoints
from tests.support.mounts import RealMount, fresh_mount
from tests.support.realm import RealRealm
from tests.support.times import wait_until

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

SERVICES = ("auth", "directory", "lock", "files-1", "files-2")


@pytest.fixture(scope="module")
def own_realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRealm]:
    """A realm whose services are killed."""
    with RealRealm(tmp_path_factory.mktemp("restarts") / "realm") as realm:
        realm.join("rolf")
        yield realm


@pytest.fixture(scope="module")
def mount(own_realm: RealRealm) -> Iterator[RealMount]:
    """A mount that stays."""
    with RealMount(own_realm, "stays", "rolf") as mount:
        yield mount


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree of files, as they are anywhere."""
    folder = tmp_path_factory.mktemp("source")
    for package in (asyncio, email, json):
        place = Path(package.__path__[0])
        shutil.copytree(place, folder / place.name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "link").symlink_to("json/decoder.py")
    (folder / "json" / "tool.py").chmod(0o750)
    return folder


def count(folder: Path) -> int:
    """How many files are below."""
    return sum(len(files) for _, _, files in os.walk(folder))


@pytest.mark.parametrize("service", SERVICES)
def test_cp_goes_on_when_a_service_is_killed(
    own_realm: RealRealm, mount: RealMount, source: Path, service: str
) -> None:
    target = mount.path / f"copy-{service}"
    pid = own_realm.pid(service)
    cp = subprocess.Popen(["cp", "-a", str(source), str(target)], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: count(target) >= 3)
    own_realm.kill(service)
    assert cp.poll() is None, "cp was not done when the service was killed"
    _, said = cp.communicate(timeout=60)
    assert (cp.returncode, said) == (0, "")
    own_realm.wait_running(service, other_than=pid)


def test_the_copies_are_the_same_for_a_mount_that_has_nothing(
    own_realm: RealRealm, mount: RealMount, source: Path
) -> None:
    with fresh_mount(own_realm, "rolf") as empty:
        copies = sorted(empty.path.iterdir())
        assert [copy.name for copy in copies] == sorted(f"copy-{service}" for service in SERVICES)
        for copy in copies:
            done = subprocess.run(
                ["diff", "-r", "--no-dereference", str(source), str(copy)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (copies[0] / "json" / "tool.py").stat().st_mode & 0o777 == 0o750


def test_no_new_mount_while_the_auth_server_is_away(
    own_realm: RealRealm, mount: RealMount, tmp_path: Path
) -> None:
    own_realm.stop("auth")
    try:
        place = tmp_path / "place"
        place.mkdir()
        words = ("mount", str(place), "--cache-dir", str(tmp_path / "cache"))
        told = own_realm.run(*words, user="rolf", status=3)
        assert len(told.stderr.splitlines()) == 1
        assert str(place) not in mountpoints()
        (mount.path / "without-auth").write_text("who is in stays in")
        assert (mount.path / "without-auth").read_text() == "who is in stays in"
        (mount.path / "without-auth").unlink()
    finally:
        own_realm.go_on("auth")
