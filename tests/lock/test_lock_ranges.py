"""The ranges that programs lock: who has which, who waits for whom, and what ends them."""

import errno
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from clients.lock import LockClient
from clients.session import Channel
from servers.lock.app import make_server
from servers.lock.range_queue import INSISTENT_SECONDS, INSISTS_COUNT, PAUSE_SECONDS
from servers.lock.range_rules import RangeRules
from servers.lock.rules import Turn, Who
from servers.replies import Replies
from tests.support.inprocess import LossyWire
from tests.support.lock import LEASE, ORDER, PLACE, URL, WAIT, LockRealm
from tests.support.times import wait_until
from wire.errors import BadMessage, Replayed, fail
from wire.messages.lock import Range, RangeAnswer, Renewed, SetRange
from wire.tickets import Role

PATIENCE = 10.0
"""Seconds after which a test gives up."""

ALL = 2**63 - 1


class Session(NamedTuple):
    """As the rules know it."""

    session: int
    user: str
    client: str


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


def shown(house: LockRealm, user: str) -> list[Range]:
    """What people see that the user has."""
    return [
        info.range
        for info in house.server.service.locks().ranges
        if info.user == user and not info.is_waiting
    ]


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
    house.server.close()
    house.config = replace(house.config, place_seconds=0.1, order_seconds=0.5, clock=time.time)
    house.server = make_server(house.config)
    house.wire.apps[URL] = house.server.app
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


# Leases and restarts


def test_renewing_keeps_all_ranges_and_says_where_they_are(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    for ino in (3, 1, 2):
        takes(alice, write(), ino=ino)
    takes(alice, write(20, 29), ino=2)
    alice.free_range(3, write())
    for _ in range(3):
        house.pass_time(LEASE - 1)
        assert alice.renew() == Renewed([], [], [], [1, 2])
    assert bob.renew().ranged == []


def test_a_lease_that_ends_frees_all_and_wakes_those_who_wait(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write())
    takes(alice, flock())
    waiting = house.waits_for_range(bob, 7, write())
    house.pass_time(LEASE - 1)
    assert refused(bob, flock()).holder == "alice@there"
    house.pass_time(1)
    assert granted(waiting)
    takes(bob, flock())
    assert alice.renew().ranged == []


def test_a_new_range_is_a_new_lease_for_all(house: LockRealm) -> None:
    alice = house.client("alice")
    takes(alice, write(), ino=1)
    house.pass_time(LEASE - 1)
    takes(alice, write(), ino=2)
    house.pass_time(LEASE - 1)
    assert alice.renew().ranged == [1, 2]


def test_ranges_survive_a_restart_with_a_whole_lease(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write(0, 9))
    takes(alice, read(10, 19))
    takes(alice, flock(False))
    waiting = house.waits_for_range(bob, 7, write())
    house.clock.now += LEASE + 60
    house.restart()
    assert not granted(waiting), "who waits is answered, and asks again"
    house.pass_time(LEASE - 1)
    assert bob.ask_range(7, read(0, 30)).conflict == write(0, 9)
    assert bob.ask_range(7, write(10, 30)).conflict == read(10, 19)
    assert bob.ask_range(7, flock()).conflict == flock(False)
    assert alice.renew().ranged == [7]
    house.restart()
    house.pass_time(LEASE)
    takes(bob, write())


def test_what_was_granted_is_there_after_a_kill(house: LockRealm, tmp_path: Path) -> None:
    """The database's files as a killed server leaves them: copied while it runs."""
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write())
    waiting = house.waits_for_range(bob, 7, read())
    takes(alice, read(0, 4))
    assert not waiting.done()
    alice.free_range(7, read(5, 9))
    assert granted(waiting)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tmp_path.glob("lock.db*"):
        (copy / path.name).write_bytes(path.read_bytes())
    after = LockRealm(copy)
    try:
        assert shown(after, "alice") == [read(0, 4)]
        assert shown(after, "bob") == [read()]
    finally:
        after.close()


def test_a_change_that_fails_leaves_nobody_asleep(house: LockRealm, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write())
    waiting = house.waits_for_range(bob, 7, write())
    once = Replies.once

    def fails_at_the_end(*arguments: Any) -> bytes | OSError:
        once(*arguments)
        monkeypatch.undo()
        raise fail(errno.EIO, "the disk has a bad day")

    monkeypatch.setattr(Replies, "once", fails_at_the_end)
    with pytest.raises(OSError, match="bad day"):
        alice.free_range(7, write())
    assert not granted(waiting)
    assert shown(house, "alice") == [write()]
    again = house.waits_for_range(bob, 7, write())
    alice.free_range(7, write())
    assert granted(again)


# Restating


def test_what_is_restated_is_all_that_the_session_has(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write(0, 9))
    takes(alice, read(20, 29, owner=2))
    waiting = house.waits_for_range(bob, 7, read(0, 9))
    assert alice.restate_ranges(7, [write(40, 49), read(20, 24, owner=2), read(25, 29, owner=2)]) == []
    assert granted(waiting)
    assert shown(house, "alice") == [read(20, 29, owner=2), write(40, 49)]
    assert alice.restate_ranges(7, []) == []
    assert shown(house, "alice") == []


def test_after_a_statement_nothing_is_granted_to_an_earlier_request(house: LockRealm) -> None:
    """One that is held back still, though its mount has given up, or is another worker now."""
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, read(20, 29, owner=2))
    takes(bob, write(0, 9))
    takes(bob, write(), ino=8)
    unheard, elsewhere = house.waits_for_range(alice, 7, read()), house.waits_for_range(alice, 8, read())
    carol = house.client("carol")
    waiting = house.waits_for_range(carol, 7, read())
    assert alice.restate_ranges(7, [read(20, 29, owner=2)]) == []
    assert not granted(unheard)
    assert not waiting.done()
    assert not elsewhere.done()
    assert [place.user for place in house.range_queue(7)] == ["alice", "carol"], "the place is kept"
    bob.free_range(7, write())
    assert granted(waiting)
    assert shown(house, "alice") == [read(20, 29, owner=2)]
    takes(alice, read())


def test_what_others_have_meanwhile_is_lost(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    mine = [read(0, 9), read(20, 29), write(40, 49), flock(False)]
    for wanted in mine:
        takes(alice, wanted)
    house.pass_time(LEASE)
    takes(bob, write(5, 5))
    takes(bob, read(20, 29))
    takes(bob, flock(False))
    refused(house.client("carol"), flock(), wait_seconds=0.01)
    assert alice.restate_ranges(7, mine) == [read(0, 9), write(40, 49)]
    assert shown(house, "alice") == [read(20, 29), flock(False)]
    assert alice.renew().ranged == [7]


def test_what_one_has_is_kept_though_it_could_not_be_had_now(house: LockRealm) -> None:
    alice = house.client("alice")
    takes(alice, read(0, 9, owner=1))
    takes(alice, read(0, 9, owner=2))
    assert alice.restate_ranges(7, [read(2, 5, owner=1), read(0, 9, owner=2)]) == []
    with pytest.raises(BadMessage, match="overlap"):
        alice.restate_ranges(7, [read(0, 9), write(9, 10)])
    assert shown(house, "alice") == [read(0, 9, owner=2), read(2, 5, owner=1)]


# Limits


def test_a_session_has_at_most_so_many_ranges_of_an_inode(
    house: LockRealm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servers.lock.range_rules.RANGES_MAX", 3)
    alice, bob = house.client("alice"), house.client("bob")
    for first in (0, 20, 40):
        takes(alice, read(first, first + 9))
    takes(alice, read(45, 55))
    too_many: list[Callable[[], object]] = [
        lambda: alice.set_range(7, read(60, 69)),
        lambda: alice.set_range(7, flock(False)),
        lambda: alice.free_range(7, read(5, 5)),
    ]
    for ask in too_many:
        with pytest.raises(OSError, match="at most 3 ranges") as caught:
            ask()
        assert caught.value.errno == errno.ENOLCK
    takes(bob, read(60, 69))
    takes(alice, read(60, 69), ino=8)
    alice.free_range(7, read(5, 9))
    takes(alice, read(0, 60))


def test_a_user_has_at_most_so_many(house: LockRealm) -> None:
    house.server.close()
    house.config = replace(house.config, user_locks_max=3)
    house.server = make_server(house.config)
    house.wire.apps[URL] = house.server.app
    alice, again, bob = house.client("alice"), house.client("alice"), house.client("bob")
    takes(bob, write())
    takes(alice, write(), ino=1)
    alice.acquire([2])
    refused(again, read(), wait_seconds=0.01)
    with pytest.raises(OSError, match="at most 3 locks") as caught:
        again.set_range(7, read(owner=2), 0.01)
    assert caught.value.errno == errno.ENOLCK
    house.pass_time(PLACE)
    takes(alice, write(20, 29), ino=1)
    with pytest.raises(OSError, match="at most 3 locks"):
        again.acquire([3])
    bob.free_range(7, write())
    alice.free_range(1, write())
    takes(again, read())


def test_who_insists_and_has_no_room_is_just_refused(house: LockRealm) -> None:
    house.server.close()
    house.config = replace(house.config, user_locks_max=1)
    house.server = make_server(house.config)
    house.wire.apps[URL] = house.server.app
    alice, bob = house.client("alice"), house.client("bob")
    takes(alice, write())
    takes(bob, write(), ino=8)
    for _ in range(INSISTS_COUNT + 1):
        assert refused(bob, write()).holder == "alice@there"
    assert house.range_queue(7) == []


def test_who_is_next_and_has_no_room_is_passed_over(
    house: LockRealm, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, carol = house.client("alice"), house.client("bob"), house.client("carol")
    takes(bob, write(), ino=8)
    takes(alice, write())
    first, second = house.waits_for_range(bob, 7, write()), house.waits_for_range(carol, 7, write())
    monkeypatch.setattr("servers.lock.range_rules.RANGES_MAX", 0)
    alice.free_range(7, write())
    assert not granted(first)
    assert not granted(second)
    monkeypatch.undo()
    takes(carol, write())


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


def test_an_admin_breaks_all_ranges_of_an_inode(house: LockRealm) -> None:
    alice, bob, root = house.client("alice"), house.client("bob"), house.client("root", admin=True)
    takes(alice, write(0, 9))
    takes(alice, write(20, 29, owner=2))
    takes(alice, write(), ino=8)
    waiting = house.waits_for_range(bob, 7, write())
    root.break_lock(7)
    assert granted(waiting)
    assert alice.renew().ranged == [8]
    bob.free_range(7, write())
    with pytest.raises(OSError, match="nobody holds") as caught:
        root.break_lock(7)
    assert caught.value.errno == errno.ENOENT


def test_a_range_that_ends_before_it_begins_is_refused(house: LockRealm) -> None:
    class Ask(msgspec.Struct):
        ino: int
        range: tuple[bool, int, int, int, bool, int]

    channel = Channel(house.wire, URL, Role.LOCK, house.keyring("alice"))
    with pytest.raises(BadMessage, match="ends before it begins"):
        channel.call("POST", "/v1/locks/ranges/ask", Ask(7, (False, 1, 9, 8, True, 100)), RangeAnswer)
