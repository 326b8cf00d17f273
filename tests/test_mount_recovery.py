"""What becomes of content when the mount is killed, or the services are away: nothing is lost silently."""

import errno
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount.registry import mountpoints
from tests.support.mounts import RealMount, Writer, conflict_copies, fresh_mount, tree
from tests.support.realm import RealRealm
from tests.support.times import wait_until

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

KILLS = 4
LATE_SECONDS = 40.0
"""The longest pause of the write-back is 15 s, and servers must be known to be alive first."""

ACKNOWLEDGING = """
import itertools, os, sys
folder, manifest = sys.argv[1:3]
acknowledged = open(manifest, "a", buffering=1)
for number in itertools.count():
    name = f"{folder}/{number}"
    content = f"{name} ".encode() * (number * 37 % 5000 + 1)
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, content)
    os.fsync(descriptor)
    print(number, len(content), file=acknowledged)
    os.close(descriptor)
    with open(f"{folder}/log", "a") as log:
        log.write(f"{number}\\n")
    print("log", number, file=acknowledged)
"""
"""A line is in the manifest only after fsync, or close, has returned. (A file of this machine: the manifest
needs no fsync itself, since nobody kills the machine.)"""


@pytest.fixture(scope="module")
def own_realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRealm]:
    """A realm whose services may be stopped."""
    with RealRealm(tmp_path_factory.mktemp("recovery") / "realm") as realm:
        realm.join("rita")
        yield realm


@pytest.fixture(scope="module")
def other(own_realm: RealRealm) -> Iterator[RealMount]:
    """A mount that stays."""
    with RealMount(own_realm, "other", "rita") as mount:
        yield mount


@pytest.fixture
def victim(own_realm: RealRealm, request: pytest.FixtureRequest) -> Iterator[RealMount]:
    """A mount that has to suffer, with little patience."""
    name = request.node.name.replace("[", "-").replace("]", "")
    with RealMount(own_realm, name, "rita", "--deadline", "2") as mount:
        yield mount


def test_what_a_program_had_written_without_fsync_becomes_a_conflict_copy(
    victim: RealMount, other: RealMount
) -> None:
    (victim.path / "half").write_text("committed before")
    writer = Writer(victim.path / "half", "never committed")
    victim.kill()
    with pytest.raises(OSError, match="not connected"):
        os.listdir(victim.path)
    victim.expect_log(r"content that was never committed is kept as 'half \(conflict ")
    victim.mount()
    (copy,) = conflict_copies(victim.path / "half")
    assert copy.read_text() == "never committed "[:15] + "committed before"[15:]
    assert (victim.path / "half").read_text() == "committed before"
    assert (other.path / copy.name).read_bytes() == copy.read_bytes()
    writer.kill()
    victim.umount()
    victim.mount()
    assert conflict_copies(victim.path / "half") == [copy], "it is done once"


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_mount_that_is_told_to_end_writes_back_first(
    own_realm: RealRealm, other: RealMount, tmp_path: Path, ending: signal.Signals
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    words = ("mount", str(place), "--foreground", "--cache-dir", str(tmp_path / "cache"))
    daemon = subprocess.Popen(
        own_realm.command(*words), env=own_realm.environment("rita"), stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: str(place) in mountpoints() or daemon.poll() is not None)
    descriptors = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    assert descriptors[0] == descriptors[1], "as many files as the machine allows"
    writer = Writer(place / ending.name, "not closed")
    daemon.send_signal(ending)
    _, said = daemon.communicate(timeout=30)
    assert daemon.returncode == 0, said
    assert str(place) not in mountpoints()
    assert (other.path / ending.name).read_text() == "not closed"
    assert conflict_copies(other.path / ending.name) == []
    assert not re.search(r"WARNING|ERROR|Traceback", said)
    writer.kill()


def test_a_mount_that_was_killed_is_taken_away_by_umount(victim: RealMount) -> None:
    victim.kill()
    assert victim.realm.run("status", "--root", str(victim.realm.root), "--json", user="rita")
    victim.umount()
    assert os.listdir(victim.path) == []


def test_what_was_closed_is_there_for_everybody(victim: RealMount, other: RealMount) -> None:
    (victim.path / "closed").mkdir()
    content = {str(number): os.urandom(number * 1000) for number in range(20)}
    for name, data in content.items():
        (victim.path / "closed" / name).write_bytes(data)
    victim.kill()
    assert tree(other.path / "closed") == content
    victim.mount()
    assert tree(victim.path / "closed") == content


def test_killed_at_many_points_nothing_acknowledged_is_lost(own_realm: RealRealm, victim: RealMount) -> None:
    manifest = own_realm.folder / "manifest"
    rest = random.Random(20)
    promised: dict[str, dict[int, int]] = {}
    logged: dict[str, int] = {}
    victim.expect_log(
        r"its last commit (had arrived|was sent again)|content that was never committed is kept as "
    )
    for kill in range(KILLS):
        folder = victim.path / f"kill-{kill}"
        folder.mkdir()
        manifest.write_text("")
        writer = subprocess.Popen(
            [sys.executable, "-c", ACKNOWLEDGING, str(folder), str(manifest)],
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: manifest.read_text().count("log") >= 3)
        time.sleep(rest.uniform(0.0, 0.3))
        victim.kill()
        _, said = writer.communicate(timeout=30)
        assert "Error: [Errno 1" in said, "the program was in the middle of its work"
        lines = [line.split() for line in manifest.read_text().splitlines()]
        promised[folder.name] = {int(name): int(size) for name, size in lines if name != "log"}
        logged[folder.name] = max(int(number) for name, number in lines if name == "log")
        victim.mount()
    print("acknowledged:", {name: len(files) for name, files in promised.items()})
    with fresh_mount(own_realm, "rita") as empty:
        for name, files in promised.items():
            for number, size in files.items():
                content = f"{victim.path}/{name}/{number} ".encode() * (number * 37 % 5000 + 1)
                assert len(content) == size
                assert (empty.path / name / str(number)).read_bytes() == content
            log = (empty.path / name / "log").read_text().splitlines()
            assert log[: logged[name] + 1] == [str(number) for number in range(logged[name] + 1)]
            assert len(log) <= logged[name] + 2


def stop(realm: RealRealm, *services: str) -> None:
    """Stops them."""
    for service in services:
        realm.stop(service)


def go_on(realm: RealRealm, *services: str) -> None:
    """Starts them again, and waits until the directory has heard of the file servers."""
    for service in services:
        realm.go_on(service)
    wait_until(
        lambda: (
            [one.get("health") for one in realm.status()["services"] if one["role"] == "files"]
            == ["alive"] * 2
        )
    )


@pytest.mark.parametrize("services", [("files-1", "files-2"), ("directory",)], ids=["files", "directory"])
def test_what_could_not_be_committed_is_committed_later(
    own_realm: RealRealm, victim: RealMount, other: RealMount, services: tuple[str, ...]
) -> None:
    victim.expect_log(r"could not be written back, it is tried again")
    (victim.path / "late").write_text("committed in time")
    writer = Writer(victim.path / "late", "committed afterwards")
    stop(own_realm, *services)
    try:
        began = time.monotonic()
        assert writer.close() in (errno.ETIMEDOUT, errno.EIO, errno.ENOSPC)
        assert time.monotonic() - began < 15.0
    finally:
        go_on(own_realm, *services)
    began = time.monotonic()
    wait_until(lambda: (other.path / "late").read_text() == "committed afterwards", LATE_SECONDS)
    print(f"committed {time.monotonic() - began:.1f} s after the services were back")
    with (other.path / "late").open("a") as again:
        again.write(", and the lock is free")
    assert (victim.path / "late").read_text() == "committed afterwards, and the lock is free"
    assert conflict_copies(other.path / "late") == []


def test_umount_waits_until_everything_is_committed(
    own_realm: RealRealm, victim: RealMount, other: RealMount
) -> None:
    victim.expect_log(r"could not be written back, it is tried again")
    writer = Writer(victim.path / "waited-for", "content")
    stop(own_realm, "directory")
    try:
        assert writer.close() == errno.ETIMEDOUT
        umount = subprocess.Popen(
            own_realm.command("umount", str(victim.path), "--wait", "60"),
            env=own_realm.environment("rita"),
            stderr=subprocess.DEVNULL,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            umount.wait(4)
        assert str(victim.path) in mountpoints()
    finally:
        go_on(own_realm, "directory")
    assert umount.wait(60) == 0
    assert str(victim.path) not in mountpoints()
    assert (other.path / "waited-for").read_text() == "content"


def test_what_umount_could_not_wait_for_is_committed_by_the_next_mount(
    own_realm: RealRealm, victim: RealMount, other: RealMount
) -> None:
    victim.expect_log(r"could not be written back, it is tried again|the next mount will do it")
    victim.expect_log(
        r"its last commit (had arrived|was sent again)|content that was never committed is kept as "
    )
    writer = Writer(victim.path / "kept", "content")
    stop(own_realm, "directory")
    try:
        assert writer.close() == errno.ETIMEDOUT
        told = own_realm.run("umount", str(victim.path), "--wait", "1", user="rita", status=1)
        assert "not committed" in told.stderr
    finally:
        go_on(own_realm, "directory")
    victim.mount()
    found = [(other.path / "kept"), *conflict_copies(other.path / "kept")]
    assert "content" in [path.read_text() for path in found]


def test_what_recovery_has_left_is_told_and_settled_in_the_background(
    own_realm: RealRealm, victim: RealMount, other: RealMount
) -> None:
    victim.expect_log(r"is dirty from an earlier mount|content that was never committed is kept as ")
    writer = Writer(victim.path / "left", "content")
    victim.kill()
    writer.kill()
    stop(own_realm, "files-1", "files-2")
    try:
        victim.mount()
        status = own_realm.run("status", "--root", str(own_realm.root), "--json", user="rita").stdout
        unsaved = {mount["mountpoint"]: mount["unsaved"] for mount in json.loads(status)["mounts"]}
        assert unsaved[str(victim.path)] == 1
        told = own_realm.run("umount", str(victim.path), "--wait", "1", user="rita", status=1)
        assert "1 files are not committed" in told.stderr
        victim.mount()
    finally:
        go_on(own_realm, "files-1", "files-2")
    # A copy is made in two steps: others may see it for a moment without its content.
    left = other.path / "left"
    wait_until(lambda: [copy.read_text() for copy in conflict_copies(left)] == ["content"], LATE_SECONDS)
    victim.umount()
