"""The ranges that programs lock: who has which, who waits for whom, and what ends them."""

import errno
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from clients.lock import LockClient
from tests.support.lock import PLACE, WAIT, LockRealm
from wire.messages.lock import Range, RangeAnswer

PATIENCE = 10.0
"""Seconds after which a test gives up."""

ALL = 2**63 - 1


@pytest.fixture
def house(tmp_path: Path) -> Iterator[LockRealm]:
    house = LockRealm(tmp_path)
    yield house
    house.close()


def write(first: int = 0, last: int = 9, owner: int = 1) -> Range:
    """F_WRLCK."""
    return Range(False, owner, first, last, True, 100 + owner)


def read(first: int = 0, last: int = 9, owner: int = 1) -> Range:
    """F_RDLCK."""
    return Range(False, owner, first, last, False, 100 + owner)


def flock(is_exclusive: bool = True, owner: int = 1) -> Range:
    """LOCK_EX or LOCK_SH."""
    return Range(True, owner, 0, ALL, is_exclusive, 100 + owner)


def takes(client: LockClient, wanted: Range, ino: int = 7, wait_seconds: float = 0.0) -> None:
    """It is granted."""
    assert client.set_range(ino, wanted, wait_seconds) == RangeAnswer()


def refused(client: LockClient, wanted: Range, ino: int = 7, wait_seconds: float = 0.0) -> RangeAnswer:
    """What stands against it."""
    answer = client.set_range(ino, wanted, wait_seconds)
    assert answer.conflict is not None
    return answer


def granted(future: "Future[RangeAnswer]") -> bool:
    """What a waiting request was told."""
    return future.result(PATIENCE).conflict is None


# What is in conflict


def test_a_range_is_kept_from_others_until_it_is_freed(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write(0, 9))
    assert refused(bob, read(9, 12)) == RangeAnswer(write(0, 9), False, "alice@there")
    takes(bob, read(10, 12))
    alice.free_range(7, write(5, 20))
    takes(bob, read(5, 9))
    assert refused(bob, read(4, 9)).conflict == write(0, 4)
    takes(bob, read(4, 9), ino=8)


def test_owners_of_one_session_are_kept_apart_too(house: LockRealm) -> None:
    alice = house.client("alice")
    takes(alice, write(0, 9, owner=1))
    assert refused(alice, read(5, 5, owner=2)) == RangeAnswer(write(0, 9, owner=1), True, "alice@there")
    takes(alice, write(10, 19, owner=2))
    takes(alice, write(5, 5, owner=1))


def test_two_sessions_do_not_write_one_file_in_different_places(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write(0, 9))
    assert refused(bob, write(100, 109)).conflict == write(0, 9)
    takes(bob, read(100, 109))
    assert bob.ask_range(7, write(100, 109)).conflict == write(0, 9)


def test_flock_and_fcntl_do_not_know_of_each_other(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write(0, ALL))
    takes(bob, flock())
    assert refused(alice, flock(False)).conflict == flock()
    bob.free_range(7, flock())
    takes(alice, flock(False))
    takes(bob, flock(False))


def test_asking_changes_nothing(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, read(10, 19))
    takes(alice, read(0, 3, owner=2))
    assert bob.ask_range(7, write(0, 15)) == RangeAnswer(read(0, 3, owner=2), False, "alice@there")
    assert alice.ask_range(7, write(0, 15)) == RangeAnswer(read(0, 3, owner=2), True, "alice@there")
    assert bob.ask_range(7, read(0, 15)) == RangeAnswer()
    takes(bob, write(20, 25))


# Waiting


def test_what_is_freed_goes_to_those_who_wait_in_their_order(house: LockRealm) -> None:
    names = ["alice", "bob", "carol", "dave"]
    clients = [house.client(name) for name in names]
    takes(clients[0], write())
    waiting = [house.waits_for_range(client, 7, write()) for client in clients[1:]]
    for position, future in enumerate(waiting):
        assert not any(later.done() for later in waiting[position:])
        clients[position].free_range(7, write())
        assert granted(future)
    assert house.range_queue(7) == []


def test_readers_that_come_later_do_not_keep_a_writer_waiting(house: LockRealm) -> None:
    readers, writer = [house.client(f"reader{n}") for n in range(3)], house.client("writer")
    takes(readers[0], read())
    writing = house.waits_for_range(writer, 7, write())
    assert refused(readers[1], read()) == RangeAnswer(write(), False, "writer@there")
    late = house.waits_for_range(readers[2], 7, read())
    takes(readers[0], read())  # who has it already asks for nothing new
    readers[0].free_range(7, read())
    assert granted(writing)
    assert not late.done()
    writer.free_range(7, write())
    assert granted(late)


def test_readers_are_let_in_together(house: LockRealm) -> None:
    writer, readers = house.client("writer"), [house.client(f"reader{n}") for n in range(3)]
    takes(writer, write())
    waiting = [house.waits_for_range(reader, 7, read()) for reader in readers]
    takes(writer, read())
    assert all(granted(future) for future in waiting)


def test_who_is_waited_for_is_let_pass(house: LockRealm) -> None:
    """As it were, a queue that he stands in himself: he has 0-9, the next wants 0-19, and he wants 10-19."""
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write(0, 9))
    waiting = house.waits_for_range(bob, 7, write(0, 19))
    takes(alice, write(10, 19))
    alice.free_range(7, write(0, 19))
    assert granted(waiting)


def test_a_wait_ends_with_its_time_and_keeps_the_place(house: LockRealm) -> None:
    alice, bob, carol = house.client("alice"), house.client("bob"), house.client("carol")
    takes(alice, write())
    assert refused(bob, write(), wait_seconds=0.01).holder == "alice@there"
    assert refused(carol, write(), wait_seconds=0.01).holder == "alice@there"
    assert refused(bob, write(), wait_seconds=0.01).holder == "alice@there"
    assert [place.user for place in house.range_queue(7)] == ["bob", "carol"]
    alice.free_range(7, write())
    assert refused(carol, write()).holder == "bob@there"
    takes(bob, write())


def test_a_waiter_that_does_not_come_back_is_skipped(house: LockRealm) -> None:
    alice, bob, carol = house.client("alice"), house.client("bob"), house.client("carol")
    takes(alice, write())
    refused(bob, write(), wait_seconds=0.01)
    waiting = house.waits_for_range(carol, 7, write())
    alice.free_range(7, write())
    house.pass_time(PLACE - 1)
    assert not waiting.done(), "bob may still come back"
    house.pass_time(1)
    assert granted(waiting)


def test_one_who_leaves_is_answered_and_never_gets_it(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write())
    leaving, other = house.waits_for_range(bob, 7, write()), house.waits_for_range(bob, 7, write(owner=2))
    bob.leave_range(7, False, 1)
    assert leaving.result(PATIENCE).holder == "alice@there"
    assert not other.done()
    alice.free_range(7, write())
    assert granted(other)


def test_a_change_from_shared_to_exclusive_waits_and_keeps_what_it_has(house: LockRealm) -> None:
    alice, bob, carol = house.client("alice"), house.client("bob"), house.client("carol")
    takes(alice, read())
    takes(bob, read())
    waiting = house.waits_for_range(alice, 7, write())
    assert carol.ask_range(7, write()).holder == "alice@there"
    bob.free_range(7, read())
    assert granted(waiting)


def test_two_flocks_that_become_exclusive_do_not_wait_for_each_other(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, flock(False))
    takes(bob, flock(False))
    waiting = house.waits_for_range(alice, 7, flock())
    assert refused(bob, flock()).holder == "alice@there", "he has given up his shared one for it"
    assert granted(waiting)


# Circles


def test_who_would_wait_for_himself_is_told_so(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write(), ino=1)
    takes(bob, write(), ino=2)
    waiting = house.waits_for_range(alice, 2, write())
    with pytest.raises(OSError, match="deadlock") as caught:
        bob.set_range(1, write(), WAIT)
    assert caught.value.errno == errno.EDEADLK
    assert refused(bob, write(), ino=1).holder == "alice@there", "without waiting there is no circle"
    bob.free_range(2, write())
    assert granted(waiting)


def test_a_circle_of_three_owners(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write(owner=1), ino=1)
    takes(alice, write(owner=2), ino=2)
    takes(bob, write(owner=1), ino=3)
    house.waits_for_range(alice, 2, write(owner=1))
    house.waits_for_range(alice, 3, write(owner=2))
    with pytest.raises(OSError, match="deadlock"):
        bob.set_range(1, write(), WAIT)
    house.waits_for_range(bob, 1, write(owner=2))


def test_a_circle_because_of_the_order_is_opened(house: LockRealm) -> None:
    """Carol would have been let in if bob had not come before her; alice waits for what carol has."""
    alice, bob, carol = house.client("alice"), house.client("bob"), house.client("carol")
    takes(alice, read(), ino=1)
    takes(carol, write(), ino=2)
    house.waits_for_range(bob, 1, write())
    passed = house.waits_for_range(carol, 1, read())
    house.waits_for_range(alice, 2, write())
    assert granted(passed)


# Messages


def test_a_range_that_ends_before_it_begins_is_refused(house: LockRealm) -> None:
    channel = Channel(house.wire, URL, Role.LOCK, house.keyring("alice"))
    message = {"ino": 7, "range": (False, 1, 9, 8, True, 100)}
    with pytest.raises(BadMessage, match="ends before it begins"):
        channel.call("POST", "/v1/locks/ranges/ask", msgspec.defstruct("Ask", message)(**message), RangeAnswer)
