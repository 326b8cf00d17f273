"""A local user at work in a local directory: a process that is him, told what to do line by line.

``python -m tests.support.local_user FOLDER UID GID,GID…``, as root. Asked ``["mkdir", "/a", 511]`` it answers
with what the method returned, or the name of the errno.
"""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from wire.messages.common import Caller


def asked(user: object, step: list[Any]) -> Any:
    """What the method that ``step`` names returned, or the name of the errno that it raised."""
    what, *arguments = step
    try:
        return getattr(user, what)(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


class Local:
    """The calls of a user in the current directory, with results that JSON has. Paths begin with a slash,
    which stands for it. ``look`` tells type and mode, owners, links and size."""

    def make(self, path: str, flags: int, mode: int) -> None:
        os.close(os.open(f".{path}", flags | os.O_CREAT, mode))

    def write(self, path: str, flags: int, data: str) -> None:
        descriptor = os.open(f".{path}", flags)
        os.write(descriptor, data.encode())
        os.close(descriptor)

    def read(self, path: str) -> str:
        with open(f".{path}") as file:
            return file.read()

    def truncate(self, path: str, size: int) -> None:
        os.truncate(f".{path}", size)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(f".{path}", mode)

    def mkfifo(self, path: str, mode: int) -> None:
        os.mkfifo(f".{path}", mode)

    def symlink(self, path: str) -> None:
        os.symlink("target", f".{path}")

    def link(self, path: str, new: str) -> None:
        os.link(f".{path}", f".{new}", follow_symlinks=False)

    def unlink(self, path: str) -> None:
        os.unlink(f".{path}")

    def rmdir(self, path: str) -> None:
        os.rmdir(f".{path}")

    def rename(self, path: str, new: str) -> None:
        os.rename(f".{path}", f".{new}")

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(f".{path}", mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(f".{path}", uid, gid, follow_symlinks=False)

    def touch(self, path: str) -> None:
        os.utime(f".{path}", follow_symlinks=False)

    def set_times(self, path: str) -> None:
        os.utime(f".{path}", ns=(5, 6), follow_symlinks=False)

    def set_xattr(self, path: str, name: str, flags: int) -> None:
        os.setxattr(f".{path}", name, b"value", flags, follow_symlinks=False)

    def get_xattr(self, path: str, name: str) -> str:
        return os.getxattr(f".{path}", name, follow_symlinks=False).decode()

    def remove_xattr(self, path: str, name: str) -> None:
        os.removexattr(f".{path}", name, follow_symlinks=False)

    def xattrs(self, path: str) -> list[str]:
        return sorted(os.listxattr(f".{path}", follow_symlinks=False))

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(f".{path}"))

    def look(self, path: str) -> list[int]:
        found = os.lstat(f".{path}")
        size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
        return [found.st_mode, found.st_uid, found.st_gid, found.st_nlink, size]


class LocalUser:
    """The process of a user, seen from the test."""

    def __init__(self, folder: Path, who: Caller) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), str(who.uid), ",".join(map(str, who.gids))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, step: list[Any]) -> Any:
        """As ``asked``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(step)}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()


def main(folder: str, uid: str, gids: str) -> None:
    """Becomes the user and does what it is told."""
    os.chdir(folder)
    os.umask(0)
    groups = [int(gid) for gid in gids.split(",")]
    os.setgroups(groups)
    os.setresgid(groups[0], groups[0], groups[0])
    os.setresuid(int(uid), int(uid), int(uid))
    me = Local()
    for line in sys.stdin:
        print(json.dumps(asked(me, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
