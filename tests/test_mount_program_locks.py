"""flock(2) and fcntl(2) locks of programs on two mounts: who excludes whom, until when, and what the next
one reads."""

import errno
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mount.bindings import FUSEPY, choose
from tests.support.mounts import BINDING, RealMount
from tests.support.programs import Program
from tests.support.realm import RealRealm
from tests.support.times import wait_until
from tests.support.vfs import raises

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

DEATH_SECONDS_MAX = 25.0
WHOSE = (
    "__import__('struct').unpack('hhqqi', fcntl.fcntl(f, fcntl.F_GETLK,"
    " __import__('struct').pack('hhqqi', fcntl.F_RDLCK, 0, 0, 0, 0))[:28])"
)
"""What stands in the way of a lock of ``f``: kind, whence, first byte, length, process."""

EXCLUSIVE, SHARED, FREE, AT_ONCE = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_NB


@pytest.fixture(scope="module")
def own_realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRealm]:
    """A realm whose lock server may be killed."""
    with RealRealm(tmp_path_factory.mktemp("realm"), files=1) as realm:
        realm.join("lena")
        yield realm


@pytest.fixture(scope="module")
def one(own_realm: RealRealm) -> Iterator[RealMount]:
    """A mount."""
    with RealMount(own_realm, "one", "lena") as mount:
        yield mount


@pytest.fixture(scope="module")
def two(own_realm: RealRealm, one: RealMount) -> Iterator[RealMount]:
    """Another one."""
    with RealMount(own_realm, "two", "lena") as mount:
        yield mount


@pytest.fixture
def name(one: RealMount, request: pytest.FixtureRequest) -> str:
    """A file of this test's own, with content."""
    name = f"{request.node.name}.txt"
    (one.path / name).write_text("0")
    return name


@pytest.fixture
def here(one: RealMount, name: str) -> Iterator[Program]:
    """A program on the first mount, which has the file open as ``f``."""
    with Program() as program:
        opened(program, one, name)
        yield program


@pytest.fixture
def there(two: RealMount, name: str, here: Program) -> Iterator[Program]:
    """A program on the second mount, which reads the file as ``f``."""
    with Program() as program:
        opened(program, two, name, os.O_RDONLY)
        yield program


def opened(program: Program, mount: RealMount, name: str, flags: int = os.O_RDWR) -> None:
    """``f`` of the program is the file."""
    program.do(f"f := os.open({str(mount.path / name)!r}, {flags})")


def flock(program: Program, how: int) -> None:
    """Raises BlockingIOError."""
    program.do(f"fcntl.flock(f, {how})")


def lockf(program: Program, how: int, size: int = 0, start: int = 0) -> None:
    """Raises BlockingIOError."""
    program.do(f"fcntl.lockf(f, {how}, {size}, {start})")


def test_an_exclusive_flock_excludes_the_other_mount(here: Program, there: Program) -> None:
    flock(here, EXCLUSIVE)
    with pytest.raises(BlockingIOError):
        flock(there, SHARED | AT_ONCE)
    flock(here, SHARED)
    flock(there, SHARED | AT_ONCE)
    with pytest.raises(BlockingIOError):
        flock(here, EXCLUSIVE | AT_ONCE)
    flock(there, FREE)
    flock(here, EXCLUSIVE | AT_ONCE)


def test_who_waits_gets_it_when_the_other_unlocks(here: Program, there: Program) -> None:
    flock(here, EXCLUSIVE)
    there.begin(f"fcntl.flock(f, {EXCLUSIVE})")
    with pytest.raises(BlockingIOError):
        here.do(f"fcntl.flock(os.open(f'/proc/self/fd/{{f}}', os.O_RDONLY), {SHARED | AT_ONCE})")
    flock(here, FREE)
    there.answer()
    with pytest.raises(BlockingIOError):
        flock(here, SHARED | AT_ONCE)


def test_a_file_can_be_opened_while_another_mount_has_it_locked(
    here: Program, two: RealMount, name: str
) -> None:
    flock(here, EXCLUSIVE)
    here.do("os.write(f, b'1')")
    with Program() as other:
        opened(other, two, name)
        with pytest.raises(BlockingIOError):
            flock(other, EXCLUSIVE | AT_ONCE)
        assert other.do("os.pread(f, 10, 0)") == "b'0'", "what is committed"
        other.begin(f"fcntl.flock(f, {EXCLUSIVE})")
        flock(here, FREE)
        other.answer()
        assert other.do("os.pread(f, 10, 0)") == "b'1'"
        other.do("os.pwrite(f, b'2', 0)")
    flock(here, SHARED)
    assert here.do("os.pread(f, 10, 0)") == "b'2'"


def test_ranges_of_one_mount_and_of_two(
    here: Program, there: Program, one: RealMount, two: RealMount, name: str
) -> None:
    lockf(here, EXCLUSIVE, 10, 0)
    with Program() as neighbour, Program() as other:
        opened(neighbour, one, name)
        with pytest.raises(BlockingIOError):
            lockf(neighbour, EXCLUSIVE | AT_ONCE, 10, 5)
        lockf(neighbour, EXCLUSIVE | AT_ONCE, 10, 10)
        with pytest.raises(BlockingIOError):
            lockf(there, SHARED | AT_ONCE, 1, 9)
        lockf(there, SHARED | AT_ONCE, 1, 20)
        opened(other, two, name)
        with pytest.raises(BlockingIOError):  # one session's content at a time
            lockf(other, EXCLUSIVE | AT_ONCE, 1, 30)
        lockf(here, FREE, 4, 3)
        lockf(there, SHARED | AT_ONCE, 4, 3)
        with pytest.raises(BlockingIOError):
            lockf(there, SHARED | AT_ONCE, 1, 2)
    flock(there, EXCLUSIVE | AT_ONCE)  # the two kinds do not know of each other


def test_whose_lock_stands_in_the_way(here: Program, there: Program, one: RealMount, name: str) -> None:
    lockf(here, EXCLUSIVE, 10, 5)
    assert there.do(WHOSE) == str((fcntl.F_WRLCK, 0, 5, 10, 0)), "of another machine there is no number"
    with Program() as neighbour:
        opened(neighbour, one, name)
        assert neighbour.do(WHOSE) == str((fcntl.F_WRLCK, 0, 5, 10, int(here.do("os.getpid()"))))
    lockf(here, FREE)
    assert there.do(WHOSE) == str((fcntl.F_UNLCK, 0, 0, 0, 0))


def test_closing_any_descriptor_ends_ranges_but_not_flocks(here: Program, there: Program) -> None:
    lockf(here, EXCLUSIVE)
    here.do("g := os.dup(f)")
    flock(here, EXCLUSIVE)
    here.do("os.close(g)")
    lockf(there, SHARED | AT_ONCE)
    with pytest.raises(BlockingIOError):
        flock(there, SHARED | AT_ONCE)
    here.do("os.close(f)")
    flock(there, SHARED)


def test_a_program_that_is_killed_has_no_locks(here: Program, there: Program) -> None:
    lockf(here, EXCLUSIVE)
    flock(here, EXCLUSIVE)
    os.kill(int(here.do("os.getpid()")), signal.SIGKILL)
    lockf(there, SHARED)
    flock(there, SHARED)


def test_the_next_program_does_not_find_the_lock_of_one_that_has_ended(one: RealMount, name: str) -> None:
    """The kernel tells of a last close(2) when that has returned already."""
    take = f"[f := os.open({str(one.path / name)!r}, os.O_RDONLY), fcntl.flock(f, {EXCLUSIVE | AT_ONCE})]"
    with Program() as first, Program() as second:
        for program in (first, second) * 30:
            program.do(take)
            program.do("os.close(f)")


def test_who_waits_can_be_interrupted(here: Program, there: Program) -> None:
    flock(here, EXCLUSIVE)
    there.do("signal.signal(signal.SIGALRM, lambda *_: 1 / 0)")
    there.begin(f"[signal.setitimer(signal.ITIMER_REAL, 0.3), fcntl.flock(f, {EXCLUSIVE})]")
    with pytest.raises(AssertionError, match="the program died"):  # of what its handler raised
        there.answer()
    with pytest.raises(BlockingIOError):
        here.do(f"fcntl.flock(os.open(f'/proc/self/fd/{{f}}', os.O_RDONLY), {SHARED | AT_ONCE})")
    flock(here, FREE)
    here.do(f"fcntl.flock(os.open(f'/proc/self/fd/{{f}}', os.O_RDONLY), {EXCLUSIVE | AT_ONCE})")


def test_two_that_wait_for_each_other_are_told(here: Program, there: Program, two: RealMount) -> None:
    lockf(here, EXCLUSIVE, 1, 0)
    lockf(there, SHARED, 1, 5)
    there.begin(f"fcntl.lockf(f, {SHARED}, 1, 0)")
    with raises(errno.EDEADLK):
        for _ in range(1000):
            with pytest.raises(BlockingIOError):  # until the other one waits
                lockf(here, EXCLUSIVE | AT_ONCE, 1, 5)
            here.do(f"signal.setitimer(signal.ITIMER_REAL, 5) and 0 or fcntl.lockf(f, {EXCLUSIVE}, 1, 5)")
    lockf(here, FREE)
    there.answer()


def test_what_was_written_through_a_map_is_there_for_the_next_one(here: Program, there: Program) -> None:
    flock(here, EXCLUSIVE)
    here.do("m := mmap.mmap(f, 1)")
    here.do("m.__setitem__(0, 49)")
    flock(here, FREE)
    flock(there, SHARED)
    assert there.do("os.pread(f, 10, 0)") == "b'1'"


def test_the_file_of_who_waits_can_be_renamed_and_removed(
    here: Program, there: Program, two: RealMount, name: str
) -> None:
    flock(here, EXCLUSIVE)
    there.begin(f"fcntl.flock(f, {EXCLUSIVE})")
    with Program() as other:
        opened(other, two, name)
        other.begin(f"fcntl.flock(f, {EXCLUSIVE})")
        (two.path / name).rename(two.path / "renamed")
        (two.path / "renamed").unlink()
        flock(here, FREE)
        there.answer()
        flock(there, FREE)
        other.answer()


def test_a_lock_of_an_open_file_is_forgotten_with_it(
    here: Program, there: Program, one: RealMount, name: str
) -> None:
    lock = "fcntl.fcntl(f, fcntl.F_OFD_SETLK, __import__('struct').pack('hhqqi', fcntl.F_WRLCK, 0, 0, 0, 0))"
    here.do(lock)
    with pytest.raises(BlockingIOError):
        lockf(there, SHARED | AT_ONCE)
    here.do("[os.close(f), f := os.open(os.devnull, os.O_RDONLY)]")
    lockf(there, SHARED)
    lockf(there, FREE)
    with Program() as neighbour:
        opened(neighbour, one, name)
        assert neighbour.do(WHOSE) == str((fcntl.F_UNLCK, 0, 0, 0, 0))


_COUNT = """
import fcntl, os, sys
path, kind, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
lock = getattr(fcntl, kind)
f = os.open(path, os.O_RDWR)
for _ in range(rounds):
    lock(f, fcntl.LOCK_EX)
    number = int(os.pread(f, 20, 0)) + 1
    os.pwrite(f, b"%d" % number, 0)
    lock(f, fcntl.LOCK_UN)
"""


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_nothing_is_lost_under_a_lock(one: RealMount, two: RealMount, kind: str) -> None:
    name, rounds = f"count-{kind}", 25
    (one.path / name).write_text("0")
    counters = [
        subprocess.Popen([sys.executable, "-c", _COUNT, str(mount.path / name), kind, str(rounds)])
        for mount in (one, two, one)
    ]
    assert [counter.wait(100) for counter in counters] == [0, 0, 0]
    assert (two.path / name).read_text() == (one.path / name).read_text() == str(3 * rounds)


_INSERT = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for number in range(int(sys.argv[3])):
    base.execute("BEGIN IMMEDIATE")
    [total] = base.execute("SELECT COUNT(*) FROM t").fetchone()
    base.execute("INSERT INTO t VALUES (?, ?, ?)", (sys.argv[2], number, total))
    base.execute("COMMIT")
"""


def test_sqlite_on_two_mounts(one: RealMount, two: RealMount) -> None:
    rounds = 15
    with sqlite3.connect(one.path / "base.db") as base:
        base.execute("CREATE TABLE t (who TEXT, number INTEGER, total INTEGER)")
    base.close()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _INSERT, str(mount.path / "base.db"), mount.name, str(rounds)]
        )
        for mount in (one, two)
    ]
    assert [writer.wait(110) for writer in writers] == [0, 0]
    for mount in (one, two):
        base = sqlite3.connect(mount.path / "base.db", timeout=60)
        assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        totals = [total for (total,) in base.execute("SELECT total FROM t ORDER BY total")]
        base.close()
        assert totals == list(range(2 * rounds))


@pytest.mark.skipif(choose(BINDING) == FUSEPY, reason="a mount with libfuse ends with its process")
def test_locks_outlive_a_worker_and_a_lock_server(
    own_realm: RealRealm, one: RealMount, two: RealMount, name: str, here: Program, there: Program
) -> None:
    lockf(here, EXCLUSIVE, 10)
    flock(here, EXCLUSIVE)
    here.do("os.pwrite(f, b'1', 0)")
    there.begin(f"fcntl.flock(f, {SHARED})")
    one.expect_log(r"the worker \d+ died")
    worker = one.record().worker_pid
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: one.record().worker_pid not in (0, worker))
    with Program() as other:
        opened(other, two, name, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            lockf(other, SHARED | AT_ONCE, 1, 3)
    own_realm.kill("lock")
    own_realm.wait_running("lock")
    flock(here, FREE)
    there.answer()
    assert there.do("os.pread(f, 10, 0)") == "b'1'"


def test_a_mount_that_is_killed_has_no_locks(own_realm: RealRealm, one: RealMount, name: str) -> None:
    victim = RealMount(own_realm, "victim", "lena")
    with Program() as program, Program() as other:
        opened(program, victim, name)
        flock(program, EXCLUSIVE)
        opened(other, one, name)
        with pytest.raises(BlockingIOError):
            flock(other, SHARED | AT_ONCE)
        victim.kill()
        flock(other, SHARED)
    victim.mount()
    victim.close()
