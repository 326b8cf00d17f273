"""Finding and ending the processes that tests started: all bear a mark in their environment.

The mark is ``DFS_TEST_RUN=PID-NUMBER``: the process id of the test run, and which of its realms.
"""

import itertools
import os
import signal
import subprocess
from pathlib import Path

import msgspec

from mount.registry import MountRecord

MARK = "DFS_TEST_RUN"

_numbers = itertools.count(1)


def new_mark() -> str:
    """A value of the mark that nothing else has."""
    return f"{os.getpid()}-{next(_numbers)}"


def marked(mark: str) -> dict[int, str]:
    """Living processes with this mark: pid to command line."""
    return {pid: _command(pid) for pid, value in _marks().items() if value == mark}


def sweep() -> None:
    """Ends what test runs that are over have left: their processes, and what these had mounted."""
    for pid, mark in _marks().items():
        if not Path(f"/proc/{mark.partition('-')[0]}").exists():
            mountpoints = _mounted_by(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            for mountpoint in mountpoints:
                subprocess.run(["fusermount3", "-uz", mountpoint], check=False, capture_output=True)


def _marks() -> dict[int, str]:
    """All living processes that bear a mark."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        value = _environment(int(folder.name)).get(MARK)
        if value is not None and _is_alive(folder):
            found[int(folder.name)] = value
    return found


def _environment(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return {}
    return dict(word.split("=", 1) for word in text.split("\0") if "=" in word)


def _is_alive(folder: Path) -> bool:
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def _mounted_by(pid: int) -> list[str]:
    """The mountpoints that the process's state folder tells of."""
    state = _environment(pid).get("DFS_STATE")
    records = Path(state, "mounts").glob("*.json") if state else ()
    return [msgspec.json.decode(path.read_bytes(), type=MountRecord).mountpoint for path in records]
