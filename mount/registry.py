"""Which mounts there are on this machine, for ``dfs status`` and ``dfs umount``.

Each mount process writes one file when it is mounted and removes it when it ends; one that was
killed leaves its file behind, which is then shown as a dead mount::

    STATE/mounts/<hash of the mountpoint>.json       a MountRecord
                                         .sock       its control socket (mount.control)
                                         .log        what it has to say, and those before it at this place
"""

import errno
import hashlib
import os
import re
from pathlib import Path

import msgspec

from wire.errors import fail


class MountRecord(msgspec.Struct, frozen=True):
    """A mount. ``control`` is the path of its control socket; ``started`` in seconds since the epoch: the
    mount, not its worker. ``passthrough``: the kernel reads and writes local copies itself where it can."""

    mountpoint: str
    binding: str
    pid: int
    realm: str
    user: str
    cache_dir: str
    control: str
    started: float
    passthrough: bool = False
    worker_pid: int = 0
    """Who does the work, and may be another process the next moment; ``pid`` is who holds the mount."""
    version: str = ""
    """Of DFS."""

    @property
    def is_alive(self) -> bool:
        """Whether its process is there and something is mounted at its mountpoint."""
        return _runs(self.pid) and self.mountpoint in mountpoints()


def state_folder() -> Path:
    """Where this user's client keeps what outlives it: sessions, pins, mounts. $DFS_STATE overrides it."""
    if named := os.environ.get("DFS_STATE"):
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "dfs"


def state_file(mountpoint: Path | str, suffix: str) -> Path:
    """A file of the mount at ``mountpoint``, in a folder that is there and the user's own."""
    folder = state_folder() / "mounts"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / (hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:24] + suffix)


def register(record: MountRecord) -> None:
    """Tells of a mount, in place of an earlier one at the same mountpoint."""
    path = state_file(record.mountpoint, ".json")
    temporary = state_file(record.mountpoint, f".{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(record))
    temporary.rename(path)


def unregister(mountpoint: str) -> None:
    """Takes the word back; it is no error if there is none."""
    state_file(mountpoint, ".json").unlink(missing_ok=True)


def find(mountpoint: str) -> MountRecord:
    """The mount at ``mountpoint``, dead or alive. Raises ENOENT if none is known."""
    for record in records():
        if record.mountpoint == mountpoint:
            return record
    raise fail(errno.ENOENT, f"no mount of DFS is known at {mountpoint}")


def records() -> list[MountRecord]:
    """All known mounts, by mountpoint, dead ones too."""
    found = []
    for path in (state_folder() / "mounts").glob("*.json"):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=MountRecord))
        except (FileNotFoundError, msgspec.DecodeError):
            continue  # removed at this moment, or of a version of DFS that wrote other fields
    return sorted(found, key=lambda record: record.mountpoint)


def mountpoints() -> set[str]:
    """All mountpoints that this process can see."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return {_unescape(line.split(" ")[4]) for line in lines}


def real_place(path: Path) -> Path:
    """The mountpoint as the kernel names it: absolute, without symlinks. What is mounted there is not asked:
    it may be dead, or wait for its services."""
    path = Path.cwd() / path
    place = Path(os.path.realpath(path.parent), path.name)
    return place if str(place) in mountpoints() else Path(os.path.realpath(path))


def _unescape(text: str) -> str:
    """Blanks and the like stand in /proc as octal numbers (proc(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
