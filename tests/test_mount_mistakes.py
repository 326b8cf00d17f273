"""What goes wrong is said in one sentence, with a status of its own, and nothing is left mounted."""

import errno
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount.registry import mountpoints
from tests.support.mounts import RealMount, fresh_mount
from tests.support.processes import disk_name
from tests.support.realm import RealRealm

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

DISK_BYTES = 160 * 1024 * 1024
"""Two reserves of 64 MiB, the file server's and the directory's, and some."""
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def mia(shared_realm: RealRealm) -> RealRealm:
    """The realm, where ``mia`` is logged in."""
    shared_realm.join("mia")
    return shared_realm


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An empty directory that is no mountpoint when the test is over."""
    place = tmp_path / "place"
    place.mkdir()
    yield place
    assert str(place) not in mountpoints()


def refused(
    realm: RealRealm, place: Path, status: int, *options: str, user: str = "mia", **environment: str
) -> str:
    """Tries to mount; the one sentence that it says."""
    words = ["mount", str(place), "--cache-dir", str(place.parent / "cache"), *options]
    done = realm.run(*words, user=user, status=status, seconds=60.0, **environment)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("dfs: ")
    return line.removeprefix("dfs: ")


def test_a_mountpoint_that_is_not_there(mia: RealRealm, tmp_path: Path) -> None:
    assert refused(mia, tmp_path / "missing", 7) == f"{tmp_path / 'missing'}: No such file or directory"


def test_a_mountpoint_that_is_no_directory(mia: RealRealm, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "not a directory" in refused(mia, tmp_path / "file", 7)


def test_a_mountpoint_that_is_not_empty(mia: RealRealm, place: Path) -> None:
    (place / "something").touch()
    assert "not empty" in refused(mia, place, 6)


def test_a_cache_folder_below_the_mountpoint(mia: RealRealm, place: Path) -> None:
    assert "below the mountpoint" in refused(mia, place, 2, "--cache-dir", str(place / "cache"))
    assert os.listdir(place) == []


def test_a_mountpoint_in_use(mia: RealRealm, tmp_path: Path) -> None:
    with fresh_mount(mia, "mia") as mount:
        assert "mounted there already" in refused(mia, mount.path, 6)
        (mount.path / "mistakes").write_text("it goes on")
        assert (mount.path / "mistakes").read_text() == "it goes on"
        (mount.path / "mistakes").unlink()
    assert not (tmp_path / "cache").exists()


def test_a_cache_folder_in_use(mia: RealRealm, place: Path) -> None:
    with fresh_mount(mia, "mia") as mount:
        said = refused(mia, place, 6, "--cache-dir", str(mount.cache))
        assert said == f"the cache folder {mount.cache} is in use by another mount"
        assert os.listdir(mount.path) is not None


def test_a_realm_that_is_away(mia: RealRealm, place: Path) -> None:
    said = refused(mia, place, 3, "--realm", "http://127.0.0.1:9", user="nobody", DFS_PASSWORD="anything")
    assert "127.0.0.1:9" in said


def test_a_wrong_password(mia: RealRealm, place: Path, tmp_path: Path) -> None:
    mia.expect_log(r"wrong user name or password for mia$")
    (tmp_path / "wrong").write_text("not the password\n")
    said = refused(
        mia, place, 4, "--user", "mia", "--password-file", str(tmp_path / "wrong"), user="elsewhere"
    )
    assert "password" in said


def test_without_a_login_and_without_a_terminal(mia: RealRealm, place: Path) -> None:
    assert "password" in refused(mia, place, 2, user="elsewhere")


def test_a_server_whose_key_has_changed(mia: RealRealm, place: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    shutil.copytree(mia.state("mia"), state, ignore=shutil.ignore_patterns("*.sock"))
    pins = [
        file
        for file in state.rglob("*")
        if file.is_file() and mia.fingerprint in file.read_text(errors="replace")
    ]
    assert pins, "the fingerprint is pinned somewhere"
    for file in pins:
        other = mia.fingerprint[:-1] + ("A" if mia.fingerprint[-1] != "A" else "B")
        file.write_text(file.read_text().replace(mia.fingerprint, other))
    said = refused(mia, place, 4, DFS_STATE=str(state))
    assert "key" in said


def test_options_that_do_not_fit(mia: RealRealm, place: Path) -> None:
    for options in (["--allow-other"], ["--cache-size", "much"], ["--deadline", "-1"], ["--no-such-option"]):
        done = mia.run("mount", str(place), *options, user="mia", status=2)
        assert done.stderr.splitlines()[-1].startswith("Error: ")


def test_a_trusted_mount_needs_an_admins_leave(mia: RealRealm, place: Path) -> None:
    assert refused(mia, place, 5, "--trusted")


def test_umounting_what_is_not_mounted(mia: RealRealm, place: Path) -> None:
    said = mia.run("umount", str(place), user="mia", status=7).stderr
    assert said == f"dfs: no mount of DFS is known at {place}\n"


def test_a_mountpoint_reached_through_a_symlink(mia: RealRealm, tmp_path: Path) -> None:
    """It is the same mountpoint: a living mount is not taken for a dead one."""
    (tmp_path / "link").symlink_to(mia.folder)
    (tmp_path / "straight").symlink_to(mia.folder / "linked")
    (mia.folder / "linked").mkdir()
    for way in (tmp_path / "link" / "linked", tmp_path / "straight"):
        words = ("mount", str(way), "--cache-dir", str(tmp_path / "cache"))
        assert str(mia.folder / "linked") in mia.run(*words, user="mia").stdout
        told = json.loads(mia.run("status", "--root", str(mia.root), "--json", user="mia").stdout)
        assert [(one["mountpoint"], one["state"]) for one in told["mounts"]] == [
            (str(mia.folder / "linked"), "mounted")
        ]
        assert "everything is committed" in mia.run("umount", str(way), user="mia").stdout
        assert str(mia.folder / "linked") not in mountpoints()


def test_a_cache_folder_belongs_to_a_realm_a_user_and_a_mountpoint(
    mia: RealRealm, place: Path, tmp_path: Path
) -> None:
    """However they are spelt: what was not committed is found again, and never becomes somebody else's."""
    mia.sign_up("moe")
    home = tmp_path / "home"
    spellings: tuple[list[str], ...] = (
        [],
        ["--user", "mia"],
        ["--realm", f"{mia.url}/"],
        ["--realm", mia.url.replace("h", "H")],
    )
    for words in spellings:
        mia.run("mount", str(place), *words, user="mia", XDG_CACHE_HOME=str(home))
        mia.run("umount", str(place), user="mia")
        assert len(list((home / "dfs").iterdir())) == 1, words
    mia.run("login", "moe", "--password-file", str(mia.password_file("moe")), user="mia")
    mia.run("mount", str(place), user="mia", XDG_CACHE_HOME=str(home))
    mia.run("umount", str(place), user="mia")
    assert len(list((home / "dfs").iterdir())) == 2
    mia.log_in("mia")


def test_umounting_what_is_in_use(mia: RealRealm) -> None:
    with fresh_mount(mia, "mia") as mount:
        holder = subprocess.Popen(["sleep", "60"], cwd=mount.path)
        try:
            said = mia.run("umount", str(mount.path), user="mia", status=6).stderr
            assert "busy" in said
            assert os.listdir(mount.path) is not None, "it is mounted as before"
        finally:
            holder.kill()
            holder.wait()


def test_a_mount_that_is_read_only(mia: RealRealm) -> None:
    with fresh_mount(mia, "mia") as writable:
        (writable.path / "only-read").write_text("content")
        with fresh_mount(mia, "mia", "--read-only") as mount:
            assert (mount.path / "only-read").read_text() == "content"
            for attempt in (
                lambda: (mount.path / "only-read").open("a"),
                lambda: (mount.path / "new").touch(),
                lambda: (mount.path / "new").mkdir(),
                lambda: (mount.path / "only-read").unlink(),
                lambda: (mount.path / "only-read").chmod(0o600),
                lambda: (mount.path / "only-read").rename(mount.path / "renamed"),
                lambda: os.truncate(mount.path / "only-read", 0),
            ):
                with pytest.raises(OSError, match="Read-only") as caught:
                    attempt()
                assert caught.value.errno == errno.EROFS
            (writable.path / "only-read").write_text("changed")
            assert (mount.path / "only-read").read_text() == "changed"
        (writable.path / "only-read").unlink()


def test_names_that_are_too_long(mia: RealRealm) -> None:
    with fresh_mount(mia, "mia") as mount:
        longest = "n" * 255
        (mount.path / longest).write_text("just short enough")
        assert longest in os.listdir(mount.path)
        for attempt in (
            lambda: (mount.path / ("n" * 256)).touch(),
            lambda: (mount.path / ("ä" * 128)).mkdir(),
            lambda: (mount.path / longest).rename(mount.path / ("n" * 256)),
            lambda: os.symlink("x", mount.path / ("n" * 256)),
        ):
            with pytest.raises(OSError, match="too long") as caught:
                attempt()
            assert caught.value.errno == errno.ENAMETOOLONG
        (mount.path / longest).unlink()


# Full disks


@pytest.fixture
def small_realm(tmp_path: Path) -> Iterator[RealRealm]:
    """A realm of two file servers with little disks of their own."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts disks")
    folder = tmp_path / "realm"
    disks = [folder / "root" / name for name in ("files-1", "files-2")]
    mounted = []
    try:
        for disk in disks:
            disk.mkdir(parents=True, mode=0o700)
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", disk_name(), disk], check=True
            )
            mounted.append(disk)
        with RealRealm(folder) as realm:
            yield realm
    finally:
        for disk in mounted:
            subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_told_and_nothing_acknowledged_is_lost(small_realm: RealRealm) -> None:
    small_realm.join("fay")
    with RealMount(small_realm, "full", "fay", "--deadline", "5") as mount:
        mount.expect_log(r"could not be written back, it is tried again: .*(full|space|room)")
        kept: dict[str, bytes] = {}
        error = 0
        for number in range(DISK_BYTES // (4 * MIB) + 2):
            name, data = f"{number:03}", os.urandom(4 * MIB)
            descriptor = os.open(mount.path / name, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, data)
                os.fsync(descriptor)
                kept[name] = data
            except OSError as caught:
                error = caught.errno or 0
            if not error:
                os.close(descriptor)
                continue
            with pytest.raises(OSError, match="space") as again:
                os.close(descriptor)
            assert again.value.errno == errno.ENOSPC, "close says it once more"
            break
        print(f"{len(kept)} files of 4 MiB were acknowledged")
        assert error == errno.ENOSPC
        assert len(kept) >= 3
        assert len(os.listdir(mount.path)) == len(kept) + 1
        with fresh_mount(small_realm, "fay") as empty:
            for name, data in kept.items():
                assert (empty.path / name).read_bytes() == data
        (mount.path / f"{len(kept):03}").unlink()
        (mount.path / "small").mkdir()
        assert stat.S_ISDIR((mount.path / "small").stat().st_mode), "names need no room at the file servers"
