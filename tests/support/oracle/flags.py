"""open(2) with every combination of flags, on everything that can be opened: as in a local directory.

What is expected is not written down: the same is done to a local directory.
"""

import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.syscalls import as_user
from tests.support.twins import failed, outcome

ACCESSES = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
NAMELESS = os.O_TMPFILE & ~os.O_DIRECTORY
FLAGS = {
    "CREAT": os.O_CREAT,
    "EXCL": os.O_EXCL,
    "TRUNC": os.O_TRUNC,
    "APPEND": os.O_APPEND,
    "DIRECTORY": os.O_DIRECTORY,
    "NOFOLLOW": os.O_NOFOLLOW,
    "PATH": os.O_PATH,
    "NONBLOCK": os.O_NONBLOCK,
    "SYNC": os.O_SYNC,
    "NOATIME": os.O_NOATIME,
    "NAMELESS": NAMELESS,
}
TARGETS = (
    "missing",
    "file",
    "read-only",
    "secret",
    "folder",
    "folder/missing",
    "folder/",
    "file/",
    "missing/",
    "to-file",
    "to-folder",
    "to-missing",
    "to-itself",
    "fifo",
    "socket",
    "closed/file",
    "closed/missing",
    "listed/file",
    "fixed/missing",
    "file/below",
)
"""What ``build`` makes, and what it does not. Directories: 0700, 0666 (no search), 0755, all of root."""

USERS = {"root": (0, (0,)), "another user": (40001, (40001,))}
CONTENT = b"content"


@dataclass(frozen=True)
class Case:
    """One call."""

    target: str
    user: str
    flags: int

    def __str__(self) -> str:
        names = [name for name, flag in FLAGS.items() if self.flags & flag == flag]
        access = ("RDONLY", "WRONLY", "RDWR")[self.flags & os.O_ACCMODE]
        return f"{self.user}: open {self.target} {access} {' '.join(names)}"


def cases(every: int) -> Iterator[Case]:
    """One of so many, of all."""
    subsets = [sum(flags) for flags in itertools.product(*((0, flag) for flag in FLAGS.values()))]
    found = itertools.product(subsets, ACCESSES, USERS, TARGETS)
    for subset, access, user, target in itertools.islice(found, 0, None, every):
        waits = target == "fifo" and not subset & os.O_PATH  # for its other end
        yield Case(target, user, access | subset | (os.O_NONBLOCK if waits else 0))


def build(root: Path) -> None:
    """Everything anew."""
    if root.exists():
        shutil.rmtree(root)
    root.mkdir()
    for name, mode in (("folder", 0o777), ("closed", 0o700), ("listed", 0o666), ("fixed", 0o755)):
        (root / name).mkdir()
        (root / name).chmod(mode)
    for name, mode in (("file", 0o666), ("read-only", 0o444), ("secret", 0o600), ("closed/file", 0o666)):
        (root / name).write_bytes(CONTENT)
        (root / name).chmod(mode)
    shutil.copy(root / "file", root / "listed" / "file")
    for name, where in (
        ("file", "file"),
        ("folder", "folder"),
        ("missing", "folder/new"),
        ("itself", "to-itself"),
    ):
        (root / f"to-{name}").symlink_to(where)
    os.mkfifo(root / "fifo", 0o666)
    (root / "fifo").chmod(0o666)
    os.mknod(root / "socket", stat.S_IFSOCK | 0o666)
    root.chmod(0o777)


def state(root: Path) -> list[object]:
    """What a call may have changed."""
    found: list[object] = []
    for folder in (root, root / "folder"):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            status = entry.stat(follow_symlinks=False)
            size = 0 if entry.is_dir(follow_symlinks=False) else status.st_size
            found.append((entry.name, status.st_mode, status.st_uid, status.st_gid, size))
    return found


def call(root: Path, case: Case) -> object:
    """What comes out of it: an errno, or what the descriptor is good for."""
    back = as_user(*USERS[case.user])
    try:
        descriptor = outcome(lambda: os.open(f"{root}/{case.target}", case.flags, 0o642))
        if not isinstance(descriptor, int):
            return descriptor
        try:
            return use(descriptor, is_fifo=case.target == "fifo")
        finally:
            os.close(descriptor)
    finally:
        back()


def use(descriptor: int, *, is_fifo: bool) -> list[object]:
    """Reads, writes, and looks."""
    status = os.fstat(descriptor)
    found: list[object] = [status.st_mode, 0 if stat.S_ISDIR(status.st_mode) else status.st_size]
    if not is_fifo:
        found.append(outcome(lambda: os.read(descriptor, 4)))
        found.append(outcome(lambda: os.write(descriptor, b"more")))
        found.append(outcome(lambda: os.lseek(descriptor, 0, os.SEEK_CUR)))
        found.append(outcome(lambda: os.pread(descriptor, 100, 0)))
    return found


def differences(
    there: Path, here: Path, every: int, *, has_nameless: bool
) -> Iterator[tuple[Case, object, object]]:
    """The cases in which two directories do not do the same, with what came out of each. Unless ``there``
    ``has_nameless`` files, that it says so is none."""
    for root in (there, here):
        build(root)
    untouched = state(here)
    assert state(there) == untouched
    for case in cases(every):
        outcomes = [call(root, case) for root in (there, here)]
        states = (
            [state(root) for root in (there, here)]
            if outcomes != [outcomes[1]] * 2 or not failed(outcomes[1])
            else [untouched] * 2
        )
        found, expected = zip(outcomes, states, strict=True)
        is_refusal = bool(case.flags & NAMELESS) and outcomes[0] == "[ENOTSUP]"
        if found != expected and (has_nameless or not is_refusal):
            yield case, found, expected
        if states != [untouched] * 2:
            for root in (there, here):
                restore(root)


def restore(root: Path) -> None:
    """Everything as it was."""
    for name in ("missing", "folder/missing", "folder/new", "fixed/missing", "closed/missing"):
        with suppress(FileNotFoundError):
            (root / name).unlink()
    for name in ("file", "read-only", "secret", "closed/file", "listed/file"):
        if (root / name).read_bytes() != CONTENT:
            (root / name).write_bytes(CONTENT)
