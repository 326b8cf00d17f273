"""The ranges of programs against a model that knows only bytes, in any order of what sessions and time do."""

import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.lock import LEASE, ORDER, PLACE, LockRealm
from wire.errors import BadMessage
from wire.messages.lock import Range

SESSIONS = ("alice", "bob", "carol")
INOS = (1, 2)
BYTES = 6

Owner = tuple[str, bool, int]
"""Session, kind and number."""


@dataclass(eq=False)
class Wish:
    """A range that somebody wants; in the queue, a place."""

    session: str
    ino: int
    range: Range
    since: float
    asked: float

    @property
    def owner(self) -> Owner:
        return self.session, self.range.is_flock, self.range.owner

    def is_against(self, other: Owner, taken: dict[int, bool]) -> bool:
        """Whether it is in conflict with what another owner has: bytes, and which of them exclusively."""
        if other == self.owner or other[1] != self.range.is_flock:
            return False
        if other[0] != self.session and self.range.is_exclusive and any(taken.values()):
            return True
        return any(taken[byte] or self.range.is_exclusive for byte in bytes_of(self.range) if byte in taken)


def bytes_of(range_: Range) -> range:
    """Which it has."""
    return range(range_.first, range_.last + 1)


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    """Mostly of fcntl; a flock has all bytes."""
    owner, is_exclusive = draw(st.integers(1, 2)), draw(st.booleans())
    if draw(st.integers(0, 3)) == 0:
        return Range(True, owner, 0, BYTES - 1, is_exclusive, 100)
    first = draw(st.integers(0, BYTES - 1))
    return Range(False, owner, first, draw(st.integers(first, BYTES - 1)), is_exclusive, 100)


sessions = st.sampled_from(SESSIONS)
inos = st.sampled_from(INOS)


class RangeMachine(RuleBasedStateMachine):
    """No request is held back here (there is room for none), so that each step has one possible outcome:
    who waits gets a range when he asks and nothing stands against it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.house = LockRealm(Path(self.folder.name), waiting_requests_max=0)
        self.clients = {name: self.house.client(name) for name in SESSIONS}
        self.held: dict[int, defaultdict[Owner, dict[int, bool]]] = {ino: defaultdict(dict) for ino in INOS}
        self.queue: list[Wish] = []
        self.leases: dict[str, float] = {}

    def teardown(self) -> None:
        self.house.close()
        self.folder.cleanup()

    @rule(name=sessions, ino=inos, wanted=ranges(), wait=st.booleans())
    def put(self, name: str, ino: int, wanted: Range, wait: bool) -> None:
        """Granted, refused, queued, or a circle."""
        place = self.place(name, ino, wanted)
        wish = place or Wish(name, ino, wanted, self.now, self.now)
        mine = self.held[ino][wish.owner]
        if wanted.is_flock and not self.is_had(wish):
            mine.clear()
        is_granted = self.is_had(wish) or not (self.is_taken(wish) or self.is_behind(wish))
        if not is_granted and wait and not place and not wanted.is_flock and self.waits_for_himself(wish):
            with pytest.raises(OSError, match="deadlock"):
                self.clients[name].set_range(ino, wanted, 1.0)
            return
        answer = self.clients[name].set_range(ino, wanted, 1.0 if wait else 0.0)
        assert (answer.conflict is None) == is_granted
        if is_granted:
            mine.update(dict.fromkeys(bytes_of(wanted), wanted.is_exclusive))
            self.leases[name] = self.now + LEASE
            self.queue = [other for other in self.queue if other is not place]
        elif place or wait:
            wish.asked = self.now
            self.queue += [] if place else [wish]

    @rule(name=sessions, ino=inos, freed=ranges())
    def free(self, name: str, ino: int, freed: Range) -> None:
        """Only his own."""
        self.clients[name].free_range(ino, freed)
        mine = self.held[ino][name, freed.is_flock, freed.owner]
        for byte in bytes_of(freed):
            mine.pop(byte, None)

    @rule(name=sessions, ino=inos, of=ranges())
    def leave(self, name: str, ino: int, of: Range) -> None:
        """All of his places at the inode."""
        self.clients[name].leave_range(ino, of.is_flock, of.owner)
        owner = (name, of.is_flock, of.owner)
        self.queue = [wish for wish in self.queue if (wish.ino, wish.owner) != (ino, owner)]

    @rule(name=sessions, ino=inos, wanted=ranges())
    def ask(self, name: str, ino: int, wanted: Range) -> None:
        """What is held counts, not who waits."""
        answer = self.clients[name].ask_range(ino, wanted)
        assert (answer.conflict is not None) == self.is_taken(Wish(name, ino, wanted, 0, 0))

    @rule(name=sessions, ino=inos, stated=st.lists(ranges(), max_size=4))
    def restate(self, name: str, ino: int, stated: list[Range]) -> None:
        """That and nothing else is his, as far as he had it or nobody else has what is against it."""
        wishes = [Wish(name, ino, range_, 0, 0) for range_ in stated]
        lost = [
            wish.range for wish in wishes if not self.is_had(wish) and self.is_taken(wish, by_others=True)
        ]
        pieces = [
            (range_.is_flock, range_.owner, byte)
            for range_ in set(stated).difference(lost)
            for byte in bytes_of(range_)
        ]
        if len(set(pieces)) < len(pieces):
            with pytest.raises(BadMessage, match="overlap"):
                self.clients[name].restate_ranges(ino, stated)
            return
        assert self.clients[name].restate_ranges(ino, stated) == lost
        for owner in [owner for owner in self.held[ino] if owner[0] == name]:
            self.held[ino][owner] = {}
        for wish in wishes:
            if wish.range not in lost:
                had = dict.fromkeys(bytes_of(wish.range), wish.range.is_exclusive)
                self.held[ino][wish.owner].update(had)
                self.leases[name] = self.now + LEASE

    @rule(name=sessions)
    def renew(self, name: str) -> None:
        """Where he has any."""
        if name in self.leases:
            self.leases[name] = self.now + LEASE
        renewed = self.clients[name].renew()
        assert renewed.ranged == [
            ino for ino in INOS if any(taken and owner[0] == name for owner, taken in self.held[ino].items())
        ]

    @rule(seconds=st.sampled_from([1.0, PLACE, ORDER, LEASE - 1, LEASE]), alarm=st.booleans())
    def pass_time(self, seconds: float, alarm: bool) -> None:
        """What is over ends when the alarm rings, not before."""
        self.house.clock.now += seconds
        if not alarm:
            return
        self.house.server.service.expire()
        ended = {name for name, expires in self.leases.items() if expires <= self.now}
        self.leases = {name: expires for name, expires in self.leases.items() if name not in ended}
        for held in self.held.values():
            for owner in [owner for owner in held if owner[0] in ended]:
                del held[owner]
        self.queue = [wish for wish in self.queue if wish.asked + PLACE > self.now]

    @rule()
    def restart(self) -> None:
        """All that is held is there, with its full time; nobody is in a queue."""
        self.house.restart()
        self.leases = dict.fromkeys(self.leases, self.now + LEASE)
        self.queue = []

    @invariant()
    def people_see_the_same(self) -> None:
        """Who has which bytes, and who waits in which order."""
        seen: dict[tuple[int, Owner], dict[int, bool]] = defaultdict(dict)
        waits: list[tuple[int, str, Range]] = []
        for info in self.house.server.service.locks().ranges:
            if info.is_waiting:
                waits.append((info.ino, info.user, info.range))
                continue
            taken = seen[info.ino, (info.user, info.range.is_flock, info.range.owner)]
            assert not taken.keys() & set(bytes_of(info.range)), "no two of one owner overlap"
            taken.update(dict.fromkeys(bytes_of(info.range), info.range.is_exclusive))
        assert seen == {
            (ino, owner): taken for ino in INOS for owner, taken in self.held[ino].items() if taken
        }
        in_order = sorted(self.queue, key=lambda wish: wish.ino)
        assert waits == [(wish.ino, wish.session, wish.range) for wish in in_order]

    # What the model says

    @property
    def now(self) -> float:
        """The standing clock."""
        return self.house.clock.now

    def place(self, name: str, ino: int, wanted: Range) -> Wish | None:
        """His place in the queue."""
        asked = (name, ino, wanted)
        return next((wish for wish in self.queue if (wish.session, wish.ino, wish.range) == asked), None)

    def is_had(self, wish: Wish) -> bool:
        """Every byte, as strong or stronger."""
        mine = self.held[wish.ino][wish.owner]
        return all(mine.get(byte, -1) >= wish.range.is_exclusive for byte in bytes_of(wish.range))

    def is_taken(self, wish: Wish, by_others: bool = False) -> bool:
        """By what anybody has, or anybody of another session."""
        return any(
            wish.is_against(owner, taken)
            for owner, taken in self.held[wish.ino].items()
            if not by_others or owner[0] != wish.session
        )

    def in_front(self, wish: Wish) -> list[Wish]:
        """Earlier places of other sessions that are in conflict with it."""
        earlier = self.queue[: self.queue.index(wish)] if wish in self.queue else self.queue
        return [
            other
            for other in earlier
            if other.ino == wish.ino
            and other.session != wish.session
            and wish.is_against(other.owner, dict.fromkeys(bytes_of(other.range), other.range.is_exclusive))
        ]

    def is_behind(self, wish: Wish) -> bool:
        """Somebody is in front, who does not wait for this very owner."""
        if wish.since + ORDER <= self.now:
            return False
        return any(wish.owner not in self.awaited(other) for other in self.in_front(wish))

    def waits_for_himself(self, wish: Wish) -> bool:
        """Because of what is held."""
        return wish.owner in self.awaited(wish, by_order=False)

    def awaited(self, wish: Wish, by_order: bool = True) -> set[Owner]:
        """All for whom it waits, directly or through others."""
        found: set[Owner] = set()
        wishes = [wish]
        while wishes:
            new = {
                owner
                for each in wishes
                for owner, taken in self.held[each.ino].items()
                if each.is_against(owner, taken)
            }
            if by_order:
                new |= {other.owner for each in wishes for other in self.in_front(each)}
            new -= found
            found |= new
            wishes = [other for other in self.queue if other.owner in new]
        return found


TestRangeModel = RangeMachine.TestCase
TestRangeModel.settings = settings(
    max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
