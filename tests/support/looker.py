"""Changes files below one folder and looks at them, as it is told: the eyes and the hand of a mount.

``perform`` does it in this process. ``Looker`` has it done by a process of its own (this module, run), so
that what is looked through are the kernel's caches, and nothing else.
"""

import errno
import hashlib
import json
import mmap
import os
import select
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

Command = tuple[str | int, ...]
"""What is to be done, and with what; paths below the folder. Each method of ``_Hand`` is one."""

ATTRIBUTE = "user.looked"
ACLS = ("system.posix_acl_access", "system.posix_acl_default")
ANSWER_SECONDS = 300.0


def content(tag: int, size: int) -> bytes:
    """``size`` bytes that say who wrote them."""
    line = f"{tag:08x} ".encode()
    return (line * (size // len(line) + 1))[:size]


def digest(data: bytes) -> list[int | str]:
    """The content, short enough to be sent and long enough to see where an old one came from."""
    tags = [data[:8].decode(), data[-12:].decode()]
    return [len(data), *tags, hashlib.blake2b(data, digest_size=12).hexdigest()]


def perform(folder: str, command: Command) -> Any:
    """What the command gave, or the name of its error."""
    name, path, *others = command
    try:
        return getattr(_Hand(folder), str(name))(os.path.join(folder, str(path)), *others)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))


def _attributes(status: os.stat_result) -> dict[str, Any]:
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    times = [status.st_mtime_ns, status.st_ctime_ns]
    return {
        "ino": status.st_ino,
        "mode": status.st_mode,
        "links": status.st_nlink,
        "size": size,
        "times": times,
    }


def _read(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _open_again(path: str) -> None:
    """So often that the mount expects it to be opened once more, and has something ready for it."""
    for _ in range(2):
        with suppress(OSError):  # the path may lead elsewhere by now
            os.close(os.open(path, os.O_RDONLY))


_kept: list[int] = []
"""Descriptors that are open until ``shut``."""


class _Hand:
    """All commands. ``path`` is absolute; a second path is below ``folder``."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    # Looking

    def stat(self, path: str) -> Any:
        return _attributes(os.lstat(path))

    def follow(self, path: str) -> Any:
        return _attributes(os.stat(path))

    def read(self, path: str) -> Any:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return [_attributes(os.fstat(descriptor)), digest(_read(descriptor))]
        finally:
            os.close(descriptor)
            _open_again(path)

    def map(self, path: str) -> Any:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, path)
            if not status.st_size:
                return digest(b"")
            with mmap.mmap(descriptor, status.st_size, prot=mmap.PROT_READ) as pages:
                return digest(pages[:])
        finally:
            os.close(descriptor)

    def list(self, path: str) -> Any:
        return sorted(os.listdir(path))

    def scan(self, path: str) -> Any:
        with os.scandir(path) as entries:
            return sorted([entry.name, _attributes(entry.stat(follow_symlinks=False))] for entry in entries)

    def readlink(self, path: str) -> Any:
        return os.readlink(path)

    def attribute(self, path: str) -> Any:
        return os.getxattr(path, ATTRIBUTE).decode()

    def acls(self, path: str) -> Any:
        names = os.listxattr(path)
        return [os.getxattr(path, name).hex() if name in names else "" for name in ACLS]

    # Changing

    def write(self, path: str, tag: int, size: int) -> None:
        self._put(path, os.O_CREAT | os.O_TRUNC, content(tag, size))

    def create(self, path: str, tag: int, size: int) -> None:
        self._put(path, os.O_CREAT | os.O_EXCL, content(tag, size))

    def append(self, path: str, tag: int, size: int) -> None:
        self._put(path, os.O_APPEND, content(tag, size))

    def patch(self, path: str, tag: int, size: int) -> None:
        self._put(path, 0, content(tag, size))

    def sync(self, path: str, tag: int, size: int) -> None:
        """What an fsync has acknowledged, while the file is still open; until ``shut``."""
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CREAT, 0o644)
        _kept.append(descriptor)
        os.write(descriptor, content(tag, size))
        os.fsync(descriptor)

    def shut(self, _path: str) -> None:
        while _kept:
            os.close(_kept.pop())

    def truncate(self, path: str, size: int) -> None:
        os.truncate(path, size)

    def mkdir(self, path: str) -> None:
        os.mkdir(path, 0o755)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rename(self, path: str, to: str) -> None:
        os.rename(path, os.path.join(self._folder, to))

    def link(self, path: str, to: str) -> None:
        os.link(path, os.path.join(self._folder, to), follow_symlinks=False)

    def symlink(self, path: str, target: str) -> None:
        os.symlink(target, path)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def utime(self, path: str, seconds: int) -> None:
        os.utime(path, (seconds, seconds))

    def allow(self, path: str, which: int, value: str) -> None:
        os.setxattr(path, ACLS[which], bytes.fromhex(value))

    def disallow(self, path: str, which: int) -> None:
        os.removexattr(path, ACLS[which])

    def mark(self, path: str, tag: int) -> None:
        os.setxattr(path, ATTRIBUTE, f"{tag}".encode())

    def unmark(self, path: str) -> None:
        os.removexattr(path, ATTRIBUTE)

    def _put(self, path: str, flags: int, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | flags, 0o644)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


class Looker:
    """A process that performs commands below ``folder``, in the order in which they are begun."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._begun = 0
        self._heard = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.looker", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parent.parent.parent,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, commands: Sequence[Command]) -> None:
        """Does not wait for their ``answers``."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(commands).encode() + b"\n")
        self._process.stdin.flush()
        self._begun += 1

    def answers(self, seconds: float = ANSWER_SECONDS) -> list[Any]:
        """Of what was begun last; earlier ones are dropped. Raises TimeoutError."""
        line = b""
        while self._begun:
            line = self._line(seconds)
            self._begun -= 1
        found: list[Any] = json.loads(line)
        return found

    def ask(self, *commands: Command) -> list[Any]:
        """``begin`` and ``answers``."""
        self.begin(commands)
        return self.answers()

    def close(self) -> None:
        """The process ends; what it has open is closed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _line(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self._process.stdout], [], [], seconds)
            if not ready:
                raise TimeoutError(f"{self.folder}: no answer within {seconds} s")
            more = os.read(self._process.stdout.fileno(), 1 << 16)
            assert more, f"{self.folder}: the looking process died"
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return line


def main() -> None:
    """A line of commands in, a line of what they gave out."""
    folder = sys.argv[1]
    for line in sys.stdin:
        print(json.dumps([perform(folder, tuple(command)) for command in json.loads(line)]), flush=True)


if __name__ == "__main__":
    main()
