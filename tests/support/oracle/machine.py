"""Whatever programs do on two mounts in turn, a local directory does the same: a state machine that compares.

Every operation is done through one of two mounts and to a directory of a local file system. Results, errnos,
bytes and attributes must be the same (tests/support/twins.py says which). The rule of the two mounts: what
one has open for writing is left to it, elsewhere the last committed version is seen and a second writer
waits. All else is done through either at any time, by root or by another user.

What is known to differ, and left out: see docs/semantics.md, "Differences".

As a command: ``python -m tests.support.oracle --examples 1000 --steps 100 --seed 1``.
"""

import itertools
import mmap
import os
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from mount.ranges import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from tests.support.holes import fallocate
from tests.support.syscalls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    UTIME_NOW,
    UTIME_OMIT,
    as_user,
    link_descriptor,
    link_followed,
    renameat2,
    utimensat,
)
from tests.support.twins import Twin, Watch, World, failed, outcome
from wire.limits import CHUNK_BYTES

FOLDERS = ("", "d/", "d/e/")
NAMES = ("a", "b", "d", "e", "l")
TARGETS = ("a", "d", "e", "d/b", "../b", "l", "d/e/../a", "none/b", "x" * 255, "y/" * 2047 + "y")
USERS = ((0, (0,)), (0, (0,)), (0, (0,)), (40001, (40001, 40010)), (40002, (40002,)))
OPEN_MAX = 6

_roots = itertools.count(1)

mounts = st.integers(0, 1)
users = st.integers(0, len(USERS) - 1)
paths = st.tuples(st.sampled_from(FOLDERS), st.sampled_from(NAMES)).map("".join)
offsets = st.sampled_from(
    [0, 0, 1, 100, 4096, 5000, 70_000, CHUNK_BYTES - 3, CHUNK_BYTES, 2 * CHUNK_BYTES - 1]
)
lengths = st.sampled_from([0, 1, 30, 4096, 6000, 70_000, CHUNK_BYTES + 5])
modes = st.sampled_from([0o644, 0o600, 0o666, 0o755, 0o777, 0o444, 0o1777, 0o000])
picks = st.integers(0, 30)
seeds = st.integers(0, 255)
ids = st.sampled_from([-1, 0, 40001, 40002, 40010])
names_of_xattrs = st.sampled_from(["user.a", "user.b", "trusted.t", "security.s", "other.o", "plain"])
values = st.sampled_from([b"", b"v", b"value " * 20])
moments = st.sampled_from(
    [(0, 0), (1, 7), (2**31 + 5, 999_999_999), (-5, 3), (9, UTIME_NOW), (9, UTIME_OMIT)]
)
accesses = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR])
creates = st.sampled_from([0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL])
others = st.sampled_from(
    [
        0,
        0,
        0,
        os.O_TRUNC,
        os.O_APPEND,
        os.O_APPEND | os.O_TRUNC,
        os.O_NOFOLLOW,
        os.O_DIRECTORY,
        os.O_SYNC,
        os.O_DSYNC | os.O_TRUNC,
        os.O_PATH,
        os.O_NOATIME,
    ]
)


@dataclass
class Opened:
    """A file or a directory that is open on both sides; ``ino`` is the local one's."""

    mount: int
    there: int
    here: int
    flags: int
    ino: int
    is_folder: bool
    maps: list[tuple[mmap.mmap, mmap.mmap]] = field(default_factory=list)

    @property
    def writes(self) -> bool:
        """Whether it has the write lock, as O_TRUNC has too."""
        asked = self.flags & (os.O_ACCMODE | os.O_TRUNC)
        return not self.is_folder and not self.flags & os.O_PATH and bool(asked)

    def close(self) -> None:
        for pair in self.maps:
            for one in pair:
                one.close()
        os.close(self.there)
        os.close(self.here)


class Machine(RuleBasedStateMachine):
    """The two sides. ``world`` is set before the first run."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        name = str(next(_roots))
        self.here = f"{self.world.local / name}/"
        self.there = [f"{mount / name}/" for mount in self.world.mounts]
        self.opened: list[Opened] = []
        self.identities: dict[int, int] = {}
        self.vague: set[int] = set()
        for root in (self.here, self.there[0]):
            os.mkdir(root)
            os.chmod(root, 0o777)

    @initialize(umask=st.sampled_from([0, 0o022, 0o077]), mode=modes)
    def begin(self, umask: int, mode: int) -> None:
        """There is something to begin with, or else most calls find nothing."""
        self.umask = os.umask(umask)
        for place in ("d", "d/e"):
            self.mkdir(0, 0, place, mode | 0o700)
        for place in ("a", "d/b", "d/e/a"):
            self.open(0, 0, place, os.O_RDWR, os.O_CREAT, 0, mode)
        self.symlink(0, 0, "l", TARGETS.index("d/b"))

    def teardown(self) -> None:
        os.umask(self.umask)
        while self.opened:
            self._close(self.opened[-1])
        if sys.exc_info()[0] is None:  # a difference has been found, and is to be told
            for mount in (0, 1):
                self.compare(mount, "")

    # Who does it, and to what

    def _inos(self, *places: str) -> set[int]:
        found = set()
        for place in places:
            for way in (os.stat, os.lstat):
                with suppress(OSError):
                    found.add(way((self.here + place).rstrip("/")).st_ino)
        return found

    def _mount(self, wanted: int, *places: str) -> int | None:
        """The mount that has one of the places open for writing, or else the wanted one; None if each has."""
        inos = self._inos(*places, *map(os.path.dirname, places))  # what should be a directory may be a file
        theirs = {one.mount for one in self.opened if one.writes and one.ino in inos}
        return wanted if not theirs else theirs.pop() if len(theirs) == 1 else None

    def _twins(self, mount: int, places: Sequence[str]) -> list[Twin]:
        folders = {os.path.dirname(place.rstrip("/")) for place in places}
        targets = {self._target(place) for place in places} - {*places, ""}
        return [Twin(self.there[mount] + place, self.here + place) for place in (*places, *folders, *targets)]

    def _target(self, place: str) -> str:
        """What a symlink leads to, nothing if that is not below the root."""
        real = os.path.realpath(self.here + place)
        return real.removeprefix(self.here) if real.startswith(self.here) else ""

    def _do(
        self,
        wanted: int,
        user: int,
        places: Sequence[str],
        run: Callable[[str], object],
        *,
        same: bool = True,
    ) -> object:
        """Does it to the root of each side, and compares; returns what came out of it."""
        mount = self._mount(wanted, *places)
        if mount is None:
            return None
        watch = Watch(self._twins(mount, places), self.identities, self.vague)
        back = as_user(*USERS[user])
        try:
            there, here = outcome(lambda: run(self.there[mount])), outcome(lambda: run(self.here))
        finally:
            back()
        self._same(there, here, same=same)
        watch.check()
        watch.forget_gone()
        return here

    def _with(
        self,
        one: Opened,
        user: int,
        run: Callable[[int], object],
        *,
        same: bool = True,
        more: Sequence[Twin] = (),
    ) -> object:
        """Does it to what is open on each side."""
        watch = Watch([Twin(one.there, one.here), *more], self.identities, self.vague)
        back = as_user(*USERS[user])
        try:
            there, here = outcome(lambda: run(one.there)), outcome(lambda: run(one.here))
        finally:
            back()
        self._same(there, here, same=same)
        watch.check()
        return here

    @staticmethod
    def _same(there: object, here: object, *, same: bool) -> None:
        if same or failed(there) or failed(here):
            assert there == here, f"{_short(there)} in place of {_short(here)}"

    # Names

    @rule(mount=mounts, user=users, place=paths, mode=modes)
    def mkdir(self, mount: int, user: int, place: str, mode: int) -> None:
        self._do(mount, user, [place], lambda root: os.mkdir(root + place, mode))

    @rule(mount=mounts, user=users, place=paths)
    def rmdir(self, mount: int, user: int, place: str) -> None:
        self._do(mount, user, [place], lambda root: os.rmdir(root + place))

    @rule(mount=mounts, user=users, place=paths)
    def unlink(self, mount: int, user: int, place: str) -> None:
        self._do(mount, user, [place], lambda root: os.unlink(root + place))

    @rule(
        mount=mounts,
        user=users,
        old=paths,
        new=paths,
        flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, 3]),
    )
    def rename(self, mount: int, user: int, old: str, new: str, flags: int) -> None:
        self._do(mount, user, [old, new], lambda root: renameat2(root + old, root + new, flags))

    @rule(mount=mounts, user=users, old=paths, new=paths, follow=st.booleans())
    def link(self, mount: int, user: int, old: str, new: str, follow: bool) -> None:
        if follow:
            self._do(mount, user, [old, new], lambda root: link_followed(root + old, root + new))
        else:
            self._do(mount, user, [old, new], lambda root: os.link(root + old, root + new))

    @rule(mount=mounts, user=users, place=paths, where=st.integers(0, len(TARGETS) - 1))
    def symlink(self, mount: int, user: int, place: str, where: int) -> None:
        self._do(mount, user, [place], lambda root: os.symlink(TARGETS[where], root + place))
        self._do(mount, user, [place], lambda root: os.readlink(root + place))

    @rule(
        mount=mounts,
        user=users,
        place=paths,
        mode=modes,
        kind=st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG]),
    )
    def mknod(self, mount: int, user: int, place: str, mode: int, kind: int) -> None:
        device = os.makedev(1, 3) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        self._do(mount, user, [place], lambda root: os.mknod(root + place, kind | mode, device))

    @rule(mount=mounts, user=users, place=st.one_of(paths, st.sampled_from(FOLDERS)))
    def listdir(self, mount: int, user: int, place: str) -> None:
        self._do(mount, user, [place], lambda root: _listing(root + place))

    # Attributes

    @rule(mount=mounts, user=users, place=paths, mode=modes)
    def chmod(self, mount: int, user: int, place: str, mode: int) -> None:
        self._do(mount, user, [place], lambda root: os.chmod(root + place, mode))

    @rule(mount=mounts, user=users, place=paths, uid=ids, gid=ids, follow=st.booleans())
    def chown(self, mount: int, user: int, place: str, uid: int, gid: int, follow: bool) -> None:
        if (uid, gid) == (-1, -1):
            return
        self._do(mount, user, [place], lambda root: os.chown(root + place, uid, gid, follow_symlinks=follow))

    @rule(mount=mounts, user=users, place=paths, atime=moments, mtime=moments, follow=st.booleans())
    def utimens(
        self, mount: int, user: int, place: str, atime: tuple[int, int], mtime: tuple[int, int], follow: bool
    ) -> None:
        done = self._do(
            mount, user, [place], lambda root: utimensat(root + place, atime, mtime, follow=follow)
        )
        times = [number for number, one in enumerate((atime, mtime)) if one[1] < UTIME_OMIT]
        if not failed(done) and times and follow:  # to look where a link leads is to read it, and moves atime
            self._do(mount, 0, [place], lambda root: _times(root + place, times, follow=follow))

    @rule(mount=mounts, user=users, place=paths, size=offsets)
    def truncate(self, mount: int, user: int, place: str, size: int) -> None:
        self._do(mount, user, [place], lambda root: os.truncate(root + place, size))

    @rule(mount=mounts, user=users, place=paths, mode=st.integers(0, 7))
    def access(self, mount: int, user: int, place: str, mode: int) -> None:
        self._do(mount, user, [place], lambda root: os.access(root + place, mode, effective_ids=True))

    @rule(
        mount=mounts,
        user=users,
        place=paths,
        name=names_of_xattrs,
        value=values,
        flags=st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]),
        follow=st.booleans(),
    )
    def setxattr(
        self, mount: int, user: int, place: str, name: str, value: bytes, flags: int, follow: bool
    ) -> None:
        with suppress(OSError):
            if os.getxattr(self.here + place, name, follow_symlinks=follow) == value:
                return  # some file systems move ctime, others do not
        self._do(
            mount,
            user,
            [place],
            lambda root: os.setxattr(root + place, name, value, flags, follow_symlinks=follow),
        )

    @rule(mount=mounts, user=users, place=paths, name=names_of_xattrs, follow=st.booleans())
    def getxattr(self, mount: int, user: int, place: str, name: str, follow: bool) -> None:
        self._do(mount, user, [place], lambda root: os.getxattr(root + place, name, follow_symlinks=follow))
        self._do(
            mount, user, [place], lambda root: sorted(os.listxattr(root + place, follow_symlinks=follow))
        )

    @rule(mount=mounts, user=users, place=paths, name=names_of_xattrs, follow=st.booleans())
    def removexattr(self, mount: int, user: int, place: str, name: str, follow: bool) -> None:
        self._do(
            mount, user, [place], lambda root: os.removexattr(root + place, name, follow_symlinks=follow)
        )

    # Open files

    @rule(mount=mounts, user=users, place=paths, access=accesses, create=creates, more=others, mode=modes)
    def open(self, mount: int, user: int, place: str, access: int, create: int, more: int, mode: int) -> None:
        flags = access | create | more
        with suppress(OSError):
            kind = stat.S_IFMT(os.stat(self.here + place).st_mode)
            if kind in (stat.S_IFCHR, stat.S_IFBLK):
                return  # mounts are nodev
            if kind != stat.S_IFREG:
                flags |= os.O_NONBLOCK  # a FIFO would wait for its other end
        self._open(mount, user, place, flags, mode)

    @rule(
        mount=mounts,
        user=users,
        place=st.sampled_from(FOLDERS),
        mode=modes,
        more=st.sampled_from([0, os.O_EXCL]),
    )
    def open_nameless(self, mount: int, user: int, place: str, mode: int, more: int) -> None:
        self._open(mount, user, place, os.O_TMPFILE | os.O_RDWR | more, mode)

    def _open(self, wanted: int, user: int, place: str, flags: int, mode: int) -> None:
        mount = self._mount(wanted, place)
        if mount is None or len(self.opened) >= OPEN_MAX:
            return
        found: list[int] = []

        def run(root: str) -> None:
            found.append(os.open(root + place, flags, mode))

        try:
            if failed(self._do(mount, user, [place], run)):
                return
        except AssertionError:
            for descriptor in found:
                os.close(descriptor)
            raise
        status = os.fstat(found[1])
        kind = stat.S_IFMT(status.st_mode)
        one = Opened(mount, found[0], found[1], flags, status.st_ino, kind == stat.S_IFDIR)
        if kind in (stat.S_IFREG, stat.S_IFDIR):
            self.opened.append(one)
        else:
            one.close()

    def _pick(self, pick: int, *, folders: bool = False) -> Opened | None:
        """One of what is open, and may be read now: nobody writes it on the other mount."""
        able = [
            one
            for one in self.opened
            if one.is_folder == folders
            and not any(
                other.writes and other.ino == one.ino and other.mount != one.mount for other in self.opened
            )
        ]
        return able[pick % len(able)] if able else None

    def _pick_with_way(self, pick: int, user: int) -> Opened | None:
        """As ``_pick``, if the user could open it still: the directory lets nobody change the attributes of
        what he finds no way to."""
        one = self._pick(pick)
        if one is None or user < 1:
            return one
        place = os.readlink(f"/proc/self/fd/{one.here}")
        back = as_user(*USERS[user])
        try:
            return one if os.path.lexists(place) else None
        finally:
            back()

    @precondition(lambda self: self.opened)
    @rule(pick=picks)
    def close(self, pick: int) -> None:
        self._close(self.opened[pick % len(self.opened)])

    def _close(self, one: Opened) -> None:
        self.opened.remove(one)
        if os.fstat(one.here).st_nlink == 0:
            self.identities.pop(one.ino, None)
        one.close()
        if not any(other.ino == one.ino for other in self.opened):
            self.vague.discard(one.ino)

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, offset=offsets, length=lengths)
    def pread(self, pick: int, user: int, offset: int, length: int) -> None:
        if one := self._pick(pick):
            self._with(one, user, lambda fd: os.pread(fd, length, offset))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, offset=offsets, length=lengths, seed=seeds)
    def pwrite(self, pick: int, user: int, offset: int, length: int, seed: int) -> None:
        if one := self._pick(pick):
            self._with(one, user, lambda fd: os.pwrite(fd, content(length, seed), offset))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, length=lengths)
    def read(self, pick: int, length: int) -> None:
        if one := self._pick(pick):
            self._with(one, 0, lambda fd: os.read(fd, length))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, length=lengths, seed=seeds)
    def write(self, pick: int, user: int, length: int, seed: int) -> None:
        if one := self._pick(pick):
            self._with(one, user, lambda fd: os.write(fd, content(length, seed)))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, offset=offsets, whence=st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]))
    def lseek(self, pick: int, offset: int, whence: int) -> None:
        if one := self._pick(pick):
            self._with(one, 0, lambda fd: os.lseek(fd, offset, whence))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, offset=offsets, whence=st.sampled_from([os.SEEK_DATA, os.SEEK_HOLE]))
    def seek_data(self, pick: int, offset: int, whence: int) -> None:
        """Where holes are is a file system's own affair; that there is nothing but zeros in them is not."""
        if (one := self._pick(pick)) is None or one.flags & os.O_PATH:
            return
        for other in self.opened:
            for there, _ in other.maps:  # until then the kernel does not tell of it
                there.flush()
        size = os.fstat(one.here).st_size
        found = outcome(lambda: os.lseek(one.there, offset, whence))
        wanted = outcome(lambda: os.lseek(one.here, offset, whence))
        os.lseek(one.there, 0, os.SEEK_SET)
        os.lseek(one.here, 0, os.SEEK_SET)
        if whence == os.SEEK_HOLE:
            assert failed(found) == failed(wanted), f"{found} in place of {wanted}"
            assert failed(found) or offset <= int(str(found)) <= size
        elif one.flags & os.O_ACCMODE != os.O_WRONLY:
            until = size if failed(found) else int(str(found))
            assert not any(os.pread(one.here, max(until - offset, 0), offset)), f"data before {found}"

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, size=offsets)
    def ftruncate(self, pick: int, user: int, size: int) -> None:
        if one := self._pick(pick):
            self._with(one, user, lambda fd: os.ftruncate(fd, size))

    @precondition(lambda self: self.opened)
    @rule(
        pick=picks,
        mode=st.sampled_from(
            [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE]
        ),
        offset=offsets,
        length=lengths,
    )
    def fallocate(self, pick: int, mode: int, offset: int, length: int) -> None:
        if one := self._pick(pick):
            self._with(one, 0, lambda fd: fallocate(fd, mode, offset, length))

    @precondition(lambda self: len(self.opened) > 1)
    @rule(pick=picks, other=picks, at=offsets, to=offsets, length=lengths)
    def copy_file_range(self, pick: int, other: int, at: int, to: int, length: int) -> None:
        source, one = self._pick(pick), self._pick(other)
        if source is None or one is None or source.mount != one.mount:
            return
        sides = {one.there: source.there, one.here: source.here}
        self._with(one, 0, lambda fd: os.copy_file_range(sides[fd], fd, length, at, to))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, data_only=st.booleans())
    def fsync(self, pick: int, data_only: bool) -> None:
        if one := self._pick(pick):
            self._with(one, 0, os.fdatasync if data_only else os.fsync)

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, mode=modes)
    def fchmod(self, pick: int, user: int, mode: int) -> None:
        if one := self._pick_with_way(pick, user):
            self._with(one, user, lambda fd: os.fchmod(fd, mode))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, uid=ids, gid=ids)
    def fchown(self, pick: int, user: int, uid: int, gid: int) -> None:
        if (uid, gid) != (-1, -1) and (one := self._pick_with_way(pick, user)):
            self._with(one, user, lambda fd: os.fchown(fd, uid, gid))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, times=st.tuples(st.integers(0, 2**33), st.integers(0, 2**33)))
    def futimens(self, pick: int, user: int, times: tuple[int, int]) -> None:
        if (one := self._pick_with_way(pick, user)) and not failed(
            self._with(one, user, lambda fd: os.utime(fd, ns=times))
        ):
            found = os.fstat(one.there)
            assert (found.st_atime_ns, found.st_mtime_ns) == times

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, place=paths)
    def name_it(self, pick: int, user: int, place: str) -> None:
        """A name for what is open, and may have none."""
        one = self._pick_with_way(pick, user)
        if one is None or self._mount(one.mount, place) != one.mount:
            return
        sides = {one.there: self.there[one.mount], one.here: self.here}
        self._with(
            one,
            user,
            lambda fd: link_descriptor(fd, sides[fd] + place),
            more=self._twins(one.mount, [place]),
        )

    # Maps

    @precondition(lambda self: self.opened)
    @rule(pick=picks)
    def map(self, pick: int) -> None:
        one = self._pick(pick)
        if one is None or one.flags & (os.O_ACCMODE | os.O_PATH) != os.O_RDWR or len(one.maps) > 1:
            return
        size = os.fstat(one.here).st_size
        if size:
            one.maps.append((mmap.mmap(one.there, size), mmap.mmap(one.here, size)))

    def _map(self, pick: int) -> tuple[Opened, tuple[mmap.mmap, mmap.mmap], int] | None:
        """A map and how much of it is in the file still."""
        maps = [(one, pair) for one in self.opened for pair in one.maps]
        if not maps:
            return None
        one, pair = maps[pick % len(maps)]
        return one, pair, min(len(pair[1]), os.fstat(one.here).st_size)

    @precondition(lambda self: any(one.maps for one in self.opened))
    @rule(pick=picks, offset=offsets, length=lengths, seed=seeds, flush=st.booleans())
    def write_map(self, pick: int, offset: int, length: int, seed: int, flush: bool) -> None:
        if found := self._map(pick):
            one, pair, size = found
            data = content(max(0, min(length, size - offset)), seed)
            self.vague.add(one.ino)
            for side in pair:
                if data:
                    side[offset : offset + len(data)] = data
                if flush:
                    side.flush()

    @precondition(lambda self: any(one.maps for one in self.opened))
    @rule(pick=picks, offset=offsets, length=lengths)
    def read_map(self, pick: int, offset: int, length: int) -> None:
        if found := self._map(pick):
            _, (there, here), size = found
            end = max(offset, min(offset + length, size))
            assert there[offset:end] == here[offset:end], f"{end - offset} bytes of a map at {offset}"

    @precondition(lambda self: any(one.maps for one in self.opened))
    @rule(pick=picks)
    def unmap(self, pick: int) -> None:
        if found := self._map(pick):
            one, pair, _ = found
            one.maps.remove(pair)
            for side in pair:
                side.close()

    # Open directories

    @precondition(lambda self: self.opened)
    @rule(
        pick=picks,
        name=st.sampled_from(NAMES),
        what=st.sampled_from(["list", "mkdir", "stat", "unlink", "rmdir"]),
    )
    def below(self, pick: int, name: str, what: str) -> None:
        """An open directory may have another name by now, or none."""
        one = self._pick(pick, folders=True)
        if one is None:
            return
        calls: dict[str, Callable[[int], object]] = {
            "list": lambda fd: sorted(os.listdir(fd)),
            "mkdir": lambda fd: os.mkdir(name, dir_fd=fd),
            "stat": lambda fd: stat.S_IFMT(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode),
            "unlink": lambda fd: os.unlink(name, dir_fd=fd),
            "rmdir": lambda fd: os.rmdir(name, dir_fd=fd),
        }
        if what in ("unlink", "rmdir"):
            with suppress(OSError):
                self.identities.pop(os.stat(name, dir_fd=one.here, follow_symlinks=False).st_ino, None)
        self._with(one, 0, calls[what])

    # The whole

    def compare(self, mount: int, place: str) -> None:
        """Everything below ``place``; nothing is open."""
        self._do(mount, 0, [place], lambda root: _listing(root + place))
        for name in os.listdir(self.here + place):
            below = place + name
            kind = stat.S_IFMT(os.lstat(self.here + below).st_mode)
            self._do(mount, 0, [below], _at(below, _xattrs))
            if kind == stat.S_IFDIR:
                self.compare(mount, below + "/")
            elif kind == stat.S_IFLNK:
                self._do(mount, 0, [below], _at(below, os.readlink))
            elif kind == stat.S_IFREG:
                self._do(mount, 0, [below], _at(below, _bytes))


def content(length: int, seed: int) -> bytes:
    """So many bytes; of an even seed zeros, of others never the same."""
    return (
        bytes(length)
        if seed % 8 == 0
        else (bytes((seed + i) % 251 for i in range(251)) * (length // 251 + 1))[:length]
    )


def _at(place: str, run: Callable[[str], object]) -> Callable[[str], object]:
    """``run`` at a place below the root of a side."""
    return lambda root: run(root + place)


def _short(result: object) -> str:
    text = repr(result)
    return text if len(text) < 200 else f"{text[:200]}… ({len(text)})"


def _listing(place: str) -> list[tuple[str, bool, bool]]:
    with os.scandir(place) as entries:
        return sorted((one.name, one.is_symlink(), one.is_dir(follow_symlinks=False)) for one in entries)


def _times(place: str, which: Sequence[int], *, follow: bool) -> list[int]:
    status = os.stat(place, follow_symlinks=follow)
    return [(status.st_atime_ns, status.st_mtime_ns)[number] for number in which]


def _xattrs(place: str) -> dict[str, bytes]:
    names = os.listxattr(place, follow_symlinks=False)
    return {name: os.getxattr(place, name, follow_symlinks=False) for name in names}


def _bytes(place: str) -> bytes:
    with open(place, "rb") as file:
        return file.read()
