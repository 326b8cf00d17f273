"""A model of the whole client: whatever two mounts do in turn, a local directory does the same.

Every operation is done by one of the clients and to a local directory; errnos, bytes, types, permission
bits, link counts and sizes must be the same. While a client has a file open, that file's content and
attributes are left to it (elsewhere the last committed version is seen, which a local directory has not);
names may be changed by both at any time.
"""

import ctypes
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from mount.vfs import Changes
from tests.support.stack import Client, Stack
from wire.limits import CHUNK_BYTES
from wire.messages.directory import Attr

T = TypeVar("T")

FOLDERS = ("", "/d", "/d/e")
NAMES = ("a", "b", "d", "e")
LINK = "link"
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)
_folders = itertools.count(1)

clients = st.integers(0, 1)
paths = st.tuples(st.sampled_from(FOLDERS), st.sampled_from(NAMES)).map("/".join)
links = st.sampled_from(FOLDERS).map(lambda folder: f"{folder}/{LINK}")
offsets = st.sampled_from([0, 0, 1, 100, 5000, CHUNK_BYTES - 3, CHUNK_BYTES, 2 * CHUNK_BYTES - 1])
contents = st.one_of(
    st.binary(min_size=1, max_size=20), st.sampled_from([b"x" * 5000, bytes(9), b"y" * (CHUNK_BYTES + 1)])
)
modes = st.sampled_from([0o644, 0o600, 0o755, 0o444, 0o1711, 0o000])
picks = st.integers(0, 100)


@dataclass
class Opened:
    """A file that is open on both sides."""

    client: int
    handle: int
    local: int
    ino: int
    """Of the local file."""


def renameat2(old: str, new: str, flags: int) -> None:
    """renameat2(2) of the local directory."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def outcome(run: Callable[[], T]) -> T | str:
    """The result, or the errno's name."""
    try:
        return run()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


class Mounts(RuleBasedStateMachine):
    """The two sides."""

    stack: ClassVar[Stack]
    pair: ClassVar[tuple[Client, Client]]
    oracle: ClassVar[Path]
    leased: ClassVar[bool]
    """Whether the two are told what changes: then each shows it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.root = f"/{next(_folders)}"
        self.local = f"{self.oracle}{self.root}"
        self.opened: list[Opened] = []
        self._last = 0
        os.mkdir(self.local)
        self.pair[0].mkdir(self.root)

    def teardown(self) -> None:
        while self.opened:
            self.close(0)
        for client in (*self.pair, self.stack.client(uid=os.geteuid(), gids=groups())):
            if not self.leased:
                client.vfs.drop_clean_copies()
            self.compare("", client)
            assert not client.vfs.unsaved()
        self.stack.clients.pop().close()

    # Who does it

    def _client(self, wanted: int, *places: str) -> Client:
        """The client that has one of the places open, or else the wanted one."""
        inos = {
            os.lstat(self.local + place).st_ino for place in places if os.path.lexists(self.local + place)
        }
        number = next((one.client for one in self.opened if one.ino in inos), wanted)
        if number != self._last and not self.leased:
            self.pair[number].vfs._names.drop_all()  # as if a second had passed
        self._last = number
        return self.pair[number]

    def _both(self, there: Callable[[], object], here: Callable[[], object], what: str) -> bool:
        """Whether it was done; it must be the same on both sides."""
        found, expected = outcome(there), outcome(here)
        verdicts = [one if isinstance(one, str) else "done" for one in (found, expected)]
        assert verdicts[0] == verdicts[1], f"{what}: {verdicts[0]} in place of {verdicts[1]}"
        return verdicts[0] == "done"

    def _is_link(self, place: str) -> bool:
        return os.path.islink(self.local + place)

    # Names

    @rule(who=clients, place=paths, mode=modes)
    def mkdir(self, who: int, place: str, mode: int) -> None:
        client = self._client(who)
        mode |= 0o700
        self._both(
            lambda: client.mkdir(self.root + place, mode),
            lambda: os.mkdir(self.local + place, mode),
            f"mkdir {place}",
        )

    @rule(who=clients, place=st.one_of(paths, links))
    def unlink(self, who: int, place: str) -> None:
        client = self._client(who)
        self._both(
            lambda: client.unlink(self.root + place),
            lambda: os.unlink(self.local + place),
            f"unlink {place}",
        )

    @rule(who=clients, place=paths)
    def rmdir(self, who: int, place: str) -> None:
        client = self._client(who)
        self._both(
            lambda: client.rmdir(self.root + place), lambda: os.rmdir(self.local + place), f"rmdir {place}"
        )

    @rule(who=clients, old=paths, new=paths, flags=st.sampled_from([0, 0, 0, 1, 2]))
    def rename(self, who: int, old: str, new: str, flags: int) -> None:
        client = self._client(who)
        self._both(
            lambda: client.rename(self.root + old, self.root + new, flags),
            lambda: renameat2(self.local + old, self.local + new, flags),
            f"rename {old} {new} {flags}",
        )

    @rule(who=clients, old=paths, new=paths)
    def link(self, who: int, old: str, new: str) -> None:
        client = self._client(who)
        self._both(
            lambda: client.link(self.root + old, self.root + new),
            lambda: os.link(self.local + old, self.local + new),
            f"link {old} {new}",
        )

    @rule(who=clients, place=links, where=st.sampled_from(["a", "../b", "x" * 200]))
    def symlink(self, who: int, place: str, where: str) -> None:
        client = self._client(who)
        self._both(
            lambda: client.symlink(where, self.root + place),
            lambda: os.symlink(where, self.local + place),
            f"symlink {place}",
        )

    # Attributes

    @rule(who=clients, place=paths, mode=modes)
    def chmod(self, who: int, place: str, mode: int) -> None:
        client = self._client(who, place)
        self._both(
            lambda: client.set(self.root + place, Changes(mode=mode)),
            lambda: os.chmod(self.local + place, mode),
            f"chmod {place} {mode:o}",
        )
        self.stat(who, place)

    @rule(who=clients, place=paths, times=st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)))
    def utimens(self, who: int, place: str, times: tuple[int, int]) -> None:
        client = self._client(who, place)
        done = self._both(
            lambda: client.set(self.root + place, Changes(atime=times[0], mtime=times[1])),
            lambda: os.utime(self.local + place, ns=times),
            f"utimens {place}",
        )
        if done:
            attr = client.walk(self.root + place, fresh=True)
            assert (attr.atime, attr.mtime) == times, place

    @rule(who=clients, place=paths, size=offsets)
    def truncate(self, who: int, place: str, size: int) -> None:
        client = self._client(who, place)
        self._both(
            lambda: client.set(self.root + place, Changes(size=size)),
            lambda: os.truncate(self.local + place, size),
            f"truncate {place} {size}",
        )

    @rule(who=clients, place=st.one_of(paths, links))
    def stat(self, who: int, place: str) -> None:
        client = self._client(who, place)
        found = outcome(lambda: look(client.walk(self.root + place, fresh=True)))
        expected = outcome(lambda: look_here(os.lstat(self.local + place)))
        assert found == expected, f"stat {place}: {found} in place of {expected}"

    # Content

    @rule(
        who=clients,
        place=paths,
        access=st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR]),
        creates=st.sampled_from([0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL]),
        more=st.sampled_from([0, 0, os.O_TRUNC, os.O_APPEND, os.O_APPEND | os.O_TRUNC]),
        mode=modes,
    )
    def open(self, who: int, place: str, access: int, creates: int, more: int, mode: int) -> None:
        flags = access | creates | more
        if len(self.opened) > 5 or (
            os.path.isdir(self.local + place) and not (access or creates or more & os.O_TRUNC)
        ):
            return  # reading a directory is another operation
        client = self._client(who, place)
        handle = outcome(lambda: client.open(self.root + place, flags, mode))
        local = outcome(lambda: os.open(self.local + place, flags, mode))
        text = f"open {place} {flags:o}: {handle} in place of {local}"
        if isinstance(handle, str) or isinstance(local, str):
            assert handle == local, text
            return
        number = self.pair.index(client)
        self.opened.append(Opened(number, handle, local, os.fstat(local).st_ino))

    def _pick(self, pick: int) -> tuple[Client, Opened] | None:
        if not self.opened:
            return None
        one = self.opened[pick % len(self.opened)]
        return self.pair[one.client], one

    @rule(pick=picks, offset=offsets, size=st.sampled_from([1, 30, 6000, 2 * CHUNK_BYTES]))
    def pread(self, pick: int, offset: int, size: int) -> None:
        if found := self._pick(pick):
            client, one = found
            there = outcome(lambda: client.pread(one.handle, offset, size))
            here = outcome(lambda: os.pread(one.local, size, offset))
            assert there == here, f"pread {size} at {offset}"

    @rule(pick=picks, offset=offsets, data=contents)
    def pwrite(self, pick: int, offset: int, data: bytes) -> None:
        if found := self._pick(pick):
            client, one = found
            # Linux appends whatever the offset.
            self._both(
                lambda: client.vfs.write(one.handle, offset, data),
                lambda: os.pwrite(one.local, data, offset),
                f"pwrite {len(data)} at {offset}",
            )
            self.fstat(pick)

    @rule(pick=picks, size=offsets)
    def ftruncate(self, pick: int, size: int) -> None:
        if found := self._pick(pick):
            client, one = found
            ino = client.vfs.handle_attr(one.handle).ino
            self._both(
                lambda: client.vfs.setattr(ino, Changes(size=size), None, one.handle),
                lambda: os.ftruncate(one.local, size),
                f"ftruncate {size}",
            )

    @rule(pick=picks)
    def fsync(self, pick: int) -> None:
        if found := self._pick(pick):
            found[0].vfs.flush(found[1].handle)

    @rule(pick=picks)
    def fstat(self, pick: int) -> None:
        if found := self._pick(pick):
            client, one = found
            attr, status = client.vfs.handle_attr(one.handle), os.fstat(one.local)
            assert (attr.size, attr.mode) == (status.st_size, status.st_mode)

    @rule(pick=picks)
    def close(self, pick: int) -> None:
        if found := self._pick(pick):
            client, one = found
            self.opened.remove(one)
            client.close_handle(one.handle)
            os.close(one.local)

    # The whole

    def compare(self, place: str, client: Client) -> None:
        """Everything below ``place``; nothing is open."""
        assert sorted(client.names(self.root + place)) == sorted(os.listdir(self.local + place)), place
        for name in client.names(self.root + place):
            below = f"{place}/{name}"
            status = os.lstat(self.local + below)
            attr = client.walk(self.root + below, fresh=True)
            assert look(attr) == look_here(status), below
            if stat.S_ISDIR(status.st_mode):
                self.compare(below, client)
            elif stat.S_ISLNK(status.st_mode):
                target = client.vfs.readlink(attr.ino, None)
                assert target == os.fsencode(os.readlink(self.local + below))
            else:
                assert client.read(self.root + below) == Path(self.local + below).read_bytes(), below


def look(attr: Attr) -> tuple[int, ...]:
    """What must be the same; a directory's size and link count are the local file system's affair."""
    return (attr.mode,) if stat.S_ISDIR(attr.mode) else (attr.mode, attr.nlink, attr.size)


def look_here(status: os.stat_result) -> tuple[int, ...]:
    """As ``look``."""
    mode = status.st_mode
    return (mode,) if stat.S_ISDIR(mode) else (mode, status.st_nlink, status.st_size)


def groups() -> tuple[int, ...]:
    """This process's, primary first."""
    return os.getegid(), *(group for group in os.getgroups() if group != os.getegid())


@pytest.fixture(params=[False, True], ids=["open", "lease"])
def mounts(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[type[Mounts]]:
    """The machine, on a stack; without a umask."""
    umask = os.umask(0)
    try:
        (tmp_path / "oracle").mkdir()
        with Stack(tmp_path / "stack") as stack:
            Mounts.stack, Mounts.oracle = stack, tmp_path / "oracle"
            Mounts.leased = request.param
            one, two = (
                stack.client(uid=os.geteuid(), gids=groups(), promised=Mounts.leased) for _ in range(2)
            )
            Mounts.pair = one, two
            yield Mounts
    finally:
        os.umask(umask)


@pytest.mark.timeout(600)
def test_two_mounts_in_turn_are_one_directory(mounts: type[Mounts]) -> None:
    run_state_machine_as_test(
        mounts,
        settings=settings(
            max_examples=int(os.environ.get("STACK_EXAMPLES", "25")),
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # shrinking takes minutes; the steps are printed as they are
        ),
    )
