"""A model of the namespace: whatever is done, a local directory and the directory server agree.

Every operation is done to both, by root or by an ordinary user; errnos, types, permission bits, owners, link
counts, link targets and listings must be the same. Names come from a small set, so that they collide often.
"""

import ctypes
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.directory import DirectoryRealm
from wire.messages.directory import ROOT_INO, Attr, Create, Link, Op, Rename, Rmdir, SetAttr, Unlink

USER = 1000
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)

Names = tuple[bytes, ...]
who = st.sampled_from([0, USER, USER])
paths = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=3).map(tuple)
new_paths = st.one_of(paths, paths, paths.map(lambda names: (*names, b"L" * 256)))
modes = st.sampled_from([0o755, 0o777, 0o640, 0o000, 0o711, 0o1777, 0o2770, 0o4711, 0o6755])
owners = st.sampled_from([None, 0, USER])


@contextmanager
def _acting_as(uid: int) -> Iterator[None]:
    """setfsuid(2) is of this thread alone; it takes the file system capabilities of root away."""
    _libc.setfsgid(uid)
    _libc.setfsuid(uid)
    try:
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(0)


def _renameat2(old: bytes, new: bytes, flags: int) -> None:
    if _libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def _errno_of(run: Callable[[], object]) -> str:
    try:
        run()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def _hard_links_are_free() -> bool:
    """Whether the kernel adds no rule of its own to link(2)."""
    return Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "0"


class Namespace(RuleBasedStateMachine):
    """The two sides. ``local`` is where the oracle lives."""

    def __init__(self) -> None:
        super().__init__()
        self._umask = os.umask(0)
        self._folder = tempfile.TemporaryDirectory()
        os.chmod(self._folder.name, 0o755)
        self.local = os.path.join(os.fsencode(self._folder.name), b"local")
        os.mkdir(self.local)
        os.chmod(self.local, 0o1777)
        self.realm = DirectoryRealm(Path(self._folder.name))
        groups = [group for group in os.getgroups() if group != USER]
        self.users = {0: self.realm.user(0), USER: self.realm.user(USER, USER, *groups)}

    def teardown(self) -> None:
        self.realm.server.close()
        os.umask(self._umask)
        self._folder.cleanup()

    def _path(self, names: Names) -> bytes:
        return b"/".join((self.local, *names))

    def _find(self, uid: int, names: Names) -> int:
        resolved = self.users[uid].client.resolve(ROOT_INO, list(names))
        if resolved.errno:
            raise OSError(getattr(errno, resolved.errno), resolved.errno)
        return resolved.attrs[-1].ino

    def _parent(self, uid: int, names: Names) -> int:
        """Where the last name would be. An old name's parent is walked to before a new one's."""
        resolved = self.users[uid].client.resolve(ROOT_INO, list(names))
        if resolved.errno in ("ENOTDIR", "EACCES") or len(resolved.attrs) < len(names):
            raise OSError(getattr(errno, resolved.errno), resolved.errno)
        return resolved.attrs[len(names) - 1].ino

    def _both(
        self, uid: int, names: list[Names], here: Callable[[], object], there: Callable[[], Op]
    ) -> None:
        if any(stat.S_ISLNK(self._local_mode(some[:end])) for some in names for end in range(1, len(some))):
            return  # would be followed here, and is not there
        with _acting_as(uid):
            expected = _errno_of(here)
        assert _errno_of(lambda: self.users[uid].do(there())) == expected

    # What may happen

    @rule(uid=who, names=new_paths, mode=modes)
    def mkdir(self, uid: int, names: Names, mode: int) -> None:
        mode &= 0o1777  # as mkdir(2) does itself
        self._both(
            uid,
            [names],
            lambda: os.mkdir(self._path(names), mode),
            lambda: Create(self._parent(uid, names), names[-1], stat.S_IFDIR | mode),
        )

    @rule(uid=who, names=new_paths, mode=modes, kind=st.sampled_from([stat.S_IFREG, stat.S_IFIFO]))
    def mknod(self, uid: int, names: Names, mode: int, kind: int) -> None:
        self._both(
            uid,
            [names],
            lambda: os.mknod(self._path(names), kind | mode),
            lambda: Create(self._parent(uid, names), names[-1], kind | mode),
        )

    @rule(uid=who, names=new_paths, to=st.sampled_from([b"a", b"../x/y", b"t" * 1000]))
    def symlink(self, uid: int, names: Names, to: bytes) -> None:
        self._both(
            uid,
            [names],
            lambda: os.symlink(to, self._path(names)),
            lambda: Create(self._parent(uid, names), names[-1], stat.S_IFLNK | 0o777, target=to),
        )

    @rule(uid=who, old=paths, new=new_paths)
    def link(self, uid: int, old: Names, new: Names) -> None:
        uid = uid if _hard_links_are_free() else 0
        self._both(
            uid,
            [old, new],
            lambda: os.link(self._path(old), self._path(new), follow_symlinks=False),
            lambda: Link(self._find(uid, old), self._parent(uid, new), new[-1]),
        )

    @rule(uid=who, names=new_paths)
    def unlink(self, uid: int, names: Names) -> None:
        self._both(
            uid,
            [names],
            lambda: os.unlink(self._path(names)),
            lambda: Unlink(self._parent(uid, names), names[-1]),
        )

    @rule(uid=who, names=new_paths)
    def rmdir(self, uid: int, names: Names) -> None:
        self._both(
            uid,
            [names],
            lambda: os.rmdir(self._path(names)),
            lambda: Rmdir(self._parent(uid, names), names[-1]),
        )

    @rule(uid=who, old=paths, new=paths, flags=st.sampled_from([0, 0, 0, 1, 2]))
    def rename(self, uid: int, old: Names, new: Names, flags: int) -> None:
        def there() -> Rename:
            return Rename(self._parent(uid, old), old[-1], self._parent(uid, new), new[-1], flags)

        self._both(uid, [old, new], lambda: _renameat2(self._path(old), self._path(new), flags), there)

    @rule(uid=who, names=paths, mode=modes)
    def chmod(self, uid: int, names: Names, mode: int) -> None:
        if stat.S_ISLNK(self._local_mode(names)):
            return  # would be followed
        self._both(
            uid,
            [names],
            lambda: os.chmod(self._path(names), mode),
            lambda: SetAttr(self._find(uid, names), mode=mode),
        )

    def _local_mode(self, names: Names) -> int:
        try:
            return os.lstat(self._path(names)).st_mode
        except OSError:
            return 0

    @rule(uid=who, names=paths, owner=owners, group=owners)
    def chown(self, uid: int, names: Names, owner: int | None, group: int | None) -> None:
        if owner is None and group is None:
            return
        owner_here, group_here = (-1 if number is None else number for number in (owner, group))
        self._both(
            uid,
            [names],
            lambda: os.lchown(self._path(names), owner_here, group_here),
            lambda: SetAttr(self._find(uid, names), uid=owner, gid=group),
        )

    @rule(uid=who, names=paths, time=st.sampled_from([None, 0, 2**60]))
    def utimens(self, uid: int, names: Names, time: int | None) -> None:
        times = None if time is None else (time, time)
        now = time is None
        self._both(
            uid,
            [names],
            lambda: (
                os.utime(self._path(names), ns=times, follow_symlinks=False)
                if times
                else os.utime(self._path(names), follow_symlinks=False)
            ),
            lambda: SetAttr(self._find(uid, names), atime=time, mtime=time, atime_now=now, mtime_now=now),
        )

    @rule()
    def restart(self) -> None:
        self.realm.restart()

    # What always holds

    @invariant()
    def the_trees_are_the_same(self) -> None:
        self._compare(ROOT_INO, ROOT_INO, self.local)

    def _compare(self, ino: int, parent: int, folder: bytes) -> None:
        page = self.users[0].client.list_page(ino)
        assert page.parent == parent
        assert _shown(page.attr) == _seen(folder)
        assert sorted(entry.name for entry in page.entries) == sorted(os.listdir(folder))
        for entry in page.entries:
            path = os.path.join(folder, entry.name)
            if stat.S_ISDIR(entry.attr.mode):
                self._compare(entry.attr.ino, ino, path)
                continue
            assert _shown(entry.attr) == _seen(path)
            if stat.S_ISLNK(entry.attr.mode):
                assert self.users[0].client.target(entry.attr.ino) == os.fsencode(os.readlink(path))


def _shown(attr: Attr) -> tuple[int, int, int, int]:
    return attr.mode, attr.nlink, attr.uid, attr.gid


def _seen(path: bytes) -> tuple[int, int, int, int]:
    local = os.lstat(path)
    return local.st_mode, local.st_nlink, local.st_uid, local.st_gid


Namespace.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    phases=(Phase.reuse, Phase.generate),  # a failure is short enough, and shrinking it takes minutes
    suppress_health_check=[HealthCheck.too_slow],
)
TestNamespace = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as others")(
    Namespace.TestCase
)
