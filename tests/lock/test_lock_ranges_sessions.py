"""For how long a session has its ranges, what it may say that it has, how many, and what ends them."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servers.lock.range_queue import INSISTS_COUNT
from servers.replies import Replies
from tests.support.lock import LEASE, PLACE, LockRealm
from tests.support.lock_ranges import flock, granted, read, refused, shown, takes, write
from wire.errors import BadMessage, fail
from wire.messages.lock import Renewed

# What keeps them, and what ends them


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
    house.restart(user_locks_max=3)
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
    house.restart(user_locks_max=1)
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
