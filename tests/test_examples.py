"""The examples do what they say: scripts are run, the helper mounts, units name commands that exist.

Needs /dev/fuse for what mounts, and root for mount(8); skipped elsewhere.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from dfs.main import cli
from mount.registry import mountpoints
from tests.support.mounts import RealMount
from tests.support.realm import CODE, RealRealm

EXAMPLES = CODE / "examples"
UNITS = sorted((EXAMPLES / "systemd").iterdir())

needs_fuse = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may use mount(8) for this")


def run(realm: RealRealm, name: str, *arguments: str | Path, seconds: float = 60.0, **more: str) -> str:
    """Runs an example as ``admin``; what it says. It must end well and warn of nothing."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=realm.environment("admin", **more),
        cwd=realm.folder,
        timeout=seconds,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def names(realm: RealRealm) -> list[str]:
    """What is in the realm's root, as a fresh mount shows it."""
    with RealMount(realm, "look", "admin") as mount:
        return sorted(path.name for path in mount.path.iterdir())


# The scripts


def test_without_a_mount(shared_realm: RealRealm) -> None:
    said = run(shared_realm, "without_a_mount.py")
    for step in range(1, 6):
        assert re.search(rf"^{step}\. ", said, re.M), said
    urls = re.findall(r"chunk \d: \d+ bytes, primary (\S+), secondaries \['(\S+)'\]", said)
    assert len(urls) == 3, said
    assert all(primary != secondary for primary, secondary in urls)
    assert said.endswith("   the same bytes\n")
    # It tidies up, so it can be run again.
    assert run(shared_realm, "without_a_mount.py").endswith("   the same bytes\n")


@needs_fuse
def test_two_clients_and_a_lock(shared_realm: RealRealm) -> None:
    with RealMount(shared_realm, "one", "admin") as one, RealMount(shared_realm, "two", "admin") as two:
        before = sorted(one.path.iterdir())
        said = run(shared_realm, "two_clients_and_a_lock.py", one.path, two.path)
        assert "the number is 20; it should be 20" in said
        made = re.findall(r"^(\S+): waited ([\d.]+) s for the lock, made (\d+) of (\d+)$", said, re.M)
        assert {path for path, *_ in made} == {str(one.path), str(two.path)}
        assert sorted(int(number) for *_, number, _ in made) == list(range(1, 21))
        assert all(int(number) == int(before) + 1 for *_, number, before in made)
        # Each thinks while it has the lock, so whoever comes meanwhile must have waited.
        assert max(float(waited) for _, waited, *_ in made) > 0.01
        assert "the slowest of the reads meanwhile" in said
        assert sorted(one.path.iterdir()) == before


def test_failover(tmp_path: Path) -> None:
    options = [
        *("--set", "directory.repair-delay-seconds=5"),  # longer than from one line to the next
        *("--set", "directory.suspect-seconds=3"),
        *("--set", "directory.dead-seconds=4"),
        *("--set", "directory.maintenance-seconds=0.2"),
    ]
    with RealRealm(tmp_path / "realm", files=3, options=options) as realm:
        realm.join("admin")
        said = run(realm, "failover.py", seconds=100, DFS_ROOT=str(realm.root))
        lines = re.findall(r"^ +[\d.]+ s  (\w+)  (\d+) of (\d+) chunks lack a copy  \((.*)\)$", said, re.M)
        assert len(lines) > 4, said
        assert {word for word, *_ in lines} == {"right"}, said
        lacking = [int(number) for _, number, *_ in lines]
        assert lacking[:3] == [0, 0, 0]
        assert max(lacking) > 0, said
        assert lacking[-1] == 0
        assert "dead" in lines[-1][-1]
        assert "is stopped." in said
        assert "every chunk has its copies again" in said
        assert "is running." in said
        services = {service["state"] for service in realm.status()["services"]}
        assert services == {"running"}, "it starts again what it has stopped"


# The mount helper and fstab


@pytest.fixture(scope="module")
def dfs_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``dfs`` as an installation has it: one file that can be executed."""
    path = tmp_path_factory.mktemp("bin") / "dfs"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m dfs "$@"\n')
    path.chmod(0o755)
    return path


def helper(realm: RealRealm, dfs: Path, *arguments: str | Path, status: int = 0) -> str:
    """Runs ``mount.dfs`` as mount(8) does: without the user's environment but for what finds the command."""
    done = subprocess.run(
        [str(EXAMPLES / "mount.dfs"), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=realm.environment("admin", DFS=str(dfs)),
        cwd="/",
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@needs_fuse
def test_the_helper_mounts_with_the_options_of_fstab(
    shared_realm: RealRealm, dfs_command: Path, tmp_path: Path
) -> None:
    realm = shared_realm
    realm.sign_up("host1")
    realm.run("user", "host1", "--trusted", user="admin")
    place, cache = tmp_path / "a place", tmp_path / "cache"
    place.mkdir()
    fstab = next(line for line in _fstab() if "allow_other" in line[3])
    options = fstab[3].replace("/etc/dfs/password", str(realm.password_file("host1")))
    options += f",cache_dir={cache},cache_size=1G,lock_wait=3,deadline=5,rw"
    helper(realm, dfs_command, realm.url, place, "-o", options)
    try:
        assert str(place) in mountpoints()
        (place / "from-fstab").write_text("content")
        assert (place / "from-fstab").read_text() == "content"
        assert (place / "from-fstab").stat().st_uid == os.getuid()
        assert any(cache.iterdir())
        (place / "from-fstab").unlink()
    finally:
        realm.run("umount", str(place), user="admin")
    assert str(place) not in mountpoints()


@needs_fuse
def test_the_helper_mounts_read_only(shared_realm: RealRealm, dfs_command: Path, tmp_path: Path) -> None:
    arguments = (shared_realm.url, tmp_path, "-s", "-n", "-v", "-o", f"ro,noauto,cache_dir={tmp_path}-cache")
    helper(shared_realm, dfs_command, *arguments)
    try:
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "new").touch()
    finally:
        shared_realm.run("umount", str(tmp_path), user="admin")


def test_the_helper_refuses_and_pretends(shared_realm: RealRealm, dfs_command: Path, tmp_path: Path) -> None:
    helper(shared_realm, dfs_command, shared_realm.url, tmp_path, "-f", "-o", "rw")
    assert str(tmp_path) not in mountpoints()
    helper(shared_realm, dfs_command, shared_realm.url, tmp_path, "-Z", status=1)
    helper(shared_realm, dfs_command, shared_realm.url, tmp_path / "nothing", status=7)


@needs_fuse
@needs_root
@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount(8)")
def test_mount_8_calls_it(shared_realm: RealRealm, dfs_command: Path, tmp_path: Path) -> None:
    # mount(8) looks in /sbin only. A mount namespace of its own gives it one there, and ends with it.
    sbin = Path(os.path.realpath("/sbin"))
    place, overlay = tmp_path / "place", tmp_path / "sbin"
    place.mkdir()
    overlay.mkdir()
    shutil.copy(EXAMPLES / "mount.dfs", overlay / "mount.dfs")
    (overlay / "mount.dfs").chmod(0o755)
    script = f"""
        set -e
        mount --bind {overlay} {sbin}
        mount -t dfs -o rw,_netdev,cache_dir={tmp_path}/cache {shared_realm.url} {place}
        echo content > {place}/by-mount-8
        cat {place}/by-mount-8
        rm {place}/by-mount-8
        {dfs_command} umount {place}
    """
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        text=True,
        env=shared_realm.environment("admin", DFS=str(dfs_command)),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "content\n" in done.stdout


def _fstab() -> Iterator[list[str]]:
    """The fields of each line that is no comment."""
    for line in (EXAMPLES / "fstab").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.split()


def test_the_lines_of_fstab() -> None:
    lines = list(_fstab())
    assert lines
    text = (EXAMPLES / "mount.dfs").read_text()
    known = set(re.findall(r"^    (\w+)=?\*?\) set -- ", text, re.M))
    explained = set(re.findall(r"^#   (\w+)(?:=| {2})", (EXAMPLES / "fstab").read_text(), re.M))
    assert known == explained | {"ro"}
    of_mount_8 = {"_netdev", "nofail", "noauto", "x-systemd.automount", "x-systemd.requires"}
    for url, place, kind, options, *numbers in lines:
        assert url.startswith("http://")
        assert place.startswith("/")
        assert kind == "dfs"
        assert numbers in ([], ["0", "0"])
        assert {option.partition("=")[0] for option in options.split(",")} <= known | of_mount_8


def test_the_helper_gives_options_that_dfs_mount_has() -> None:
    given = set(re.findall(r"(--[a-z-]+)", (EXAMPLES / "mount.dfs").read_text()))
    assert {"--read-only", "--allow-other", "--cache-dir"} <= given
    assert given <= _options(_command(["mount"]))


# The units


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_commands_of_a_unit_exist(unit: Path) -> None:
    text = unit.read_text()
    lines = re.findall(r"^(?:Exec\w+=\S+/dfs|# +dfs|# .*?(?<=/)dfs(?= status)) (.+)$", text, re.M)
    executed = re.findall(r"^Exec(Start|Stop)=/opt/dfs/bin/dfs ", text, re.M)
    assert executed == ["Start", "Stop"]
    assert len(lines) > 2 - ("@" in unit.name)
    for line in lines:
        words = shlex.split(line, comments=True)
        given = {word for word in words if word.startswith("--")}
        assert given <= _options(_command(words)), line
    for line in re.findall(r"^# (For clients.*?)\n(?!#)", text, re.M | re.S):
        assert set(re.findall(r"--[a-z-]+", line)) <= _options(_command(["up"])), line


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_well_formed(unit: Path) -> None:
    sections: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, separator, value = line.partition("=")
            assert separator, line
            assert key not in section, f"{key} twice"
            section[key] = value
    assert set(sections) == {"Unit", "Service", "Install"}
    assert sections["Service"]["Type"] == "forking", "both commands return when they are ready"
    if shutil.which("systemd-analyze"):
        done = subprocess.run(
            ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
        )
        assert "Unknown" not in done.stderr, done.stderr


def _command(words: list[str]) -> click.Command:
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None, f"there is no `dfs {words[0]}`"
    return command


def _options(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
