"""Finding and ending the processes that tests started: all bear a mark in their environment.

The mark is ``DFS_TEST_RUN=PID-NUMBER``: the process that runs the tests, and which of its realms; the first
number is for what belongs to none. Several such processes may be at work, each with tests of its own. Disks
that tests mount bear the mark too: it is the device that they are said to be of.
"""

import itertools
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mount.registry import MountRecord

MARK = "DFS_TEST_RUN"

_numbers = itertools.count(1)


def new_mark() -> str:
    """A value of the mark that nothing else has."""
    return f"{os.getpid()}-{next(_numbers)}"


def disk_name() -> str:
    """The device of a disk that a test mounts."""
    return f"{MARK}={new_mark()}"


def marked(mark: str) -> dict[int, str]:
    """Living processes with this mark: pid to command line."""
    return {pid: _command(pid) for pid, value in _marks().items() if value == mark}


def mark_children() -> None:
    """What this process starts from now on bears a mark, if it is given no other one."""
    os.environ[MARK] = new_mark()


def sweep() -> None:
    """Ends what test runs that are over have left: their processes, and what was mounted."""
    _end({mark for mark in _all_marks() if not _is_alive(Path("/proc") / mark.partition("-")[0])})


def sweep_own() -> None:
    """The same for what the tests of this process have left."""
    _end({mark for mark in _all_marks() if mark.partition("-")[0] == str(os.getpid())})


def _end(marks: set[str]) -> None:
    for pid, mark in _marks().items():
        if mark in marks:
            mountpoints = _mounts_of_realm(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            for mountpoint in mountpoints:
                subprocess.run(["fusermount3", "-uz", mountpoint], check=False, capture_output=True)
    for mark, disk in _disks():
        if mark in marks:
            subprocess.run(["umount", "-l", disk], check=False, capture_output=True)


def _all_marks() -> set[str]:
    return {*_marks().values(), *(mark for mark, _ in _disks())}


def _disks() -> Iterator[tuple[str, str]]:
    """The mounts whose device is a mark, each with the directory that it is on."""
    for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
        device, place, *_ = line.split(" ")
        if device.startswith(f"{MARK}="):
            yield device.partition("=")[2], place


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


def _mounts_of_realm(pid: int) -> list[str]:
    """The mountpoints that the state folders of the process's realm tell of. (See RealRealm.)"""
    state = _environment(pid).get("DFS_STATE")
    records = Path(state).parent.glob("state-*/mounts/*.json") if state else ()
    return [msgspec.json.decode(path.read_bytes(), type=MountRecord).mountpoint for path in records]
