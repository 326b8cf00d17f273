"""One writer a file, over mounts of real processes: waiting, being told who it is, breaking, dying."""

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.mounts import RealMount, Writer, conflict_copies
from tests.support.realm import RealRealm
from tests.support.times import wait_until

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

DEATH_SECONDS_MAX = 20.0
SOON_SECONDS = 5.0
"""Without waiting for a lock, on a machine that is busy."""


@pytest.fixture(scope="module")
def one(shared_realm: RealRealm) -> Iterator[RealMount]:
    """A mount of ``lena``."""
    shared_realm.join("lena")
    with RealMount(shared_realm, "locks-one", "lena") as mount:
        yield mount


@pytest.fixture(scope="module")
def two(shared_realm: RealRealm, one: RealMount) -> Iterator[RealMount]:
    """Another one, which waits for locks."""
    with RealMount(shared_realm, "locks-two", "lena") as mount:
        yield mount


@pytest.fixture(scope="module")
def hasty(shared_realm: RealRealm, one: RealMount) -> Iterator[RealMount]:
    """One that does not wait."""
    with RealMount(shared_realm, "locks-hasty", "lena", "--lock-wait", "0") as mount:
        yield mount


@pytest.fixture
def name(one: RealMount, request: pytest.FixtureRequest) -> str:
    """A file of this test's own, with content."""
    name = f"{request.node.name}.txt"
    (one.path / name).write_text("base")
    return name


def locks(mount: RealMount) -> list[dict[str, Any]]:
    """What ``dfs locks --json`` says."""
    found = json.loads(mount.realm.run("locks", "--json", user=mount.user).stdout)
    assert isinstance(found, list)
    return found


def lock_of(mount: RealMount, name: str) -> dict[str, Any] | None:
    """The lock of a file in the root, if it is locked."""
    return next((lock for lock in locks(mount) if lock["path"] == f"/{name}"), None)


class Waiter(threading.Thread):
    """Opens a file for reading and writing, reads it and closes it."""

    def __init__(self, path: Path, flags: int = os.O_RDWR) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.flags = flags
        self.opened_at = 0.0
        self.content = b""
        self.error: OSError | None = None
        self.start()

    def run(self) -> None:
        """The thread."""
        try:
            descriptor = os.open(self.path, self.flags)
        except OSError as error:
            self.error = error
            return
        self.opened_at = time.monotonic()
        self.content = os.read(descriptor, 1000)
        os.close(descriptor)


def test_a_waiting_writer_is_given_the_lock_at_close(one: RealMount, two: RealMount, name: str) -> None:
    with (one.path / name).open("w") as first:
        waiter = Waiter(two.path / name)
        wait_until(lambda: (lock := lock_of(one, name)) and lock["queue"])
        lock = lock_of(one, name)
        assert lock is not None
        assert [waiting["holder"] for waiting in lock["queue"]] == [f"lena@{os.uname().nodename}:{two.path}"]
        assert not waiter.opened_at
        first.write("what the first one wrote")
    closed_at = time.monotonic()
    waiter.join(20)
    assert (waiter.content, waiter.error) == (b"what the first one wrote", None)
    assert waiter.opened_at - closed_at < SOON_SECONDS


def test_a_mount_that_does_not_wait_is_told_who_has_it(one: RealMount, hasty: RealMount, name: str) -> None:
    with (one.path / name).open("w") as first:
        first.write("half")
        began = time.monotonic()
        with pytest.raises(OSError, match="busy") as caught:
            (hasty.path / name).open("r+")
        assert caught.value.errno == errno.EBUSY
        assert time.monotonic() - began < SOON_SECONDS
        lock = lock_of(hasty, name)
        assert lock is not None
        assert lock["holder"] == f"lena@{os.uname().nodename}:{one.path}"
        assert lock["ino"] == (hasty.path / name).stat().st_ino
        assert lock["queue"] == []
    with (hasty.path / name).open("r+") as second:
        assert second.read() == "half", "what was let go can be had at once"


def test_an_open_that_must_not_block_does_not(one: RealMount, two: RealMount, name: str) -> None:
    with (one.path / name).open("w"):
        began = time.monotonic()
        with pytest.raises(BlockingIOError):
            os.open(two.path / name, os.O_RDWR | os.O_NONBLOCK)
        assert time.monotonic() - began < SOON_SECONDS


def test_nor_while_another_open_of_the_same_mount_waits(one: RealMount, two: RealMount, name: str) -> None:
    with (one.path / name).open("w"):
        waiter = Waiter(two.path / name)
        wait_until(lambda: (lock := lock_of(one, name)) and lock["queue"])
        began = time.monotonic()
        with pytest.raises(BlockingIOError):
            os.open(two.path / name, os.O_RDWR | os.O_NONBLOCK)
        assert time.monotonic() - began < SOON_SECONDS
    waiter.join(20)
    assert waiter.error is None


def test_readers_never_wait(one: RealMount, two: RealMount, hasty: RealMount, name: str) -> None:
    with (one.path / name).open("r+") as writer:
        writer.write("not committed")
        writer.flush()
        began = time.monotonic()
        for mount in (two, hasty):
            assert (mount.path / name).read_text() == "base"
        assert time.monotonic() - began < SOON_SECONDS


def test_two_writers_of_one_mount_share_the_lock(one: RealMount, two: RealMount, name: str) -> None:
    with (one.path / name).open("r+") as first, (one.path / name).open("r+") as second:
        first.write("FIRST")
        first.flush()
        assert second.read() == "FIRST"
        first.close()
        lock = lock_of(one, name)
        assert lock is not None, "the lock goes with the last writer only"
        assert lock["holder"].endswith(str(one.path))
    wait_until(lambda: lock_of(one, name) is None)


def test_a_killed_mount_loses_its_locks(shared_realm: RealRealm, one: RealMount, name: str) -> None:
    victim = RealMount(shared_realm, "locks-victim", "lena")
    writer = Writer(victim.path / name, "half of a thought")
    victim.kill()
    killed_at = time.monotonic()
    waiter = Waiter(one.path / name)
    waiter.join(DEATH_SECONDS_MAX + 5)
    assert writer.close() == errno.ENOTCONN
    assert (waiter.content, waiter.error) == (b"base", None)
    print(f"the lock of the killed mount was free after {waiter.opened_at - killed_at:.1f} s")
    assert waiter.opened_at - killed_at < DEATH_SECONDS_MAX
    victim.expect_log(r"content that was never committed is kept as ")
    victim.mount()
    assert [path.read_text() for path in conflict_copies(victim.path / name)] == ["half of a thought"]
    assert (victim.path / name).read_text() == "base"
    victim.close()


def break_lock(mount: RealMount, name: str) -> None:
    """As the admin; it is gone when this returns."""
    mount.realm.expect_log(r"admin broke the lock of inode")
    lock = lock_of(mount, name)
    assert lock is not None
    mount.realm.run("locks", "--break", str(lock["ino"]), user="admin")


def test_a_broken_lock_is_taken_again_if_nobody_wrote(one: RealMount, two: RealMount, name: str) -> None:
    writer = Writer(one.path / name, "mine all the time")
    break_lock(one, name)
    assert writer.close() == 0
    assert (two.path / name).read_text() == "mine all the time"
    assert conflict_copies(two.path / name) == []


def test_the_loser_of_a_broken_lock_keeps_its_content(one: RealMount, two: RealMount, name: str) -> None:
    one.expect_log(r"somebody else has written meanwhile; this content is in ")
    writer = Writer(one.path / name, "the content of the loser")
    break_lock(one, name)
    (two.path / name).write_text("the winner's")
    assert (one.path / name).read_text() == "the content of the loser", "one mount shows one content"
    assert writer.close() == errno.ESTALE
    for mount in (one, two):
        assert (mount.path / name).read_text() == "the winner's"
        (copy,) = conflict_copies(mount.path / name)
        assert copy.read_text() == "the content of the loser"
        assert copy.name.startswith(f"{name} (conflict lena@{os.uname().nodename} ")
    with (one.path / name).open("a") as again:
        again.write(", and more")
    assert (two.path / name).read_text() == "the winner's, and more"


def test_who_is_no_admin_breaks_nothing(one: RealMount, name: str) -> None:
    with (one.path / name).open("w"):
        lock = lock_of(one, name)
        assert lock is not None
        one.realm.run("locks", "--break", str(lock["ino"]), user="lena", status=5)
        assert lock_of(one, name) is not None


def test_a_file_that_is_removed_elsewhere_can_be_written_to_its_end(
    one: RealMount, two: RealMount, name: str
) -> None:
    with (one.path / name).open("r+") as writer:
        (two.path / name).unlink()
        writer.write("nobody will read this")
        writer.flush()
        os.fsync(writer.fileno())
        writer.seek(0)
        assert writer.read() == "nobody will read this"
        assert os.fstat(writer.fileno()).st_nlink == 0
    assert name not in os.listdir(one.path)
