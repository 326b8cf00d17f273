"""What programs do to files, on two mounts and by two users. (Programs themselves: tests.programs.)"""

import ctypes
import errno
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.logins import own_services
from tests.support.mounts import RealMount
from tests.support.realm import RealRealm
from tests.support.times import wait_until
from wire.messages.directory import OpenWrite, SetAttr, Unlink

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

NOREPLACE, EXCHANGE = 1, 2
"""<linux/fs.h>."""

AT_FDCWD = -100


@pytest.fixture(scope="module")
def mounts(shared_realm: RealRealm) -> Iterator[tuple[RealMount, RealMount]]:
    """Two mounts of ``paula``."""
    shared_realm.join("paula")
    with (
        RealMount(shared_realm, "programs-1", "paula") as one,
        RealMount(shared_realm, "programs-2", "paula") as two,
    ):
        yield one, two


@pytest.fixture
def places(mounts: tuple[RealMount, RealMount], request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A fresh directory, as both mounts show it."""
    name = request.node.name
    (mounts[0].path / name).mkdir()
    return mounts[0].path / name, mounts[1].path / name


def test_a_memory_map_is_written_at_close(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "mapped").write_bytes(bytes(3 * mmap.PAGESIZE + 10))
    with (one / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[mmap.PAGESIZE : mmap.PAGESIZE + 5] = b"early"
        memory.flush()
        memory[-5:] = b"later"
    expected = bytes(mmap.PAGESIZE) + b"early".ljust(2 * mmap.PAGESIZE, b"\0") + b"\0\0\0\0\0later"
    wait_until(lambda: (two / "mapped").read_bytes() == expected, 5)
    with (two / "mapped").open("rb") as read, mmap.mmap(read.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        assert memory[:] == expected


def test_what_a_map_changes_after_close_is_committed_when_it_goes(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "mapped").write_bytes(bytes(100))
    file = (one / "mapped").open("r+b")
    with mmap.mmap(file.fileno(), 0) as memory:
        file.close()
        memory[:5] = b"after"
    wait_until(lambda: (two / "mapped").read_bytes() == b"after".ljust(100, b"\0"), 5)


def test_truncating(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "file").write_text("0123456789")
    os.truncate(two / "file", 4)
    assert (one / "file").read_text() == "0123"
    os.truncate(one / "file", 6)
    assert (two / "file").read_bytes() == b"0123\0\0"
    with (two / "file").open("r+b") as file:
        file.truncate(2)
        file.seek(4)
        file.write(b"x")
    assert (one / "file").read_bytes() == b"01\0\0x"


def test_readers_never_see_the_empty_moment(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "file").write_text("before")
    with (two / "file").open() as early:
        descriptor = os.open(one / "file", os.O_WRONLY | os.O_TRUNC)
        try:
            assert early.read() == "before"
            assert (two / "file").read_text() == "before"
            assert (one / "file").read_text() == "", "the mount that truncates shows its own content"
            os.write(descriptor, b"after it")
            assert (two / "file").read_text() == "before"
        finally:
            os.close(descriptor)
        assert (two / "file").read_text() == "after it"


def test_truncating_while_opening_for_reading(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "file").write_text("content")
    os.close(os.open(one / "file", os.O_RDONLY | os.O_TRUNC))
    assert (two / "file").read_text() == ""
    (two / "file").write_text("the lock is free")
    assert (one / "file").read_text() == "the lock is free"


def renameat2(old: Path, new: Path, flags: int) -> None:
    """renameat2(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def test_renaming_with_flags(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "a").write_text("a")
    (one / "b").write_text("b")
    with pytest.raises(FileExistsError):
        renameat2(one / "a", one / "b", NOREPLACE)
    renameat2(one / "a", one / "c", NOREPLACE)
    renameat2(two / "b", two / "c", EXCHANGE)
    for place in (one, two):
        assert ((place / "b").read_text(), (place / "c").read_text()) == ("a", "b")
    with pytest.raises(FileNotFoundError):
        renameat2(one / "b", one / "missing", EXCHANGE)
    assert sorted(os.listdir(two)) == ["b", "c"]


# Two users


@pytest.fixture(scope="module")
def quentin(shared_realm: RealRealm) -> Iterator[RealMount]:
    """The mount of another user of the realm."""
    shared_realm.join("quentin")
    with RealMount(shared_realm, "programs-quentin", "quentin") as mount:
        yield mount


@pytest.fixture
def theirs(quentin: RealMount, places: tuple[Path, Path]) -> Path:
    """The directory of the test, as the other user's mount shows it."""
    return quentin.path / places[0].name


def test_another_user_reads_and_writes_what_the_modes_allow(places: tuple[Path, Path], theirs: Path) -> None:
    one, two = places
    (one / "open").write_text("for all")
    (one / "open").chmod(0o666)
    (one / "readable").write_text("to be read")
    (one / "readable").chmod(0o644)
    (one / "secret").write_text("mine")
    (one / "secret").chmod(0o600)
    assert (theirs / "open").stat().st_uid != os.getuid(), "what belongs to another one is shown so"
    assert (theirs / "readable").read_text() == "to be read"
    with (theirs / "open").open("a") as file:
        file.write(", and written")
    assert (two / "open").read_text() == "for all, and written"
    for name, do in (("secret", "r"), ("secret", "r+"), ("readable", "r+"), ("new", "w")):
        with pytest.raises(PermissionError):
            (theirs / name).open(do)
    for attempt in (
        lambda: (theirs / "open").chmod(0o777),
        lambda: os.utime(theirs / "open", (1, 1)),
        lambda: os.truncate(theirs / "readable", 0),
        lambda: (theirs / "open").unlink(),
        lambda: (theirs / "open").rename(theirs / "mine"),
        lambda: (theirs / "directory").mkdir(),
        lambda: os.link(theirs / "open", theirs / "hard"),
    ):
        with pytest.raises(PermissionError):
            attempt()
    assert not os.access(theirs / "secret", os.R_OK)
    assert os.access(theirs / "readable", os.R_OK)
    assert sorted(os.listdir(two)) == ["open", "readable", "secret"]


def test_a_closed_directory_is_closed_with_everything_in_it(places: tuple[Path, Path], theirs: Path) -> None:
    one, _ = places
    (one / "closed").mkdir()
    (one / "closed" / "file").write_text("readable by its own mode")
    (one / "closed" / "file").chmod(0o666)
    assert (theirs / "closed" / "file").read_text() == "readable by its own mode"
    (one / "closed").chmod(0o700)
    for attempt in (
        lambda: (theirs / "closed" / "file").read_text(),
        lambda: (theirs / "closed" / "file").open("a"),
        lambda: os.listdir(theirs / "closed"),
    ):
        with pytest.raises(PermissionError):
            attempt()


def test_the_root_is_sticky(mounts: tuple[RealMount, RealMount], quentin: RealMount) -> None:
    mine, theirs = mounts[0].path / "mine-in-the-root", quentin.path / "mine-in-the-root"
    mine.write_text("everybody may make files here")
    mine.chmod(0o666)
    assert stat.S_IMODE(quentin.path.stat().st_mode) == 0o1777
    for attempt in (theirs.unlink, lambda: theirs.rename(quentin.path / "taken")):
        with pytest.raises(PermissionError):
            attempt()
    (quentin.path / "of-quentin").write_text("his own")
    (quentin.path / "of-quentin").unlink()
    mine.unlink()


def test_a_client_of_his_own_making_gets_no_further(
    shared_realm: RealRealm, places: tuple[Path, Path], theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = places
    (one / "closed").mkdir(mode=0o700)
    (one / "closed" / "inside").write_text("readable by its own mode")
    (one / "closed" / "inside").chmod(0o666)
    (one / "secret").write_text("mine")
    (one / "secret").chmod(0o600)
    closed, inside, secret = ((one / name).stat().st_ino for name in ("closed", "closed/inside", "secret"))
    monkeypatch.setenv("DFS_STATE", str(shared_realm.state("quentin")))
    with own_services(shared_realm.url, "quentin") as services:
        directory = services.directory
        assert directory.attrs([inside]) == [None]
        assert directory.paths([inside]) == [None]
        grant = services.lock.acquire([inside], 5.0).answers[0]
        assert grant.grant, "the lock server knows no permissions"
        for number, attempt in (
            (errno.EACCES, lambda: directory.manifest(secret)),
            (errno.EACCES, lambda: directory.manifest(inside)),
            (errno.EACCES, lambda: directory.mutate([OpenWrite(inside, grant.grant)])),
            (errno.EACCES, lambda: directory.list_page(closed)),
            (errno.EPERM, lambda: directory.mutate([SetAttr(secret, mode=0o100666)])),
            (errno.EACCES, lambda: directory.mutate([Unlink(closed, b"inside")])),
        ):
            with pytest.raises(PermissionError) as caught:
                attempt()
            assert caught.value.errno == number
    assert (one / "closed" / "inside").read_text() == "readable by its own mode"
    assert (one / "secret").read_text() == "mine"
