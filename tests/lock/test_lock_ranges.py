"""The ranges that programs lock: which are in conflict, whatever is lost on the way, and who sees them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from clients.session import Channel
from tests.support.inprocess import LossyWire
from tests.support.lock import URL, WAIT, LockRealm
from tests.support.lock_ranges import ALL, flock, granted, read, refused, shown, takes, write
from tests.support.times import wait_until
from wire.errors import BadMessage, Replayed
from wire.messages.lock import RangeAnswer, SetRange
from wire.tickets import Role

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


def test_neighbours_that_are_alike_become_one(house: LockRealm) -> None:
    alice = house.client("alice")
    for wanted in (write(20, 29), write(0, 9), write(10, 19)):
        takes(alice, wanted)
    assert shown(house, "alice") == [write(0, 29)]


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


def test_a_range_that_ends_before_it_begins_is_refused(house: LockRealm) -> None:
    class Ask(msgspec.Struct):
        ino: int
        range: tuple[bool, int, int, int, bool, int]

    channel = Channel(house.wire, URL, Role.LOCK, house.keyring("alice"))
    with pytest.raises(BadMessage, match="ends before it begins"):
        channel.call("POST", "/v1/locks/ranges/ask", Ask(7, (False, 1, 9, 8, True, 100)), RangeAnswer)


# Messages that are lost and doubled


@pytest.mark.parametrize("seed", range(3))
def test_lost_messages_neither_lose_nor_double_anything(house: LockRealm, seed: int) -> None:
    lossy = LossyWire(house.wire, seed=seed)
    alice, bob = house.client("alice", lossy), house.client("bob", lossy)
    for _ in range(4):
        takes(alice, write())
        waiting = house.waits_for_range(bob, 7, write())
        assert alice.renew().ranged == [7]
        alice.free_range(7, write())
        assert granted(waiting)
        assert refused(alice, read()).holder == "bob@there"
        bob.free_range(7, write())
    assert alice.renew().ranged == bob.renew().ranged == []
    assert lossy.lost_requests
    assert lossy.lost_replies


def test_a_request_sent_twice_while_it_waits_is_one(house: LockRealm) -> None:
    alice, keyring = house.client("alice"), house.keyring("bob")
    channel = Channel(house.wire, URL, Role.LOCK, keyring)

    def send(number: int, message: SetRange) -> RangeAnswer:
        request_id = f"{keyring.session.session:x}.{number}"
        return channel.call("POST", "/v1/locks/ranges/set", message, RangeAnswer, request_id=request_id)

    takes(alice, write())
    wanted = SetRange(1, 7, write(), wait_seconds=WAIT)
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(send, 1, wanted) for _ in range(2)]
        wait_until(lambda: len(house.server.service.range_queue.of_inode(7)) == 1)
        alice.free_range(7, write())
        assert all(granted(future) for future in futures)
    assert send(1, wanted) == RangeAnswer()
    send(2, SetRange(1, 7, write(), is_free=True))
    assert send(1, wanted) == RangeAnswer(), "what was said is said again, and not done again"
    assert shown(house, "bob") == []
    send(3, SetRange(3, 8, write()))
    with pytest.raises(Replayed):
        send(1, wanted)
    assert shown(house, "bob") == [write()]


def test_what_was_refused_is_not_granted_to_the_same_request_sent_again(house: LockRealm) -> None:
    """The second is held back for longer. Its answer is the first one's, so nobody would know of a grant."""
    alice, keyring = house.client("alice"), house.keyring("bob")
    channel = Channel(house.wire, URL, Role.LOCK, keyring)

    def send(wait_seconds: float) -> RangeAnswer:
        message, request_id = (
            SetRange(1, 7, write(), wait_seconds=wait_seconds),
            f"{keyring.session.session:x}.1",
        )
        return channel.call("POST", "/v1/locks/ranges/set", message, RangeAnswer, request_id=request_id)

    takes(alice, write())
    with ThreadPoolExecutor(2) as threads:
        again = threads.submit(send, WAIT)
        wait_until(lambda: len(house.range_queue(7)) == 1)
        assert not granted(threads.submit(send, 0.01))
        alice.free_range(7, write())
        assert not granted(again)
    assert shown(house, "bob") == []


def test_many_at_once_never_have_what_is_in_conflict(house: LockRealm) -> None:
    inside: list[tuple[str, bool]] = []
    guard = threading.Lock()

    def work(name: str, is_exclusive: bool) -> None:
        client = house.client(name)
        for turn in range(8):
            wanted = write() if is_exclusive else read(turn, 9)
            takes(client, wanted, wait_seconds=WAIT)
            with guard:
                inside.append((name, is_exclusive))
                assert len(inside) == 1 or not any(exclusive for _, exclusive in inside)
            with guard:
                inside.remove((name, is_exclusive))
            client.free_range(7, write(0, ALL))

    with ThreadPoolExecutor(6) as threads:
        for future in [threads.submit(work, f"user{number}", number % 2 == 0) for number in range(6)]:
            future.result()
    assert house.range_queue(7) == []


# What others are told


def test_the_write_lock_says_whether_programs_lock_for_themselves(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, read())
    assert [(answer.ino, answer.is_shared) for answer in bob.acquire([6, 7]).answers] == [
        (6, False),
        (7, True),
    ]
    assert [answer.is_shared for answer in alice.acquire([6, 7]).answers] == [False, True]
    alice.free_range(7, read())
    assert not bob.acquire([7]).answers[0].is_shared


def test_everybody_sees_ranges_and_who_waits(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write())
    takes(alice, flock(False), ino=6)
    house.clock.now += 1
    house.waits_for_range(bob, 7, read(owner=5))
    ranges = house.client("eve").locks().ranges
    assert [(info.ino, info.user, info.client, info.range, info.is_waiting) for info in ranges] == [
        (6, "alice", "there", flock(False), False),
        (7, "alice", "there", write(), False),
        (7, "bob", "there", read(owner=5), True),
    ]
    assert [house.clock.now - info.since for info in ranges] == [1, 1, 0]


def test_a_list_that_is_too_long_is_cut(house: LockRealm, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write(), ino=1)
    takes(alice, write(), ino=2)
    refused(bob, write(), ino=2, wait_seconds=0.01)
    for most, more in ((3, False), (2, True), (1, True)):
        monkeypatch.setattr("servers.lock.listing.RANGES_LISTED_MAX", most)
        answer = alice.locks()
        assert (len(answer.ranges), answer.more) == (most, more)
