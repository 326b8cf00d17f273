"""The registry of mounts: what was registered is found, and the dead are told from the living."""

import os
from pathlib import Path

import msgspec
import pytest

from mount.registry import (
    MountRecord,
    find,
    mountpoints,
    real_place,
    records,
    register,
    state_folder,
    unregister,
)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DFS_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def record(mountpoint: str, pid: int) -> MountRecord:
    return MountRecord(mountpoint, "native", pid, "http://realm", "alice", "/cache", "/control", 1.5)


def test_what_is_registered_is_found_until_it_is_taken_back(state: Path) -> None:
    assert records() == []
    one, other = record("/mnt/a b", 1), record("/mnt/é", 2)
    register(other)
    register(record("/mnt/a b", 7))
    register(one)
    assert records() == [one, other]
    assert find("/mnt/a b") == one
    unregister("/mnt/a b")
    unregister("/mnt/a b")
    assert records() == [other]
    with pytest.raises(FileNotFoundError):
        find("/mnt/a b")
    assert [path.stat().st_mode & 0o777 for path in (state / "mounts").iterdir()] == [0o600]


def test_a_mount_lives_while_its_process_runs_and_its_mountpoint_is_one() -> None:
    mounted = "/proc"
    assert mounted in mountpoints()
    assert record(mounted, os.getpid()).is_alive
    assert not record("/proc/1", os.getpid()).is_alive
    assert not record(mounted, 2**22 + 1).is_alive


def test_a_mountpoint_is_named_as_the_kernel_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "proc").symlink_to("/proc")
    monkeypatch.chdir(tmp_path)
    real = tmp_path.resolve()
    assert real_place(Path("link/new")) == real / "folder/new"
    assert real_place(Path("link")) == real_place(Path("link/../folder/.")) == real / "folder"
    assert real_place(Path("proc")) == real_place(Path("/proc")) == Path("/proc")


def test_a_process_that_nobody_has_waited_for_runs_no_more() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not record("/proc", pid).is_alive
    os.waitpid(pid, 0)


def test_foreign_files_are_passed_over(state: Path) -> None:
    register(record("/mnt", 1))
    (state / "mounts" / "other.json").write_text("{}")
    assert [one.mountpoint for one in records()] == ["/mnt"]


def test_the_state_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DFS_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert state_folder() == Path("/x/dfs")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/a")
    assert state_folder() == Path("/home/a/.local/state/dfs")
    assert not msgspec.json.encode(record("/m", 1)).startswith(b"[")
