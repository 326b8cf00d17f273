"""The lock server against a model of a few lines, in any order of what sessions, time and restarts do."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.lock import LEASE, PLACE, LockRealm
from wire.messages.lock import Held

SESSIONS = ("alice", "bob", "carol")
INOS = (1, 2)

sessions = st.sampled_from(SESSIONS)
some_inos = st.lists(st.sampled_from(INOS), min_size=1, max_size=3)


@dataclass
class Lease:
    """A lock of the model."""

    session: str
    token: int
    expires: float


class LockMachine(RuleBasedStateMachine):
    """No request is held back here (there is room for none), so that each step has one possible outcome:
    a waiter gets the lock when it asks and is the head of the queue of a free lock."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.house = LockRealm(Path(self.folder.name), waiting_requests_max=0)
        self.clients = {name: self.house.client(name) for name in SESSIONS}
        self.locks: dict[int, Lease] = {}
        self.queues: dict[int, dict[str, float]] = {ino: {} for ino in INOS}
        self.last_token = 0

    def teardown(self) -> None:
        self.house.close()
        self.folder.cleanup()

    @rule(name=sessions, inos=some_inos, wait=st.booleans())
    def acquire(self, name: str, inos: list[int], wait: bool) -> None:
        """Each inode for itself: mine, mine now, or somebody else's."""
        answers = self.clients[name].acquire(inos, 1.0 if wait else 0.0).answers
        assert [answer.ino for answer in answers] == inos
        for ino, answer in {answer.ino: answer for answer in answers}.items():
            lock, queue = self.locks.get(ino), self.queues[ino]
            if lock is None and next(iter(queue), name) == name:
                assert answer.token > self.last_token
                queue.pop(name, None)
                lock = self.locks[ino] = Lease(name, answer.token, 0.0)
            if lock is not None and lock.session == name:
                assert answer.token == lock.token
                assert answer.grant
                lock.expires = self.now + LEASE
                continue
            assert not answer.token
            assert answer.holder == f"{lock.session if lock else next(iter(queue))}@there"
            if wait or name in queue:
                queue[name] = self.now
        self.last_token = max([self.last_token, *(answer.token for answer in answers)])

    @rule(name=sessions, inos=some_inos, right=st.booleans())
    def release(self, name: str, inos: list[int], right: bool) -> None:
        """Only the holder's own word ends a lock, and only under its token."""
        held = [Held(ino, self.locks[ino].token + (not right)) for ino in inos if ino in self.locks]
        self.clients[name].release(held)
        for ino in inos:
            if right and ino in self.locks and self.locks[ino].session == name:
                del self.locks[ino]

    @rule(name=sessions, inos=some_inos)
    def leave(self, name: str, inos: list[int]) -> None:
        """Out of these queues."""
        self.clients[name].release([], leave=inos)
        for ino in inos:
            self.queues[ino].pop(name, None)

    @rule(name=sessions)
    def renew(self, name: str) -> None:
        """Exactly the session's own locks go on."""
        renewed = self.clients[name].renew()
        mine = {ino: lock for ino, lock in sorted(self.locks.items()) if lock.session == name}
        assert renewed.held == [Held(ino, lock.token) for ino, lock in mine.items()]
        assert renewed.wanted == [ino for ino in mine if self.queues[ino]]
        for lock in mine.values():
            lock.expires = self.now + LEASE

    @rule(seconds=st.sampled_from([1.0, PLACE, LEASE - 1, LEASE]), alarm=st.booleans())
    def pass_time(self, seconds: float, alarm: bool) -> None:
        """What is over ends when the alarm rings, not before."""
        self.house.clock.now += seconds
        if not alarm:
            return
        self.house.server.service.expire()
        self.locks = {ino: lock for ino, lock in self.locks.items() if lock.expires > self.now}
        for ino, queue in self.queues.items():
            self.queues[ino] = {name: asked for name, asked in queue.items() if asked + PLACE > self.now}

    @rule()
    def restart(self) -> None:
        """Everything is there, and has its full time again."""
        self.house.restart()
        for lock in self.locks.values():
            lock.expires = self.now + LEASE
        for queue in self.queues.values():
            queue.update(dict.fromkeys(queue, self.now))

    @invariant()
    def people_see_the_same(self) -> None:
        """One holder an inode, and the queue in the order in which they asked first."""
        seen = self.house.server.service.locks().locks
        assert [(lock.ino, lock.user, lock.token) for lock in seen] == [
            (ino, lock.session, lock.token) for ino, lock in sorted(self.locks.items())
        ]
        for lock in seen:
            assert [waiter.user for waiter in lock.queue] == list(self.queues[lock.ino])

    @property
    def now(self) -> float:
        """The standing clock."""
        return self.house.clock.now


TestLockModel = LockMachine.TestCase
TestLockModel.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
