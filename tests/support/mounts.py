"""Real mounts of a real realm: the command, a temporary mountpoint, a process of its own."""

import itertools
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import msgspec

from mount.registry import MountRecord, mountpoints
from tests.support.logs import unexpected
from tests.support.realm import RealRealm

_numbers = itertools.count(1)


BINDING = os.environ.get("DFS_TEST_BINDING", "auto")
"""What all real mounts speak, unless a test says otherwise: one suite for both bindings."""


def fresh_mount(realm: RealRealm, user: str, *options: str, binding: str = BINDING) -> "RealMount":
    """A mount that has nothing in its cache."""
    return RealMount(realm, f"fresh-{next(_numbers)}", user, *options, binding=binding)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``: its path and content."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


_WRITER = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)
os.write(descriptor, sys.argv[2].encode())
print(flush=True)
sys.stdin.readline()
try:
    os.close(descriptor)
except OSError as error:
    print(error.errno)
else:
    print(0)
"""


class Writer:
    """A program that has opened a file and written ``text`` at its beginning, and goes on when it is told to.

    A process of its own: whenever the test itself starts a process, what it has open is closed there, and
    every close commits.
    """

    def __init__(self, path: Path, text: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask()

    def close(self) -> int:
        """It closes the file and ends; the errno, 0 for none."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        number = int(self._ask())
        self._end()
        return number

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._end()

    def _ask(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the writing program died"
        return line

    def _end(self) -> None:
        self._process.wait(60)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


def conflict_copies(path: Path) -> list[Path]:
    """The conflict copies beside a file."""
    return [found for found in path.parent.iterdir() if found.name.startswith(f"{path.name} (conflict ")]


class RealMount:
    """``dfs mount`` of ``realm`` as ``user`` on ``folder/NAME``, with a cache folder and a state folder of
    its own. ``close`` unmounts it and looks into its log."""

    def __init__(self, realm: RealRealm, name: str, user: str, *options: str, binding: str = BINDING) -> None:
        self.realm = realm
        self.name = name
        self.user = user
        self.options = ["--binding", binding, *options]
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
        self._log = Path(self.record().control).with_suffix(".log")  # see mount.registry

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
        record = self.record()
        processes = [os.pidfd_open(pid) for pid in {record.pid, record.worker_pid}]
        os.kill(record.pid, signal.SIGKILL)
        # Not before all threads have ended, the worker's too, is the mount dead.
        for process in processes:
            ended, _, _ = select.select([process], [], [], 20)
            os.close(process)
            assert ended

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
        return [self._log]
