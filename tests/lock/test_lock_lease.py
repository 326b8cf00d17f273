"""How long a lease is: the lock server says it, and who has something renews by what he was told."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from clients import lock_lease
from clients.lock import LockClient
from clients.lock_lease import RENEW_SECONDS_MIN, LockLease
from tests.support.inprocess import LossyWire
from tests.support.lock import LEASE, PATIENCE, LockRealm
from tests.support.lock_ranges import write
from wire.limits import LOCK_LEASE_SECONDS

SHORT, LONG = 2.0, 60.0

ANSWERED: dict[str, Callable[[LockClient], object]] = {
    "acquire": lambda client: client.acquire([7]),
    "renew": lambda client: client.renew(),
    "set_range": lambda client: client.set_range(7, write()),
    "restate_ranges": lambda client: client.restate_ranges(7, [write()]),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_whatever_begins_or_prolongs_a_lease_tells_how_long_it_is(house: LockRealm, name: str) -> None:
    house.restart(lease_seconds=SHORT)
    alice = house.client("alice")
    assert alice.lease.seconds == LOCK_LEASE_SECONDS
    ANSWERED[name](alice)
    assert alice.lease.seconds == SHORT
    house.restart(lease_seconds=LONG)
    bob = house.client("bob")
    ANSWERED[name](bob)
    assert bob.lease.seconds == LONG


@pytest.mark.parametrize("name", ["acquire", "set_range"])
def test_who_is_refused_or_waits_is_told_too(house: LockRealm, name: str) -> None:
    house.restart(lease_seconds=SHORT)
    alice, bob, carol = house.client("alice"), house.client("bob"), house.client("carol")
    ANSWERED[name](alice)
    ANSWERED[name](bob)
    waiting = house.waits(carol, 7) if name == "acquire" else house.waits_for_range(carol, 7, write())
    house.pass_time(SHORT)
    waiting.result(PATIENCE)
    assert bob.lease.seconds == carol.lease.seconds == SHORT


@pytest.mark.parametrize("seconds", [SHORT, LONG])
def test_a_lock_server_that_begins_with_another_lease_keeps_what_it_finds_until_it_is_renewed(
    house: LockRealm, seconds: float
) -> None:
    """Who has something renews as he was told by the one before."""
    alice = house.client("alice")
    alice.acquire([7])
    alice.set_range(8, write())
    house.restart(lease_seconds=seconds)
    house.pass_time(LEASE - 0.1)
    renewed = alice.renew()
    assert ([lock.ino for lock in renewed.held], renewed.ranged) == ([7], [8])
    assert alice.lease.seconds == seconds
    house.pass_time(seconds - 0.1)
    assert alice.renew().held == renewed.held
    house.pass_time(seconds)
    assert alice.renew().held == []


@pytest.mark.parametrize("name", ["renew", "set_range", "acquire"])
def test_who_has_not_heard_of_a_shorter_lease_loses_nothing_that_was_found_at_the_start(
    house: LockRealm, name: str
) -> None:
    """As if the answer were lost that tells it: the next renewal comes when that lease is over."""
    alice = house.client("alice")
    alice.acquire([7])
    alice.set_range(7, write())
    house.restart(lease_seconds=SHORT)
    ANSWERED[name](alice)
    house.pass_time(LEASE - 0.1)
    renewed = alice.renew()
    assert ([lock.ino for lock in renewed.held], renewed.ranged) == ([7], [7])


def test_a_lease_is_told_although_answers_are_lost(house: LockRealm) -> None:
    house.restart(lease_seconds=SHORT)
    alice = house.client("alice", LossyWire(house.wire, seed=1, loss=0.5))
    alice.acquire([7])
    house.restart(lease_seconds=LONG)
    alice.renew()
    assert alice.lease.seconds == LONG


@pytest.mark.parametrize(
    ("seconds", "pause"),
    [(3.0, 1.0), (LOCK_LEASE_SECONDS, 5.0), (LONG, 5.0), (0.0, RENEW_SECONDS_MIN)],
)
def test_a_renewal_is_due_three_times_in_a_lease(seconds: float, pause: float) -> None:
    lease = LockLease()
    lease.renewal_is_sent()
    lease.hear(seconds, from_renewal=True)
    assert lease.renew_seconds == pause
    sent_at = time.monotonic() - pause + 0.01
    assert lease.wait_until_due(sent_at)
    assert time.monotonic() - sent_at >= pause


def test_who_waits_for_the_time_of_a_renewal_hears_of_a_shorter_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lock_lease, "LOCK_LEASE_SECONDS", 1e6)  # so that nobody comes to its end here
    lease = LockLease()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(lease.wait_until_due, time.monotonic())
        lease.hear(2 * LONG)
        assert not waiting.done()
        lease.hear(SHORT / 10)
        try:
            assert waiting.result(PATIENCE)
        finally:
            lease.end()


def test_no_renewal_is_due_after_the_end() -> None:
    lease = LockLease()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(lease.wait_until_due, time.monotonic() + 1000)
        lease.end()
        assert not waiting.result(PATIENCE)
    assert not lease.wait_until_due(0.0)


def test_a_longer_lease_counts_only_from_a_renewal() -> None:
    """Another answer may be of the lock server that was there before."""
    lease = LockLease()
    lease.hear(SHORT)
    lease.hear(LONG)
    assert lease.seconds == SHORT
    lease.renewal_is_sent()
    lease.hear(LONG, from_renewal=True)
    assert lease.seconds == LONG


def test_a_renewal_that_is_answered_late_does_not_hide_a_shorter_lease() -> None:
    """It was carried out by the server of before, and the answer, which was lost, is given again. Meanwhile a
    lock was granted by the new one."""
    lease = LockLease()
    lease.renewal_is_sent()
    lease.hear(SHORT)
    lease.hear(LONG, from_renewal=True)
    assert lease.seconds == SHORT
    lease.renewal_is_sent()
    lease.hear(LONG, from_renewal=True)
    assert lease.seconds == LONG
