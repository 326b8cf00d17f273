"""The write locks: one holder, first come first served, leases, rising tokens, whatever is lost or ends."""

import errno
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from clients.lock import LockClient
from clients.session import Channel
from servers.database import sqlite_url
from servers.keys import new_realm_keys
from servers.lock.app import make_server
from servers.lock.config import LockConfig
from tests.support.inprocess import InProcessWire, LossyWire, make_keyring
from tests.support.lock import LEASE, PATIENCE, PLACE, URL, WAIT, LockRealm
from tests.support.times import wait_until
from wire.errors import Replayed
from wire.messages.common import Empty
from wire.messages.lock import Acquire, Acquired, Held, Release
from wire.tickets import Grant, Role, open_grant


def take(client: LockClient, ino: int = 7, wait_seconds: float = 0.0) -> Held:
    """The lock, which is granted."""
    (answer,) = client.acquire([ino], wait_seconds).answers
    assert answer.token, answer
    return Held(answer.ino, answer.token)


def refused(client: LockClient, ino: int = 7, wait_seconds: float = 0.0) -> str:
    """Who has the lock."""
    (answer,) = client.acquire([ino], wait_seconds).answers
    assert not answer.token
    assert not answer.grant
    return answer.holder


def token(future: "Future[Acquired]") -> int:
    """What a waiting request was granted."""
    return future.result(PATIENCE).answers[0].token


def test_a_free_lock_is_granted_with_a_word_for_the_directory(house: LockRealm) -> None:
    keyring = house.keyring("alice")
    alice = LockClient(Channel(house.wire, URL, Role.LOCK, keyring))
    acquired = alice.acquire([9, 7, 9])
    assert [answer.ino for answer in acquired.answers] == [9, 7, 9]
    first, second, again = acquired.answers
    assert first.token < second.token
    assert again.token == first.token
    grant = open_grant(house.keys.grant, second.grant)
    assert grant == Grant(7, second.token, keyring.session.session)


def test_tokens_rise_and_asking_again_gives_the_same(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    first = take(alice)
    assert take(alice) == first
    assert refused(bob) == "alice@there"
    alice.release([first])
    second = take(bob)
    assert second.token > first.token
    bob.release([second])
    assert take(alice).token > second.token


def test_without_waiting_nobody_is_queued(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    held = take(alice)
    assert refused(bob) == "alice@there"
    assert house.queue(7) == []
    alice.release([held])
    assert house.lock(7) is None


def test_what_is_not_held_under_the_token_is_passed_over(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    held = take(alice)
    alice.release([Held(7, held.token + 1), Held(8, held.token)])
    bob.release([held])
    assert refused(bob) == "alice@there"


def test_waiters_get_it_in_the_order_in_which_they_asked(house: LockRealm) -> None:
    names = ["alice", "bob", "carol", "dave"]
    clients = [house.client(name) for name in names]
    held = take(clients[0])
    waiting = [house.waits(client, 7) for client in clients[1:]]
    assert house.queue(7) == names[1:]
    assert refused(house.client("eve")) == "alice@there"
    for position, future in enumerate(waiting):
        assert not any(later.done() for later in waiting[position:])
        clients[position].release([held])
        previous, held = held, Held(7, token(future))
        assert held.token > previous.token


def test_a_wait_ends_with_its_time_and_keeps_the_place(house: LockRealm) -> None:
    alice, bob, carol = house.client("alice"), house.client("bob"), house.client("carol")
    held = take(alice)
    assert refused(bob, wait_seconds=0.01) == "alice@there"
    assert refused(carol, wait_seconds=0.01) == "alice@there"
    assert refused(bob, wait_seconds=0.01) == "alice@there"
    assert house.queue(7) == ["bob", "carol"]
    alice.release([held])
    assert refused(carol) == "bob@there", "reserved for bob, who may ask again"
    assert refused(alice) == "bob@there"
    assert take(bob).token > held.token


def test_what_is_free_is_granted_while_the_rest_is_waited_for(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    held = take(alice)
    both = house.waits(bob, 6, 7)
    early = house.lock(6)
    assert early is not None
    assert early.user == "bob"
    assert not both.done()
    alice.release([held])
    six, seven = both.result(PATIENCE).answers
    assert six.token == early.token
    assert seven.token > held.token


def test_one_who_leaves_the_queue_is_answered_and_skipped(house: LockRealm) -> None:
    alice, bob, carol = house.client("alice"), house.client("bob"), house.client("carol")
    held = take(alice)
    leaving, staying = house.waits(bob, 7), house.waits(carol, 7)
    bob.release([], leave=[7])
    assert token(leaving) == 0
    alice.release([held])
    assert token(staying) > held.token


def test_a_head_that_leaves_lets_the_next_one_in(house: LockRealm) -> None:
    alice, bob, carol = house.client("alice"), house.client("bob"), house.client("carol")
    held = take(alice)
    refused(bob, wait_seconds=0.01)
    waiting = house.waits(carol, 7)
    alice.release([held])
    assert not waiting.done()
    bob.release([], leave=[7])
    assert token(waiting) > held.token


def test_a_lease_that_ends_frees_the_lock_and_wakes_the_next(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    held = take(alice)
    waiting = house.waits(bob, 7)
    house.pass_time(LEASE - 1)
    assert refused(house.client("eve")) == "alice@there"
    house.pass_time(1)
    assert token(waiting) > held.token
    assert alice.renew().held == []
    assert refused(alice) == "bob@there"


def test_leases_end_by_themselves(tmp_path: Path) -> None:
    config = LockConfig(new_realm_keys()["lock"], sqlite_url(tmp_path / "lock.db"), lease_seconds=0.2)
    server = make_server(config)
    server.start()
    wire = InProcessWire()
    wire.apps[URL] = server.app
    alice, bob = (
        LockClient(Channel(wire, URL, Role.LOCK, make_keyring(config.keys.tickets))) for _ in range(2)
    )
    try:
        held = take(alice)
        began = time.monotonic()
        assert take(bob, wait_seconds=WAIT).token > held.token
        assert time.monotonic() - began < WAIT / 4
    finally:
        server.close()


def test_many_at_once_are_never_two(house: LockRealm) -> None:
    inside: list[str] = []
    tokens: list[int] = []

    def work(name: str) -> None:
        client = house.client(name)
        for _ in range(10):
            held = take(client, wait_seconds=WAIT)
            inside.append(name)
            tokens.append(held.token)
            assert inside == [name]
            inside.remove(name)
            client.release([held])

    with ThreadPoolExecutor(6) as threads:
        for future in [threads.submit(work, f"user{number}") for number in range(6)]:
            future.result()
    assert len(tokens) == 60
    assert tokens == sorted(set(tokens))


def test_a_waiter_that_does_not_come_back_is_skipped(house: LockRealm) -> None:
    alice, bob, carol = house.client("alice"), house.client("bob"), house.client("carol")
    held = take(alice)
    refused(bob, wait_seconds=0.01)
    waiting = house.waits(carol, 7)
    alice.release([held])
    house.pass_time(PLACE - 1)
    assert not waiting.done(), "bob may still come back"
    house.pass_time(1)
    assert token(waiting) > held.token
    assert refused(bob, wait_seconds=0.01) == "carol@there"


def test_a_request_that_is_held_back_keeps_its_place(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    held = take(alice)
    waiting = house.waits(bob, 7)
    for _ in range(4):
        house.pass_time(PLACE)
        assert alice.renew().wanted == [7]
    assert house.queue(7) == ["bob"]
    alice.release([held])
    assert token(waiting) > held.token


def test_renewing_keeps_all_locks_and_says_which_are_wanted(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    held = [take(alice, ino) for ino in (1, 2, 3)]
    refused(bob, 2, wait_seconds=0.01)
    for _ in range(3):
        house.pass_time(LEASE - 1)
        refused(bob, 2, wait_seconds=0.01)
        renewed = alice.renew()
        assert (renewed.held, renewed.wanted) == (held, [2])
    assert bob.renew().held == []


def test_a_lease_is_not_revived_when_it_was_ended(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    held = take(alice)
    house.clock.now += LEASE + 1
    assert alice.renew().held == [held], "nobody has looked, nobody has taken it"
    house.pass_time(LEASE)
    assert alice.renew().held == []
    assert take(bob).token > held.token
    assert alice.renew().held == []
    alice.release([held])
    assert refused(alice) == "bob@there"


def test_locks_queues_and_tokens_survive_a_restart(house: LockRealm) -> None:
    alice, bob, carol = house.client("alice"), house.client("bob"), house.client("carol")
    held = [take(alice, ino) for ino in (1, 2)]
    refused(bob, 2, wait_seconds=0.01)
    refused(carol, 2, wait_seconds=0.01)
    house.clock.now += LEASE + 60
    house.restart()
    assert house.queue(2) == ["bob", "carol"]
    house.pass_time(PLACE - 1)
    assert house.queue(2) == ["bob", "carol"], "a full time to come back"
    assert refused(bob, 2, wait_seconds=0.01) == "alice@there"
    house.pass_time(LEASE - PLACE)
    assert alice.renew().held == held, "a full lease to renew"
    alice.release(held)
    house.restart()
    assert take(bob, 1).token > held[-1].token


def test_those_who_wait_are_answered_when_the_server_stops(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    held = take(alice)
    waiting = house.waits(bob, 7)
    house.restart()
    assert waiting.result(PATIENCE).answers[0].holder == "alice@there"
    alice.release([held])
    assert take(bob).token > held.token


def test_a_batch_of_fresh_inodes(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    answers = alice.acquire(range(100, 164)).answers
    tokens = [answer.token for answer in answers]
    assert tokens == sorted(set(tokens))
    assert len(alice.renew().held) == 64
    assert {answer.holder for answer in bob.acquire(range(100, 164)).answers} == {"alice@there"}
    alice.release([Held(answer.ino, answer.token) for answer in answers])
    assert all(answer.token > tokens[-1] for answer in bob.acquire(range(100, 164)).answers)


def test_a_full_house_answers_at_once_and_keeps_the_place(tmp_path: Path) -> None:
    house = LockRealm(tmp_path, waiting_requests_max=0)
    try:
        alice, bob = house.client("alice"), house.client("bob")
        held = take(alice)
        assert refused(bob, wait_seconds=WAIT) == "alice@there"
        assert house.queue(7) == ["bob"]
        alice.release([held])
        assert refused(alice) == "bob@there"
        assert take(bob, wait_seconds=WAIT).token > held.token
    finally:
        house.close()


@pytest.mark.parametrize("seed", range(3))
def test_lost_messages_neither_lose_nor_double_anything(house: LockRealm, seed: int) -> None:
    lossy = LossyWire(house.wire, seed=seed)
    alice, bob = house.client("alice", lossy), house.client("bob", lossy)
    tokens = []
    for ino in range(1, 5):
        held = take(alice, ino)
        waiting = house.waits(bob, ino)
        renewed = alice.renew()
        assert (renewed.held, renewed.wanted) == ([held], [ino])
        alice.release([held])
        tokens += [held.token, token(waiting)]
        assert len(bob.renew().held) == len(tokens) / 2
    assert tokens == sorted(set(tokens))
    assert alice.renew().held == []
    assert lossy.lost_requests
    assert lossy.lost_replies


def test_a_request_sent_twice_while_it_waits_is_one(house: LockRealm) -> None:
    alice = house.client("alice")
    keyring = house.keyring("bob")
    channel = Channel(house.wire, URL, Role.LOCK, keyring)
    request_id = f"{keyring.session.session:x}.1"

    def ask() -> Acquired:
        message = Acquire(1, [7], WAIT)
        return channel.call("POST", "/v1/locks/acquire", message, Acquired, request_id=request_id)

    held = take(alice)
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(ask), threads.submit(ask)]
        wait_until(lambda: house.queue(7) == ["bob"])
        house.pass_time(PLACE)
        assert house.queue(7) == ["bob"]
        alice.release([held])
    first, second = (future.result() for future in futures)
    assert first == second == ask()
    assert first.answers[0].token > held.token
    release = Release(2, [Held(7, first.answers[0].token)])
    channel.call("POST", "/v1/locks/release", release, Empty, request_id=f"{keyring.session.session:x}.2")
    with pytest.raises(Replayed):
        ask()
    assert house.lock(7) is None


def test_an_admin_breaks_a_lock_and_nobody_else(house: LockRealm) -> None:
    alice, bob, root = house.client("alice"), house.client("bob"), house.client("root", admin=True)
    held = take(alice)
    waiting = house.waits(bob, 7)
    with pytest.raises(OSError, match="admin") as caught:
        bob.break_lock(7)
    assert caught.value.errno == errno.EPERM
    root.break_lock(7)
    assert token(waiting) > held.token
    assert alice.renew().held == []
    with pytest.raises(OSError, match="nobody holds") as caught:
        root.break_lock(8)
    assert caught.value.errno == errno.ENOENT


def test_everybody_sees_holders_and_queues(house: LockRealm) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    held = take(alice)
    house.clock.now += 1
    refused(bob, wait_seconds=0.01)
    (lock,) = house.client("eve").locks().locks
    assert (lock.ino, lock.token, lock.user, lock.client) == (7, held.token, "alice", "there")
    assert (lock.since, lock.expires_in_seconds) == (house.clock.now - 1, LEASE - 1)
    assert [(waiter.user, waiter.client, waiter.since) for waiter in lock.queue] == [
        ("bob", "there", house.clock.now)
    ]


def test_one_user_cannot_lock_everything(house: LockRealm) -> None:
    house.restart(user_locks_max=4)
    alice, again, bob = house.client("alice"), house.client("alice"), house.client("bob")
    assert take(bob, 1).token
    assert [answer.token > 0 for answer in alice.acquire([2, 3]).answers] == [True, True]
    assert refused(again, 1, wait_seconds=0.001) == "bob@there"
    for ask in (alice, again):
        with pytest.raises(OSError, match="at most 4 locks") as caught:
            ask.acquire([4, 5])
        assert caught.value.errno == errno.ENOLCK
        with pytest.raises(OSError, match="at most 4 locks"):
            ask.acquire([4, 5], 0.001)
    assert take(alice, 4).token
    assert take(alice, 4).token, "what it has already is no more"
    assert take(bob, 5).token
    held = [Held(lock.ino, lock.token) for lock in alice.renew().held]
    alice.release(held[:1])
    assert take(again, 6).token


def test_a_list_that_is_too_long_is_cut(house: LockRealm, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob = house.client("alice"), house.client("bob")
    alice.acquire([1, 2, 3])
    bob.acquire([2, 3], 0.001)
    for most, shown, more in (
        (5, [(1, 0), (2, 1), (3, 1)], False),
        (4, [(1, 0), (2, 1), (3, 0)], True),
        (3, [(1, 0), (2, 1)], True),
        (2, [(1, 0), (2, 0)], True),
    ):
        monkeypatch.setattr("servers.lock.listing.LOCKS_LISTED_MAX", most)
        answer = alice.locks()
        assert [(lock.ino, len(lock.queue)) for lock in answer.locks] == shown
        assert answer.more == more
