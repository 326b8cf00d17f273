"""Several users do the same to a local directory and to a realm: results, errors, attributes are the same.

It is the directory that decides here, and no kernel before it. What Linux decides before it asks a file
system is left out: following symlinks, opening what is no file, set-id bits for mkdir(2), who may not link
(fs.protected_hardlinks).
"""

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mount.vfs import Changes
from tests.support.local_user import LocalUser, asked
from tests.support.stack import Client, Stack
from wire.messages.common import Caller

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")

ROOT = Caller(0, [0])
USERS = [
    ROOT,
    Caller(3001, [4001, 4002]),
    Caller(3002, [4002]),
    Caller(3003, [4003, 4001]),
    Caller(3004, [4004]),
]
STEPS = 250
NAMES = ("a", "b", "c")
MODES = [0o777] * 8 + [0o755, 0o700, 0o070, 0o007, 0o770, 0o1777, 0o2775, 0o2755, 0o4755, 0o6777, 0o2070]
MODES += [0o644, 0o444, 0o222, 0o311, 0, 0o1770, 0o3777, 0o5711, 0o2745, 0o2666, 0o6666, 0o2606, 0o666]


class Remote:
    """As ``Local``, in a realm through the Vfs of a trusted mount."""

    def __init__(self, client: Client, who: Caller) -> None:
        self._client = client
        self._who = who

    def _ino(self, path: str) -> int:
        return self._client.walk(path, self._who, fresh=True).ino

    def make(self, path: str, flags: int, mode: int) -> None:
        self._client.close_handle(self._client.open(path, flags | os.O_CREAT, mode, self._who))

    def write(self, path: str, flags: int, data: str) -> None:
        with self._client.opened(path, flags, who=self._who) as handle:
            self._client.vfs.write(handle, 0, data.encode())

    def read(self, path: str) -> str:
        return self._client.read(path, self._who).decode()

    def truncate(self, path: str, size: int) -> None:
        self._client.set(path, Changes(size=size), self._who)

    def mkdir(self, path: str, mode: int) -> None:
        self._client.mkdir(path, mode, self._who)

    def mkfifo(self, path: str, mode: int) -> None:
        self._client.vfs.mknod(*self._client.parent(path, self._who), stat.S_IFIFO | mode, 0, self._who)

    def symlink(self, path: str) -> None:
        self._client.symlink("target", path, self._who)

    def link(self, path: str, new: str) -> None:
        self._client.link(path, new, self._who)

    def unlink(self, path: str) -> None:
        self._client.unlink(path, self._who)

    def rmdir(self, path: str) -> None:
        self._client.rmdir(path, self._who)

    def rename(self, path: str, new: str) -> None:
        self._client.rename(path, new, who=self._who)

    def chmod(self, path: str, mode: int) -> None:
        self._client.set(path, Changes(mode=mode), self._who)

    def chown(self, path: str, uid: int, gid: int) -> None:
        if (uid, gid) == (-1, -1):
            self._client.vfs.drop_privileges(self._ino(path), self._who, may_be_chown=True)
            return
        changes = Changes(uid=None if uid == -1 else uid, gid=None if gid == -1 else gid)
        self._client.set(path, changes, self._who)

    def touch(self, path: str) -> None:
        self._client.set(path, Changes(atime_now=True, mtime_now=True), self._who)

    def set_times(self, path: str) -> None:
        self._client.set(path, Changes(atime=5, mtime=6), self._who)

    def set_xattr(self, path: str, name: str, flags: int) -> None:
        self._client.vfs.setxattr(self._ino(path), name.encode(), b"value", flags, self._who)

    def get_xattr(self, path: str, name: str) -> str:
        return self._client.vfs.getxattr(self._ino(path), name.encode(), self._who).decode()

    def remove_xattr(self, path: str, name: str) -> None:
        self._client.vfs.removexattr(self._ino(path), name.encode(), self._who)

    def xattrs(self, path: str) -> list[str]:
        names = self._client.vfs.listxattr(self._ino(path), self._who)
        return sorted(name.decode() for name in names)

    def names(self, path: str) -> list[str]:
        entries = self._client.vfs.readdir(self._ino(path), self._who)
        return sorted(os.fsdecode(entry.name) for entry in entries)

    def look(self, path: str) -> list[int]:
        attr = self._client.walk(path, self._who, fresh=True)
        return [attr.mode, attr.uid, attr.gid, attr.nlink, 0 if stat.S_ISDIR(attr.mode) else attr.size]


class Draw:
    """What is done next. ``known`` are paths that are there."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.known: dict[str, int] = {}

    def user(self) -> int:
        """A number of USERS."""
        return self._random.randrange(len(USERS))

    def mode(self) -> int:
        """Permission bits."""
        return self._random.choice(MODES)

    def _path(self) -> str:
        name = self._random.choice(NAMES)
        if not self.known or self._random.random() < 0.3:
            return f"/{name}"
        path = self._random.choice(list(self.known))
        if self._random.random() < 0.7 or stat.S_ISLNK(self.known[path]):
            return path
        return f"{path}/{name}"

    def _is_other(self, path: str) -> bool:
        kind = stat.S_IFMT(self.known.get(path, stat.S_IFREG))
        return kind not in (stat.S_IFREG, stat.S_IFDIR)

    def step(self) -> list[Any]:
        """A method of ``Local`` and its arguments."""
        path, choose = self._path(), self._random.choice
        steps: list[list[Any]] = [
            ["mkdir", path, self.mode() & 0o1777],
            ["mkfifo", path, self.mode()],
            ["symlink", path],
            ["unlink", path],
            ["rmdir", path],
            ["rename", path, self._path()],
            ["chown", path, choose((-1, 0, 3001, 3002)), choose((-1, 0, 4001, 4002, 4004))],
            ["touch", path],
            ["set_times", path],
            ["look", path],
        ]
        name = choose(("user.a", "user.b", "trusted.a"))
        if not self._is_other(path):
            steps += [
                ["make", path, choose((os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_EXCL)), self.mode()],
                ["write", path, choose((os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND)), "text"],
                ["write", path, os.O_WRONLY | os.O_TRUNC, "new text"],
                ["names", path],
                ["link", path, self._path()],
                ["truncate", path, choose((0, 3, 4, 10))],
                ["chmod", path, self.mode()],
                ["chmod", path, self.mode()],
                ["set_xattr", path, name, choose((0, 0, 1, 2, 3))],
                ["get_xattr", path, name],
                ["remove_xattr", path, name],
                ["xattrs", path],
            ]
        if stat.S_ISREG(self.known.get(path, stat.S_IFREG)):
            steps.append(["read", path])
        return choose(steps)


def everything(root: Any, path: str = "") -> dict[str, Any]:
    """All that is below a directory, as root sees it."""
    found = {}
    for name in root(["names", path or "/"]):
        below = f"{path}/{name}"
        look = root(["look", below])
        found[below] = [*look, root(["xattrs", below])]
        if stat.S_ISDIR(look[0]):
            found |= everything(root, below)
    return found


@pytest.fixture
def local(tmp_path: Path) -> Iterator[list[LocalUser]]:
    folder = tmp_path / "local"
    folder.mkdir()
    users = [LocalUser(folder, who) for who in USERS]
    yield users
    for user in users:
        user.close()


@pytest.mark.parametrize("seed", range(4))
def test_users_find_the_same_as_in_a_local_directory(stack: Stack, local: list[LocalUser], seed: int) -> None:
    client = stack.client(trusted=True)
    remote = [Remote(client, who) for who in USERS]
    draw = Draw(seed)
    top: list[Any] = ["chmod", "/", 0o777 if seed % 2 else 0o1777]
    local[0].ask(top)
    asked(remote[0], top)
    done: list[Any] = []
    for number in range(STEPS):
        there = everything(local[0].ask)
        if number % 8 == 0:
            assert everything(lambda asks: asked(remote[0], asks)) == there, (seed, number, done[-8:])
        draw.known = {path: look[0] for path, look in there.items()}
        user, step = draw.user(), draw.step()
        if step[0] == "link":
            user = 0
        done.append((USERS[user], step))
        expected = local[user].ask(step)
        assert asked(remote[user], step) == expected, (seed, number, done[-1], there)
