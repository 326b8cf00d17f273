"""O_TMPFILE on real mounts: what is made without a name, through the kernel."""

import ctypes
import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import RealMount, fresh_mount
from tests.support.realm import RealRealm
from tests.support.syscalls import link_descriptor
from tests.support.times import wait_until
from tests.support.vfs import raises

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

NAMELESS = os.O_TMPFILE | os.O_RDWR
AT_EMPTY_PATH = 0x1000


@pytest.fixture(scope="module")
def one(shared_realm: RealRealm) -> Iterator[RealMount]:
    """A mount whose worker may be killed."""
    shared_realm.join("nina")
    with fresh_mount(shared_realm, "nina", binding="native") as mount:
        mount.expect_log(r"the worker \d+ died \(status -9\)")
        yield mount


@pytest.fixture(scope="module")
def two(shared_realm: RealRealm, one: RealMount) -> Iterator[RealMount]:
    """Another one."""
    with fresh_mount(shared_realm, one.user, binding="native") as mount:
        yield mount


@pytest.fixture
def folder(one: RealMount, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of the test's own, which is empty afterwards."""
    place = one.path / request.node.name
    place.mkdir()
    yield place
    for path in place.iterdir():
        path.unlink()
    place.rmdir()


def test_what_was_written_has_its_name_everywhere(folder: Path, two: RealMount) -> None:
    data = os.urandom(3 * 2**20)
    before, umask = folder.stat(), os.umask(0o027)
    descriptor = os.open(folder, NAMELESS, 0o666)
    os.umask(umask)
    try:
        assert os.write(descriptor, data) == len(data)
        found = os.fstat(descriptor)
        assert (found.st_nlink, found.st_size, found.st_mode & 0o7777) == (0, len(data), 0o640)
        os.fchmod(descriptor, 0o604)
        os.setxattr(descriptor, "user.name", b"value")
        assert os.listdir(two.path / folder.name) == []
        assert folder.stat().st_mtime_ns == before.st_mtime_ns
        link_descriptor(descriptor, str(folder / "file"))
        there = two.path / folder.name / "file"
        assert there.read_bytes() == data
        assert (there.stat().st_nlink, there.stat().st_mode & 0o7777) == (1, 0o604)
        assert os.getxattr(there, "user.name") == b"value"
        assert os.fstat(descriptor).st_nlink == 1
        libc = ctypes.CDLL(None)
        if not os.geteuid():
            again = os.fsencode(folder / "again")
            assert libc.linkat(descriptor, b"", -100, again, AT_EMPTY_PATH) == 0
            assert there.stat().st_nlink == 2
        os.pwrite(descriptor, b"more", 0)
    finally:
        os.close(descriptor)
    assert there.read_bytes() == b"more" + data[4:]


def test_without_a_name_it_goes(one: RealMount, folder: Path) -> None:
    for flags in (NAMELESS, os.O_TMPFILE | os.O_WRONLY, NAMELESS | os.O_EXCL):
        descriptor = os.open(folder, flags, 0o600)
        os.write(descriptor, b"content")
        os.fsync(descriptor)
        os.ftruncate(descriptor, 3)
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
        assert os.read(again, 10) == b"con"
        os.close(again)
        if flags & os.O_EXCL:
            with raises(errno.ENOENT):
                link_descriptor(descriptor, str(folder / "file"))
        os.close(descriptor)
    with raises(errno.EINVAL):
        os.open(folder, os.O_TMPFILE | os.O_RDONLY)
    assert os.listdir(folder) == []


def test_the_next_worker_gives_it_its_name(one: RealMount, folder: Path, two: RealMount) -> None:
    descriptor = os.open(folder, NAMELESS, 0o600)
    os.write(descriptor, b"content")
    pid = one.record().worker_pid
    os.kill(pid, signal.SIGKILL)
    link_descriptor(descriptor, str(folder / "file"))
    wait_until(lambda: one.record().worker_pid != pid)
    assert (two.path / folder.name / "file").read_bytes() == b"content"
    os.write(descriptor, b" and more")
    os.close(descriptor)
    assert (two.path / folder.name / "file").read_bytes() == b"content and more"


def test_libfuse_has_no_way_to_say_it(shared_realm: RealRealm, one: RealMount) -> None:
    with fresh_mount(shared_realm, one.user, binding="fusepy") as mount, raises(errno.EOPNOTSUPP):
        os.open(mount.path, NAMELESS, 0o600)
