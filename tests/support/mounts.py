"""Real mounts of a real realm: the command, a temporary mountpoint, a process of its own."""

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Self

import msgspec

from mount.registry import MountRecord, mountpoints
from tests.support.logs import unexpected
from tests.support.processes import wait_until
from tests.support.realm import RealRealm


class RealMount:
    """``dfs mount`` of ``realm`` as ``user`` on ``folder/NAME``, with a cache folder and a state folder of
    its own. ``close`` unmounts it and looks into its log."""

    def __init__(self, realm: RealRealm, name: str, user: str, *options: str) -> None:
        self.realm = realm
        self.name = name
        self.user = user
        self.options = list(options)
        self.path = realm.folder / name
        self.cache = realm.folder / f"{name}-cache"
        self._expected: list[re.Pattern[str]] = []
        self.path.mkdir()
        self.mount()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def mount(self, *options: str) -> None:
        """Mounts (again), on the same cache folder."""
        self.realm.run(
            "mount",
            str(self.path),
            "--cache-dir",
            str(self.cache),
            *self.options,
            *options,
            user=self.user,
        )

    def umount(self) -> None:
        """Unmounts in order."""
        self.realm.run("umount", str(self.path), user=self.user)
        assert str(self.path) not in mountpoints()

    def record(self) -> MountRecord:
        """What the mount says of itself."""
        state = self.realm.state(self.user) / "mounts"
        records = [msgspec.json.decode(file.read_bytes(), type=MountRecord) for file in state.glob("*.json")]
        return next(record for record in records if record.mountpoint == str(self.path))

    def kill(self) -> None:
        """SIGKILL to the mount's process, which leaves a dead mount behind."""
        pid = self.record().pid
        process = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid))
        os.close(process)

    def log(self) -> str:
        """The mount's log."""
        return "".join(path.read_text(errors="replace") for path in self._logs())

    def expect_log(self, pattern: str) -> None:
        """From now on a warning or an error that ``pattern`` is found in is no failure."""
        self._expected.append(re.compile(pattern))

    def close(self) -> None:
        """Unmounts, if it is mounted; asserts that nothing unexpected was logged."""
        if str(self.path) in mountpoints():
            try:
                self.umount()
            except AssertionError:
                subprocess.run(["umount", "-l", str(self.path)], check=False)
                raise
        surprises = unexpected(self._logs(), self._expected)
        assert not surprises, "unexpected in the mount's log:\n" + "\n".join(surprises)

    def _logs(self) -> list[Path]:
        return sorted((self.realm.state(self.user) / "log").glob("mount-*.log"))


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
