"""Who waits for ranges of programs, in which order, and for whom.

First come, first served, between sessions: nobody gets what an earlier place of another one is in conflict
with. Except if who is in that place waits, directly or through others, for the very one who asks: then all
would wait for ever. A circle that is closed by held ranges alone cannot be opened like that; who would close
it is told EDEADLK.

Among the programs of one session all is as on a local disk: what is freed goes to who came first, but who
waits is in nobody's way.

Nobody waits for longer than ``order_seconds`` only because of who came before him. For there are circles that
cannot be seen here: a program that has a shared lock starts another one, and waits until that has one too. So
those who come and go cannot keep away who came before them, unless they have what they have for that long.

Who may not wait asks again and again (SQLite does, for one), and each time another machine's program may just
have been faster. Who has insisted for some time has a place too, for as long as he goes on asking.

All of this is in memory: after a restart the clients ask again. It is changed inside database transactions
only, one at a time. After a rollback it may be ahead of the database: somebody has lost a place, and asks
again.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from servers.lock.ranges import Claim, Owner, conflict_of, covers, in_conflict, of_owner

INSISTS_COUNT = 5
"""So many refusals of one claim without a pause are insistence."""

PAUSE_SECONDS = 2.0
"""Who lets so much time go by between two requests begins to count anew."""

INSISTENT_SECONDS = 1.5
"""How long who insists, and does not wait, has a place after he has asked: enough for who sleeps a second in
between, and when he gives up, nobody is kept away for long."""

REFUSED_MAX = 10_000
"""Claims of which it is remembered that they were refused."""

Held = Callable[[int], Sequence[Claim]]
"""The ranges that anybody has of an inode."""


@dataclass(eq=False)
class Place:
    """Somebody who waits for ``claim`` of ``ino``. ``since`` and ``asked_at`` in seconds since the epoch."""

    number: int
    ino: int
    claim: Claim
    user: str
    client: str
    since: float
    asked_at: float
    silent_seconds: float
    """How long the place is kept without being asked for."""
    insists: bool = False
    """It is of somebody who does not wait."""

    @property
    def ends_at(self) -> float:
        """When it ends if nobody asks for it, in seconds since the epoch."""
        return self.asked_at + self.silent_seconds

    @property
    def session(self) -> int:
        """Who waits."""
        return self.claim.session

    @property
    def key(self) -> tuple[int, Claim]:
        """What is asked for: who asks for the same again has the same place."""
        return self.ino, self.claim


class RangeQueue:
    """The places of all inodes. Reading is thread-safe."""

    def __init__(self, clock: Callable[[], float], place_seconds: float, order_seconds: float) -> None:
        self._clock = clock
        self._place_seconds = place_seconds
        self._order_seconds = order_seconds
        self._refused: dict[tuple[int, Claim], tuple[int, float]] = {}
        self._numbers = itertools.count(1)
        self._guard = threading.Lock()
        self._places: dict[tuple[int, Claim], Place] = {}

    def places(self) -> list[Place]:
        """All, the earliest first."""
        with self._guard:
            return list(self._places.values())

    def of_inode(self, ino: int) -> list[Place]:
        """Those who wait for ranges of ``ino``, the earliest first."""
        return [place for place in self.places() if place.ino == ino]

    def count_of(self, user: str) -> int:
        """How many places the sessions of ``user`` have."""
        return sum(place.user == user for place in self.places())

    def find(self, ino: int, claim: Claim) -> Place | None:
        """The place of who waits for this already."""
        with self._guard:
            return self._places.get((ino, claim))

    def draft(self, ino: int, claim: Claim, user: str, client: str) -> Place:
        """A place behind all others, not yet taken."""
        now = self._clock()
        return Place(next(self._numbers), ino, claim, user, client, now, now, self._place_seconds)

    def join(self, place: Place) -> None:
        """Takes it."""
        with self._guard:
            self._places[place.key] = place

    def insists(self, place: Place) -> bool:
        """To be called at each refusal of who does not wait: whether he shall have this place all the same,
        which then is one of those that end soon."""
        now = self._clock()
        count, asked_at = self._refused.get(place.key, (0, now))
        count = count + 1 if now - asked_at < PAUSE_SECONDS else 1
        if len(self._refused) >= REFUSED_MAX:
            self._refused.clear()
        self._refused[place.key] = count, now
        if count < INSISTS_COUNT:
            return False
        place.insists, place.silent_seconds = True, INSISTENT_SECONDS
        return True

    def has(self, place: Place) -> bool:
        """Whether it is taken."""
        return self.find(*place.key) is place

    def leave(self, place: Place) -> None:
        """Gives it up, if it was taken."""
        self._refused.pop(place.key, None)
        with self._guard:
            self._places.pop(place.key, None)

    def obstacle(self, place: Place, near: Sequence[Claim], held: Held) -> Claim | Place | None:
        """What stands between ``place`` and its claim: a range, somebody in front, or nothing. ``near`` are
        at least the ranges of its inode that may be in conflict, or are the asker's own."""
        owner = place.claim.owner
        if covers(of_owner(near, owner), place.claim.range):
            return None
        if conflict := conflict_of(near, place.claim):
            return conflict
        if self.passes_at(place) <= self._clock():
            return None
        in_front = (earlier for earlier in self._in_front(place) if not self._waits_for(earlier, owner, held))
        return next(in_front, None)

    def passes_at(self, place: Place) -> float:
        """From when on the order does not count for ``place``."""
        return place.since + self._order_seconds

    def is_circle(self, place: Place, held: Held) -> bool:
        """Whether who takes ``place`` would wait for himself, because of what he and others have."""
        return self._waits_for(place, place.claim.owner, held, by_order=False)

    def _in_front(self, place: Place) -> Iterator[Place]:
        for other in self.of_inode(place.ino):
            is_elsewhere = other.number < place.number and other.session != place.session
            if is_elsewhere and in_conflict(other.claim, place.claim):
                yield other

    def _waits_for(self, place: Place, goal: Owner, held: Held, by_order: bool = True) -> bool:
        """Whether ``place`` waits for ``goal``, directly or through others; ``by_order``: also because of who
        came first, not only of what is held, and also through those who insist, and so do not wait."""
        seen, todo = {place}, [place]
        while todo:
            waiting = todo.pop()
            owners = {claim.owner for claim in held(waiting.ino) if in_conflict(claim, waiting.claim)}
            if by_order:
                owners.update(earlier.claim.owner for earlier in self._in_front(waiting))
            if goal in owners:
                return True
            found = {other for other in self.places() if other.claim.owner in owners}
            next_ones = {other for other in found - seen if by_order or not other.insists}
            seen |= next_ones
            todo.extend(next_ones)
        return False
