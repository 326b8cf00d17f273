"""In which order those who wait for a range are served, who need not wait, and who would wait for ever."""

import errno
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from clients.lock import LockClient
from clients.session import Channel
from servers.lock.range_queue import INSISTENT_SECONDS, INSISTS_COUNT, PAUSE_SECONDS
from servers.lock.range_rules import RangeRules
from servers.lock.rules import Turn, Who
from tests.support.lock import ORDER, PATIENCE, PLACE, URL, WAIT, LockRealm
from tests.support.lock_ranges import flock, granted, read, refused, takes, write
from wire.messages.lock import RangeAnswer, SetRange
from wire.tickets import Role


class Session(NamedTuple):
    """As the rules know it."""

    session: int
    user: str
    client: str


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


def test_the_order_keeps_nobody_waiting_for_ever(house: LockRealm) -> None:
    """A program that has a shared lock, and starts another one that wants one too."""
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, flock(False, owner=1))
    writing = house.waits_for_range(bob, 7, flock())
    inner = house.waits_for_range(alice, 7, flock(False, owner=2))
    house.pass_time(ORDER - 1)
    alice.renew()
    assert not inner.done()
    house.pass_time(1)
    assert granted(inner)
    assert not writing.done()
    alice.free_range(7, flock(owner=1))
    alice.free_range(7, flock(owner=2))
    assert granted(writing)


def test_who_asks_again_and_again_is_not_always_too_late(house: LockRealm) -> None:
    """Between sessions; within one it is as on a local disk."""
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write())
    for _ in range(INSISTS_COUNT):
        refused(bob, write())
    alice.free_range(7, write())
    refused(alice, write())
    takes(bob, write())
    for _ in range(INSISTS_COUNT):
        refused(bob, write(owner=2))
    bob.free_range(7, write())
    takes(bob, write(owner=3))
    bob.free_range(7, write(owner=3))
    house.pass_time(INSISTENT_SECONDS)
    takes(alice, write())


def test_who_asks_once_a_second_has_a_place_too(house: LockRealm) -> None:
    """``until flock -n``, with ``sleep 1`` in it, and what the programs need besides."""
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write())
    for _ in range(INSISTS_COUNT):
        refused(bob, write())
        house.pass_time(1.1)
    alice.free_range(7, write())
    assert refused(alice, write()).holder == "bob@there"
    takes(bob, write())


def test_who_pauses_or_was_granted_it_does_not_insist(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write())
    for _ in range(2):
        house.pass_time(PAUSE_SECONDS)
        for _ in range(INSISTS_COUNT - 1):
            refused(bob, write())
        assert house.range_queue(7) == []
    alice.free_range(7, write())
    takes(bob, write())
    bob.free_range(7, write())
    takes(alice, write())
    refused(bob, write())
    assert house.range_queue(7) == []


def test_who_only_insists_is_in_no_circle(house: LockRealm) -> None:
    """He has something that is waited for, but does not wait himself: he will be told, and may let go."""
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write(), ino=1)
    takes(bob, write(), ino=2)
    for _ in range(INSISTS_COUNT):
        refused(bob, write(), ino=1)
    waiting = house.waits_for_range(alice, 2, write())
    with pytest.raises(OSError, match="deadlock"):
        bob.set_range(1, write(), WAIT)
    bob.free_range(2, write())
    assert granted(waiting)


def test_within_a_session_nobody_stands_behind_who_waits(house: LockRealm) -> None:
    """As on a local disk: only what is held is in the way, also of who does not wait."""
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, flock(False, owner=1))
    writing = house.waits_for_range(alice, 7, flock(owner=2))
    takes(alice, flock(False, owner=3))
    takes(alice, flock(False, owner=4), wait_seconds=WAIT)
    assert refused(bob, flock(False)) == RangeAnswer(flock(owner=2), False, "alice@there")
    for owner in (1, 3, 4):
        assert not writing.done()
        alice.free_range(7, flock(owner=owner))
    assert granted(writing)


def test_the_order_ends_by_itself(house: LockRealm) -> None:
    house.restart(place_seconds=0.1, order_seconds=0.5, clock=time.time)
    house.server.start()
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, flock(False, owner=1))
    house.waits_for_range(bob, 7, flock())
    takes(alice, flock(False, owner=2), wait_seconds=WAIT)


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


def test_one_who_leaves_lets_those_behind_him_pass(house: LockRealm) -> None:
    reader, writer, late = house.client("reader"), house.client("writer"), house.client("late")
    takes(reader, read())
    writing = house.waits_for_range(writer, 7, write())
    waiting = house.waits_for_range(late, 7, read())
    writer.leave_range(7, False, 1)
    assert granted(waiting)
    assert not granted(writing)


def test_a_place_is_kept_from_when_its_request_was_answered(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write())
    waiting = house.waits_for_range(bob, 7, write())
    house.pass_time(PLACE)
    house.server.service._waiting.send_away([house.range_queue(7)[0].key])
    assert not granted(waiting)
    house.pass_time(PLACE - 1)
    assert len(house.range_queue(7)) == 1
    house.pass_time(1)
    assert house.range_queue(7) == []


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


def test_who_was_told_that_he_has_nothing_gets_nothing_later(
    house: LockRealm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next change after the one that makes his answer frees what he waited for."""
    keyring = house.keyring("alice")
    holder = Session(keyring.session.session, "alice", "there")
    takes(LockClient(Channel(house.wire, URL, Role.LOCK, keyring)), write())
    collect = RangeRules.collect

    def collect_and_free(rules: RangeRules, turn: Turn, who: Who, message: SetRange) -> RangeAnswer:
        answer = collect(rules, turn, who, message)
        rules.free(turn, holder, SetRange(0, 7, write(), is_free=True))
        return answer

    monkeypatch.setattr(RangeRules, "collect", collect_and_free)
    assert refused(house.client("bob"), write(), wait_seconds=0.01).holder == "alice@there"
    assert house.server.service.locks().ranges[0].is_waiting, "reserved for him, until he asks again"


def test_a_full_house_answers_at_once_and_keeps_the_place(tmp_path: Path) -> None:
    house = LockRealm(tmp_path, waiting_requests_max=0)
    try:
        alice, bob = house.client("alice"), house.client("bob")
        takes(alice, write())
        assert refused(bob, write(), wait_seconds=WAIT).holder == "alice@there"
        alice.free_range(7, write())
        assert refused(alice, write()).holder == "bob@there"
        takes(bob, write(), wait_seconds=WAIT)
    finally:
        house.close()


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
