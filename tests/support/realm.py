"""A realm of real processes, started by the real command on a folder of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from dfs.status import local_status
from servers.supervision import RealmRoot
from servers.supervision_control import Ask, ask
from tests.support.logs import unexpected
from tests.support.ports import own_ports
from tests.support.processes import MARK, marked, new_mark
from tests.support.times import wait_until

CODE = Path(__file__).resolve().parent.parent.parent
END_SECONDS = 40.0
CHEAP_PASSWORDS = ("--set", "auth.kdf-memory-kib=8192", "--set", "auth.kdf-iterations=1")


class RealRealm:
    """``dfs up`` on ``folder/root``. Made running and ready; ``close`` ends it and looks for what is left.

    Each user has a state folder and a password file of his own in ``folder``: ``user`` says as whom a
    command runs.
    """

    def __init__(self, folder: Path, files: int = 2, options: Sequence[str] = ()) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.mark = new_mark()
        self._options = ["--file-servers", str(files), *CHEAP_PASSWORDS, *options]
        self._first_port = own_ports(4 + files)
        self._expected: list[re.Pattern[str]] = []
        self._killed = False
        folder.mkdir(parents=True, exist_ok=True)
        self.url = ""
        self.fingerprint = ""
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Starts the realm (again) and waits until it is ready, or has died."""
        self._killed = False
        port = [] if (self.root / "realm.json").exists() else ["--port", str(self._first_port)]
        with (self.folder / "up.err").open("wb") as errors:
            self.process = subprocess.Popen(
                self.command("up", "--root", str(self.root), *port, *self._options),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self.environment(),
                cwd=CODE,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        with self.process.stdout as output:
            said = [output.readline() for _ in range(2)]
        if not said[1]:
            self.process.wait()
            raise AssertionError(f"the realm did not start:\n{(self.folder / 'up.err').read_text()}")
        self.url, self.fingerprint = (line.split()[-1] for line in said)

    @staticmethod
    def command(*arguments: str) -> list[str]:
        """The argument vector of a ``dfs`` command."""
        return [sys.executable, "-m", "dfs", *arguments]

    def environment(self, user: str = "nobody", **more: str) -> dict[str, str]:
        """The environment of this realm's processes, with the login of ``user``."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DFS_", "XDG_"))}
        own = {MARK: self.mark, "DFS_STATE": str(self.state(user)), "DFS_REALM": self.url}
        return kept | own | {"PYTHONPATH": str(CODE), "COLUMNS": "200"} | more

    def state(self, user: str) -> Path:
        """The state folder of ``user``."""
        return self.folder / f"state-{user}"

    def password_file(self, user: str, password: str = "") -> Path:
        """The file with the user's password; ``password`` writes another one into it."""
        path = self.folder / f"{user}.password"
        if password or not path.exists():
            path.write_text(f"{password or f'secret of {user}'}\n")
        return path

    def run(
        self,
        *arguments: str,
        user: str = "nobody",
        status: int = 0,
        seconds: float = 60.0,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a ``dfs`` command as ``user``; asserts its exit status, and that no traceback is shown."""
        done = subprocess.run(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment(user, **environment),
            cwd=CODE,
            timeout=seconds,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def sign_up(self, user: str) -> None:
        """Makes the user; the first one is the realm's admin."""
        self.run("signup", user, "--password-file", str(self.password_file(user)), user=user)

    def log_in(self, user: str) -> None:
        """Saves a session in the user's state folder."""
        self.run("login", user, "--password-file", str(self.password_file(user)), user=user)

    def join(self, *users: str) -> None:
        """Signs up and logs in."""
        for user in users:
            self.sign_up(user)
            self.log_in(user)

    def status(self) -> dict[str, Any]:
        """What ``dfs status --json`` says of this realm, but for the mounts. The command itself is not run:
        who waits asks often, and starting it takes longer than waiting."""
        found = local_status(self.root)
        assert found is not None, "the realm does not run"
        told = msgspec.to_builtins(found)
        assert isinstance(told, dict)
        return told

    def service(self, name: str) -> dict[str, Any]:
        """What the status says of one service."""
        found: dict[str, Any] = next(one for one in self.status()["services"] if one["name"] == name)
        return found

    def pid(self, name: str) -> int:
        """The process of a service."""
        return int(self.service(name)["pid"])

    def kill(self, name: str) -> int:
        """Kills a service with SIGKILL; the supervisor starts it again. The pid that it had."""
        self.expect_log(rf"{name} was ended by SIGKILL")
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def stop(self, name: str) -> None:
        """Ends a service in order; it stays away until ``go_on``."""
        ask(RealmRoot(self.root), Ask("stop", name))

    def go_on(self, name: str) -> None:
        """Starts a stopped service again."""
        ask(RealmRoot(self.root), Ask("start", name))

    def wait_running(self, name: str, other_than: int = 0) -> int:
        """The pid of the service when it answers, in another process than ``other_than``."""

        def is_running() -> bool:
            service = self.service(name)
            return bool(service["state"] == "running" and service["pid"] != other_than)

        wait_until(is_running)
        return self.pid(name)

    def kill_supervisor(self) -> None:
        """SIGKILL to the supervisor; its services end by themselves."""
        self._killed = True
        self.process.kill()
        self.process.wait()

    def logs(self) -> list[Path]:
        """The logs of the services and of the supervisor."""
        return sorted((self.root / "log").glob("*.log*"))

    def expect_log(self, pattern: str) -> None:
        """From now on a warning or an error that ``pattern`` is found in is no failure."""
        self._expected.append(re.compile(pattern))

    def close(self) -> None:
        """Ends the realm; asserts that it ended well, left no process and logged nothing unexpected."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(END_SECONDS)
        wait_until(lambda: not marked(self.mark), END_SECONDS)
        assert self._killed or self.process.returncode == 0, (self.folder / "up.err").read_text()
        surprises = unexpected(self.logs(), self._expected)
        assert not surprises, "unexpected in the logs:\n" + "\n".join(surprises)
