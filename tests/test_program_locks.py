"""Locks of programs, as the Vfs has them: what goes wrong between a mount, its programs and the services."""

import errno
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import pytest

from mount.program_notes import Owner
from mount.vfs import Changes
from tests.support.stack import DIRECTORY, Client, Stack
from tests.support.times import wait_until
from tests.support.vfs import cut_at, raises
from wire.messages.lock import Range

LAST_BYTE = 2**63 - 1


@pytest.fixture
def one(stack: Stack) -> Client:
    """A mount; it has made ``/file``."""
    one = stack.client()
    one.write("/file", b"0")
    return one


@pytest.fixture
def two(stack: Stack, one: Client) -> Client:
    """Another one."""
    return stack.client()


@pytest.fixture
def here(one: Client) -> Iterator[int]:
    """The file, open on the first mount."""
    with one.opened("/file", os.O_RDWR) as handle:
        yield handle


@pytest.fixture
def there(two: Client, here: int) -> Iterator[int]:
    """The file, open on the second mount as well, as locks of programs make it possible."""
    with two.opened("/file", os.O_RDWR) as handle:
        yield handle


def flock(is_exclusive: bool, owner: int = 1) -> Range:
    """Of the whole file."""
    return Range(True, owner, 0, LAST_BYTE, is_exclusive, 1)


def record(first: int, size: int = 1, *, owner: int = 1) -> Range:
    """An exclusive range."""
    return Range(False, owner, first, first + size - 1, True, 1)


def takes(client: Client, handle: int, wanted: Range) -> bool:
    """Whether it is granted at once."""
    return client.vfs.lock(handle, wanted, waits=False).conflict is None


@pytest.fixture
def shared(one: Client, here: int) -> int:
    """``here``, of which a program has had a lock."""
    assert takes(one, here, record(0))
    one.vfs.unlock(here, record(0))
    return here


def settled(client: Client, ranged: list[int]) -> None:
    """The lock server has said of which inodes it has ranges, and what differs was stated anew."""
    locks = client.proxy.program_locks
    locks.renewed(ranged)
    wait_until(lambda: not locks._doubted and not locks._stated)


def test_a_flock_that_could_not_be_changed_is_gone(one: Client, two: Client, shared: int, there: int) -> None:
    assert takes(one, shared, flock(is_exclusive=False))
    assert takes(two, there, flock(is_exclusive=False))
    assert not takes(one, shared, flock(is_exclusive=True))
    settled(one, ranged=[])
    assert takes(two, there, flock(is_exclusive=True)), "nobody else has any"


def test_threads_of_one_program_lock_at_the_same_time(one: Client, shared: int) -> None:
    numbers = range(40)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(
                target=lambda mine=mine: [
                    takes(one, shared, record(2 * number)) for number in numbers[mine::4]
                ]
            )
            for mine in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    locks, owner = one.proxy.program_locks, Owner(one.walk("/file").ino, False, 1)
    assert [range.first for range in locks._notes.of_owner(owner)] == [2 * number for number in numbers]


def test_who_has_not_locked_yet_gives_way_to_who_has(
    stack: Stack, one: Client, two: Client, shared: int, there: int
) -> None:
    assert takes(one, shared, record(0))
    one.vfs.write(shared, 0, b"1")
    unlocking = threading.Thread(target=one.vfs.unlock, args=(shared, record(0)))
    unlocking.start()
    wait_until(lambda: any(lock.queue for lock in stack.lock.service.locks().locks))
    two.proxy.write_locks._renew()
    unlocking.join()
    assert takes(two, there, record(0))
    assert two.pread(there, 0, 10) == b"1"


def test_who_asks_does_not_find_a_lock_that_is_just_being_given_up(
    one: Client, here: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As is that of a file whose last close(2) has returned."""
    assert takes(one, here, record(0))
    client = one.proxy.program_locks._client
    begun, may_end, free = threading.Event(), threading.Event(), client.free_range

    def slowly(ino: int, gone: Range) -> None:
        begun.set()
        assert may_end.wait(20)
        free(ino, gone)

    monkeypatch.setattr(client, "free_range", slowly)
    with ThreadPoolExecutor(2) as pool:
        unlocked = pool.submit(one.vfs.unlock, here, record(0))
        assert begun.wait(20)
        asked = pool.submit(one.vfs.conflict, here, record(0, owner=2))
        wait([asked], timeout=0.2)
        may_end.set()
        assert asked.result(20).conflict is None
        unlocked.result(20)


def test_a_time_that_is_set_after_a_write_stays(one: Client, shared: int) -> None:
    assert takes(one, shared, record(0))
    one.vfs.write(shared, 0, b"1")
    one.set("/file", Changes(mtime=10**9))
    one.vfs.unlock(shared, record(0))
    assert one.walk("/file", fresh=True).mtime == 10**9


def test_no_write_lock_is_kept_after_one_was_lost(stack: Stack, one: Client, shared: int) -> None:
    ino = one.walk("/file").ino
    one.proxy.on_lock_lost(ino)  # during a commit
    one.vfs.write(shared, 0, b"1")
    wait_until(lambda: ino not in stack.lock_holders())


def test_what_cannot_be_seen_is_not_locked(stack: Stack, one: Client, shared: int) -> None:
    two = stack.client(deadline_seconds=1.5)
    with two.opened("/file", os.O_RDWR) as there:
        assert takes(two, there, record(0))
        two.vfs.unlock(there, record(0))
        stack.away(DIRECTORY)
        with raises(errno.ETIMEDOUT):
            takes(two, there, record(0))
        stack.back()
        assert takes(one, shared, record(0))


def test_who_may_not_write_any_more_is_told_when_it_is_committed(stack: Stack, one: Client) -> None:
    """Of a file without locks the write lock of the opening counts; of this one each commit has its own."""
    one.set("/file", Changes(mode=0o666))
    bob = stack.client(user="bob", uid=10002, gids=(10002,))
    handle = bob.open("/file", os.O_RDWR)
    assert takes(bob, handle, flock(is_exclusive=True))
    one.set("/file", Changes(mode=0o644))
    bob.vfs.write(handle, 0, b"1")
    with raises(errno.ESTALE):
        bob.vfs.flush(handle)
    bob.vfs.release(handle)
    assert one.read("/file") == b"0"
    assert any("conflict bob@" in name for name in one.names("/"))


# Workers that are killed


@contextmanager
def killed_at_range(stack: Stack, client: Client, *, before: bool = False) -> Iterator[None]:
    """In the block the lock server grants or frees a range, and the worker dies before it hears of that; or
    ``before`` it is sent. The write lock has been given back: else others would wait for the next worker's
    first renewal."""
    locks = client.proxy.write_locks
    wait_until(lambda: not (locks._to_release or locks._releasing))
    with cut_at(stack, client, "/ranges/set", before=before):
        yield
    client.kill()


@pytest.fixture
def unheard(stack: Stack, one: Client) -> tuple[Client, int]:
    """A worker, and an open file, of which the one before was granted a range and has not heard of it. It has
    noted a lock of the same file."""
    handle = one.open("/file", os.O_RDWR)
    assert takes(one, handle, flock(is_exclusive=False))
    with killed_at_range(stack, one), raises(errno.ENETDOWN):
        takes(one, handle, record(0))
    return stack.client(before=one), handle


def test_a_range_that_no_worker_has_heard_of_is_freed(two: Client, unheard: tuple[Client, int]) -> None:
    """The program was killed too, and does not ask again."""
    with two.opened("/file", os.O_RDWR) as there:
        wait_until(lambda: takes(two, there, record(0)))
        assert not takes(two, there, flock(is_exclusive=True)), "what was noted is there still"


def test_a_range_that_no_worker_has_heard_of_is_the_program_s_that_asks_again(
    two: Client, unheard: tuple[Client, int]
) -> None:
    three, handle = unheard
    assert takes(three, handle, record(0))
    with two.opened("/file", os.O_RDWR) as there:
        settled(three, ranged=[three.walk("/file").ino])
        assert not takes(two, there, record(0))
        three.vfs.unlock(handle, record(0))
        assert takes(two, there, record(0))


@pytest.mark.parametrize("before", [False, True])
def test_what_was_being_unlocked_when_the_worker_died_is_free(
    stack: Stack, one: Client, two: Client, before: bool
) -> None:
    handle = one.open("/file", os.O_RDWR)
    for wanted in (record(0), flock(is_exclusive=False)):
        assert takes(one, handle, wanted)
    with killed_at_range(stack, one, before=before):
        one.vfs.unlock(handle, record(0))
    three = stack.client(before=one)
    three.vfs.unlock(handle, record(0))  # the kernel repeats it
    with two.opened("/file", os.O_RDWR) as there:
        wait_until(lambda: takes(two, there, record(0)))
        assert not takes(two, there, flock(is_exclusive=True))


def test_who_waits_for_a_range_of_his_own_mount_that_nobody_has_noted_gets_it(
    stack: Stack, one: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He asks all the time, so there is never an answer that could not be on its way."""
    monkeypatch.setattr("mount.program_locks.POLL_SECONDS", 0.5)
    handle = one.open("/file", os.O_RDWR)
    with killed_at_range(stack, one), raises(errno.ENETDOWN):
        takes(one, handle, record(0))
    three = stack.client(before=one)
    waiting = threading.Thread(
        target=three.vfs.lock, args=(handle, record(0, owner=2)), kwargs={"waits": True}
    )
    waiting.start()
    wait_until(lambda: bool(stack.lock.service.range_queue.places()))
    ino = three.walk("/file").ino
    for _ in range(2):
        three.proxy.program_locks.renewed([ino])
    waiting.join(5.0)
    is_granted = not waiting.is_alive()
    stack.advance_locks()
    waiting.join()
    assert is_granted


def test_what_is_on_its_way_at_each_renewal_is_not_in_doubt(one: Client, here: int) -> None:
    """A file that is locked and unlocked all the time: stating it anew would keep its programs waiting."""
    locks, ino = one.proxy.program_locks, one.walk("/file").ino
    with locks._asked(ino):
        for _ in range(3):
            locks.renewed([ino])
            assert not locks._doubted
            assert not locks._stated
            assert takes(one, here, record(0))
            one.vfs.unlock(here, record(0))
