"""Leases of real mounts: the kernel believes what was told for as long as that is true, and no longer."""

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mount.registry import mountpoints
from tests.support.acls import ACCESS, extended
from tests.support.mounts import RealMount
from tests.support.realm import RealRealm
from tests.support.times import wait_until

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

FILES = 50


@pytest.fixture(scope="module")
def own_realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRealm]:
    with RealRealm(tmp_path_factory.mktemp("lease") / "realm") as realm:
        realm.join("lena")
        yield realm


@pytest.fixture(scope="module")
def one(own_realm: RealRealm) -> Iterator[RealMount]:
    with RealMount(own_realm, "one", "lena", binding="native") as mount:
        yield leased(own_realm, mount)


@pytest.fixture(scope="module")
def two(own_realm: RealRealm) -> Iterator[RealMount]:
    with RealMount(own_realm, "two", "lena", binding="native") as mount:
        yield leased(own_realm, mount)


def leased(realm: RealRealm, mount: RealMount) -> RealMount:
    """The mount, when its lease has begun."""

    def is_leased() -> bool:
        status = json.loads(realm.run("status", "--json", user="lena").stdout)
        return any(told["leased"] for told in status["mounts"] if told["mountpoint"] == str(mount.path))

    wait_until(is_leased)
    return mount


def questions(realm: RealRealm) -> dict[str, int]:
    """How many requests the directory and the lock server have answered, but for feeds and renewals."""
    counts: dict[str, int] = {}
    for service in realm.status()["services"]:
        if service["role"] not in ("directory", "lock"):
            continue
        with urllib.request.urlopen(f"{service['url']}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "dfs_requests_total":
                    counts[sample.labels["endpoint"]] = counts.get(sample.labels["endpoint"], 0) + int(
                        sample.value
                    )
    own = ("/metrics", "/healthz", "/v1/feed", "/v1/locks/renew", "/v1/servers", "/v1/realm")
    return {path: count for path, count in counts.items() if not path.startswith(own)}


def look_at_all(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Names, sizes and contents, as ls -l and grep -r would ask for them; and one that is not there."""
    assert not (folder / "missing").exists()
    return {
        name: ((folder / name).stat().st_size, (folder / name).read_bytes()) for name in os.listdir(folder)
    }


def test_what_is_warm_costs_no_question(own_realm: RealRealm, one: RealMount, two: RealMount) -> None:
    (one.path / "warm").mkdir()
    for number in range(FILES):
        (one.path / "warm" / str(number)).write_bytes(b"content %d" % number)
    told = look_at_all(two.path / "warm")
    assert len(told) == FILES
    before = questions(own_realm)
    for _ in range(3):
        assert look_at_all(two.path / "warm") == told
    assert questions(own_realm) == before
    (one.path / "warm" / "7").write_bytes(b"changed")
    assert look_at_all(two.path / "warm") == told | {"7": (7, b"changed")}


def test_a_listing_in_the_kernels_cache_goes_when_somebody_else_changes_it(
    one: RealMount, two: RealMount
) -> None:
    folder = one.path / "listed"
    folder.mkdir()
    names = set()
    for number in range(30):
        names.add(f"n{number}")
        (folder / f"n{number}").touch()
        assert set(os.listdir(two.path / "listed")) == names
        if number % 3 == 0:
            names.remove(f"n{number}")
            (folder / f"n{number}").unlink()
            assert set(os.listdir(two.path / "listed")) == names
    with os.scandir(two.path / "listed"):
        shutil.rmtree(folder)
    assert not (two.path / "listed").exists()


@contextmanager
def mounted(place: Path) -> Iterator[None]:
    """Something else is mounted on a directory."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="only root may mount")
def test_what_is_mounted_in_a_mount_stays_and_names_are_right_all_the_same(
    one: RealMount, two: RealMount
) -> None:
    (one.path / "folder" / "place").mkdir(parents=True)
    place = two.path / "folder" / "place"
    assert place.is_dir()
    with mounted(place):
        (place / "inside").touch()
        for number in range(3):
            assert not (two.path / "folder" / str(number)).exists()
            (one.path / "folder" / str(number)).write_text("new")
            assert (two.path / "folder" / str(number)).read_text() == "new"
            assert str(place) in mountpoints()
            assert os.listdir(place) == ["inside"]
    assert os.listdir(place) == []


@pytest.mark.parametrize(
    "close",
    [
        lambda folder: folder.chmod(0o600),
        lambda folder: os.setxattr(folder, ACCESS, extended(0o650, users=[(4711, 5)])),
    ],
    ids=["chmod", "setfacl"],
)
def test_a_directory_that_is_closed_to_its_user_is_closed_at_once(
    one: RealMount, close: Callable[[Path], None]
) -> None:
    (one.path / "mine" / "below").mkdir(parents=True)
    (one.path / "mine" / "below" / "file").write_text("content")
    assert (one.path / "mine" / "below" / "file").read_text() == "content"
    close(one.path / "mine")
    with pytest.raises(PermissionError):
        (one.path / "mine" / "below" / "file").read_text()
    with pytest.raises(PermissionError):
        os.stat(one.path / "mine" / "below")
    (one.path / "mine").chmod(0o700)
    assert (one.path / "mine" / "below" / "file").read_text() == "content"
    shutil.rmtree(one.path / "mine")
