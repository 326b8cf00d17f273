"""One supervised process: started, watched by a thread of its own, started again when it dies.

States: ``stopped`` (nobody wants it to run) → ``starting`` → ``running`` (it answers ``/healthz``) →
``dead`` (it died and waits for its next start) → ``starting`` …

Each child leads a process group of its own, so that what it leaves behind when it dies can be killed
before the next start, and so that a Ctrl-C at the terminal reaches the supervisor alone.
"""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable

import msgspec

from clients.http import HttpWire
from clients.session import call_plain
from servers.supervision import Plan, child_environment, python, rotate
from servers.supervision_control import ChildStatus
from wire.messages.common import Health

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""From SIGTERM to SIGKILL."""
PAUSE_SECONDS_MAX = 5.0
STEADY_SECONDS = 10.0
"""A child that lived so long is started again at once when it dies."""
START_DEATHS_MAX = 2
PROBE_SECONDS = 0.03


class Child:
    """``inherit`` are the descriptors that the process gets; the first of them is its lifeline."""

    def __init__(self, plan: Plan, inherit: tuple[int, ...], wire: HttpWire) -> None:
        self.plan = plan
        self.deaths = 0
        """How often it died without being asked to."""
        self._inherit = inherit
        self._wire = wire
        self._changed = threading.Condition()
        # All of these are guarded by _changed.
        self._wanted = False
        self._closing = False
        self._state = "stopped"
        self._process: subprocess.Popen[bytes] | None = None
        self._hurried_deaths = 0
        self._thread = threading.Thread(target=self._run, name=plan.name)
        self._thread.start()

    def start(self) -> None:
        """Wants it to run; at once, also if it is pausing after a death."""
        with self._changed:
            if not self._wanted or self._state == "dead":
                self._wanted = True
                self._hurried_deaths = 0
                self._state = "starting"
                self._changed.notify_all()

    def stop(self) -> None:
        """Ends it and returns when it has ended: SIGTERM, and SIGKILL after STOP_SECONDS."""
        with self._changed:
            self._wanted = False
            self._changed.notify_all()
            self._signal(signal.SIGTERM)
            if not self._changed.wait_for(lambda: self._process is None, STOP_SECONDS):
                log.warning("%s did not end in %g s and is killed", self.plan.name, STOP_SECONDS)
                self._signal(signal.SIGKILL)
                self._changed.wait_for(lambda: self._process is None)
            self._state = "stopped"

    def close(self) -> None:
        """Stops it for good."""
        self.stop()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def wait_running(self, seconds: float) -> bool:
        """Whether it answers within ``seconds``, before it has died START_DEATHS_MAX times in a row."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._state in ("running", "stopped") or self._hurried_deaths >= START_DEATHS_MAX,
                seconds,
            )
            return self._state == "running"

    def status(self) -> ChildStatus:
        """How it is now."""
        with self._changed:
            pid = self._process.pid if self._process else 0
            plan = self.plan
            return ChildStatus(plan.name, plan.role, plan.url, self._state, pid, self.deaths)

    def _signal(self, number: int) -> None:
        """With _changed held: while _process is set it is not reaped, so its pid is nobody else's."""
        if self._process is not None:
            send: Callable[[int, int], None] = os.killpg if number == signal.SIGKILL else os.kill
            send(self._process.pid, number)

    def _run(self) -> None:
        while self._wait_until_wanted():
            try:
                process = self._spawn()
            except OSError as error:
                log.error("%s cannot be started: %s", self.plan.name, error)
                self._after_death()
                continue
            if process is None:
                continue
            born = time.monotonic()
            threading.Thread(
                target=self._probe, args=(process,), name=f"{self.plan.name}-probe", daemon=True
            ).start()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            with self._changed:
                self._reap(process)
                asked = not self._wanted
                if time.monotonic() - born > STEADY_SECONDS:
                    self._hurried_deaths = 0
            if not asked:
                log.warning("%s %s", self.plan.name, _how(process.returncode))
                self._after_death()

    def _wait_until_wanted(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._wanted or self._closing)
            return not self._closing

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        """The new process; None if it is not wanted any more."""
        rotate(self.plan.log)
        command = [python(), *self.plan.command, "--lifeline-fd", str(self._inherit[0])]
        with self._changed, self.plan.log.open("ab") as output:
            if not self._wanted:
                return None
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=self._inherit,
                process_group=0,
                env=child_environment(),
            )
            self._state = "starting"
            self._changed.notify_all()
            return self._process

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        """With _changed held. The dead leader's pid keeps the group's number taken until it is reaped."""
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        process.wait()
        self._process = None
        self._state = "dead" if self._wanted else "stopped"
        self._changed.notify_all()

    def _after_death(self) -> None:
        """Counts a death and pauses: not after the first, then longer and longer."""
        with self._changed:
            self.deaths += 1
            self._hurried_deaths += 1
            self._state = "dead" if self._wanted else "stopped"
            self._changed.notify_all()
            hurried = self._hurried_deaths
            pause = 0.0 if hurried == 1 else min(0.1 * 2.0**hurried, PAUSE_SECONDS_MAX)
            self._changed.wait_for(lambda: not self._wanted or self._state == "starting", pause)

    def _probe(self, process: subprocess.Popen[bytes]) -> None:
        """Waits until this very process answers; then it is running."""
        while True:
            answered = self._answers(process)
            with self._changed:
                if self._process is not process:
                    return
                if answered:
                    self._state = "running"
                    self._changed.notify_all()
                    return
            time.sleep(PROBE_SECONDS)

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        try:
            health = msgspec.json.decode(
                call_plain(self._wire, "GET", f"{self.plan.local_url}/healthz", b""), type=Health
            )
            return os.getpgid(health.pid) == process.pid
        except (OSError, msgspec.MsgspecError):
            return False


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status} and is started again"
    return f"was ended by {signal.Signals(-status).name} and is started again"
