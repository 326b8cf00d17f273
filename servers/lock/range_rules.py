"""The rules of the ranges that programs lock: who gets one, who waits, who is passed over, and when all ends.

What every transaction leaves behind: of those whose request is held back, nobody waits for what he could
have (``_pass_on``). Who is between two requests keeps his place for ``place_seconds``, and then loses it.
Leases and places end in ``end_old`` only, as those of the write locks do.
"""

import errno
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial

from servers.lock.config import LockConfig
from servers.lock.range_queue import Place, RangeQueue
from servers.lock.range_store import RangeStore
from servers.lock.ranges import (
    Claim,
    Stock,
    conflict_of,
    covers,
    in_normal_form,
    of_owner,
)
from servers.lock.rules import Turn, Who
from wire.errors import fail
from wire.limits import RANGES_MAX
from wire.messages.lock import AskRange, LeaveRange, Range, RangeAnswer, Restate, Restated, SetRange
from wire.ranges import with_range, without

log = logging.getLogger(__name__)


class RangeRules:
    """What may be done in a transaction. ``asks`` says whether a place's request is held back right now;
    ``need_room`` raises ENOLCK if a user would have too much."""

    def __init__(
        self,
        config: LockConfig,
        store: RangeStore,
        queue: RangeQueue,
        asks: Callable[[Place], bool],
        need_room: Callable[[Turn, str, int], None],
    ) -> None:
        self._config = config
        self._store = store
        self._queue = queue
        self._asks = asks
        self._need_room = need_room

    def set(self, turn: Turn, who: Who, message: SetRange) -> RangeAnswer:
        """Gives ``who`` the range, or says what stands against it; with ``wait_seconds`` he has a place in
        the queue then. Raises EDEADLK and ENOLCK."""
        ino, claim = message.ino, Claim(who.session, message.range)
        place = self._place(who, ino, claim)
        self._give_up_other_kind(turn, who, ino, claim)
        near = self._near(turn, ino, claim)
        obstacle = self._queue.obstacle(place, near, self._held(turn))
        if obstacle is None:
            self._grant(turn, place, near)
        else:
            self._keep_place(turn, place, waits=message.wait_seconds > 0)
        self._pass_on(turn, self._queue.of_inode(ino))
        return self._granted() if obstacle is None else self._answer(turn, who.session, obstacle)

    def free(self, turn: Turn, who: Who, message: SetRange) -> RangeAnswer:
        """Takes these bytes from the owner. Raises ENOLCK if that would make too many of what is left."""
        claim = Claim(who.session, message.range)
        mine = of_owner(self._store.near(turn.connection, message.ino, claim), claim.owner)
        self._change(turn, who, message.ino, mine, without(mine, message.range))
        self._pass_on(turn, self._queue.of_inode(message.ino))
        return self._granted()

    def collect(self, turn: Turn, who: Who, message: SetRange) -> RangeAnswer:
        """What has come of a request that was held back. Takes nothing: somebody who has left the queue, and
        perhaps gone away, must not get anything afterwards."""
        claim = Claim(who.session, message.range)
        place = self._place(who, message.ino, claim)
        near = self._near(turn, message.ino, claim)
        if covers(of_owner(near, claim.owner), claim.range):
            return self._granted()
        if self._queue.find(message.ino, claim):
            self._touch(turn, place)
        obstacle = self._queue.obstacle(place, near, self._held(turn))
        return self._answer(turn, who.session, obstacle or place)

    def leave(self, turn: Turn, session: int, message: LeaveRange) -> None:
        """The owner waits for nothing more of the inode."""
        for place in self._queue.of_inode(message.ino):
            owner = place.claim.owner
            if (owner.session, owner.is_flock, owner.number) == (session, message.is_flock, message.owner):
                self._end(turn, place)
        self._pass_on(turn, self._queue.of_inode(message.ino))

    def ask(self, turn: Turn, session: int, message: AskRange) -> RangeAnswer:
        """Which held range stands against this one. Changes nothing."""
        claim = Claim(session, message.range)
        conflict = conflict_of(self._store.near(turn.connection, message.ino, claim), claim)
        return self._granted() if conflict is None else self._answer(turn, session, conflict)

    def restate(self, turn: Turn, who: Who, message: Restate) -> Restated:
        """Makes ``ranges`` all that the session has of the inode, as far as it has them or nothing is in
        conflict with them. Raises ENOLCK, and BadMessage if ranges of one owner overlap."""
        session, held = who.session, self._store.of_inode(turn.connection, message.ino)
        others = Stock(claim for claim in held if claim.session != session)
        own = Stock(claim for claim in held if claim.session == session)
        lost = [
            range
            for range in message.ranges
            if not own.covers(Claim(session, range)) and others.is_against(Claim(session, range))
        ]
        kept = in_normal_form(set(message.ranges).difference(lost))
        self._change(turn, who, message.ino, [claim.range for claim in own.claims], kept)
        if kept:
            self._prolong(turn, who)
        self._pass_on(turn, self._queue.of_inode(message.ino))
        return Restated(lost, self._config.lease_seconds)

    def renew(self, turn: Turn, session: int) -> list[int]:
        """One more lease for all ranges of the session; returns the inodes of which it has any."""
        if not self._store.extend(turn.connection, session, self._lease_end()):
            return []
        return self._store.inos_of(turn.connection, session)

    def break_all(self, turn: Turn, ino: int) -> bool:
        """Ends all ranges of the inode. Returns whether there were any."""
        there_were = self._store.remove_all(turn.connection, ino)
        self._pass_on(turn, self._queue.of_inode(ino))
        return there_were

    def end_old(self, turn: Turn) -> None:
        """Ends the leases and places whose time is over; the turn is due when the next one's is."""
        now = self._config.clock()
        if ended := self._store.remove_expired(turn.connection, now):
            log.info("the leases of %d ranges have ended", ended)
        for place in self._queue.places():
            if (passes_at := self._queue.passes_at(place)) > now:
                turn.ends(passes_at)
            if place.ends_at > now:
                turn.ends(place.ends_at)
            elif not self._asks(place):
                self._end(turn, place)
        self._pass_on(turn, self._queue.places())
        expiry = self._store.next_expiry(turn.connection)
        if expiry is not None:
            turn.ends(expiry)

    def _held(self, turn: Turn) -> Callable[[int], list[Claim]]:
        """The ranges of an inode, each read once: for as long as nothing changes."""
        return cache(partial(self._store.of_inode, turn.connection))

    def _near(self, turn: Turn, ino: int, claim: Claim) -> list[Claim]:
        return self._store.near(turn.connection, ino, claim)

    def _place(self, who: Who, ino: int, claim: Claim) -> Place:
        """Where ``who`` waits for it already, or would."""
        draft = self._queue.draft(ino, claim, who.user, who.client)
        return self._queue.find(ino, claim) or draft

    def _give_up_other_kind(self, turn: Turn, who: Who, ino: int, claim: Claim) -> None:
        """flock(2): "the existing lock is first removed, and then a new lock is established", so that two who
        both want to change from shared to exclusive do not wait for each other for ever."""
        if not claim.range.is_flock:
            return
        mine = of_owner(self._near(turn, ino, claim), claim.owner)
        if mine and not covers(mine, claim.range):
            self._change(turn, who, ino, mine, without(mine, claim.range))

    def _grant(self, turn: Turn, place: Place, near: Sequence[Claim]) -> None:
        """The owner has it now, and waits for it no more."""
        mine = of_owner(near, place.claim.owner)
        self._change(turn, place, place.ino, mine, with_range(mine, place.claim.range))
        self._prolong(turn, place)
        self._end(turn, place)

    def _pass_on(self, turn: Turn, places: Sequence[Place]) -> None:
        """Gives everybody in ``places`` whose request is held back what he waits for, as far as nothing
        stands against it any more."""
        held, waiting = self._held(turn), list(places)
        while waiting:
            place = waiting.pop(0)
            if not self._asks(place):
                continue
            near = self._near(turn, place.ino, place.claim)
            if self._queue.obstacle(place, near, held) is None:
                self._pass_to(turn, place, near)
                held = self._held(turn)
                waiting = [other for other in places if self._queue.has(other)]

    def _pass_to(self, turn: Turn, place: Place, near: Sequence[Claim]) -> None:
        """As ``_grant``, in a transaction that is somebody else's."""
        try:
            self._grant(turn, place, near)
        except OSError:  # it has become too much for him: he is told so when he asks again
            self._end(turn, place)

    def _change(self, turn: Turn, who: Who, ino: int, old: Sequence[Range], new: Sequence[Range]) -> None:
        """The session's ranges ``old`` become ``new``, if there is room for them."""
        before, after = set(old), set(new)
        removed, added = before - after, after - before
        more = len(added) - len(removed)
        if more > 0:
            self._need_room(turn, who.user, more)
            if self._store.count(turn.connection, ino, who.session) + more > RANGES_MAX:
                raise fail(errno.ENOLCK, f"a session has at most {RANGES_MAX} ranges of an inode")
        self._store.change(turn.connection, ino, who.session, removed, added, self._config.clock())

    def _prolong(self, turn: Turn, who: Who) -> None:
        expires = self._lease_end()
        if not self._store.extend(turn.connection, who.session, expires):
            self._store.begin(turn.connection, who.session, who.user, who.client, expires)
        turn.ends(expires)

    def _keep_place(self, turn: Turn, place: Place, *, waits: bool) -> None:
        """Who is refused and waits, or insists, has the place from now on, or still. Raises EDEADLK and
        ENOLCK if he waits."""
        if waits and (place.insists or not self._queue.has(place)):
            place.insists, place.silent_seconds = False, self._config.place_seconds
            self._join(turn, place)
        elif self._queue.has(place):
            self._touch(turn, place)
        elif self._queue.insists(place):
            with suppress(OSError):  # he is refused, with a place or without
                self._join(turn, place)

    def _join(self, turn: Turn, place: Place) -> None:
        """Takes the place. Raises EDEADLK if the owner would wait for himself, ENOLCK."""
        if not place.claim.range.is_flock and self._queue.is_circle(place, self._held(turn)):
            raise fail(errno.EDEADLK)
        self._need_room(turn, place.user, 1 + self._queue.count_of(place.user))
        self._queue.join(place)
        turn.ends(self._queue.passes_at(place))
        self._touch(turn, place)
        # Somebody elsewhere may now be waited for by who is in front of him, and so pass.
        self._pass_on(turn, self._queue.places())

    def _touch(self, turn: Turn, place: Place) -> None:
        """He has asked just now."""
        place.asked_at = self._config.clock()
        turn.ends(place.ends_at)

    def _end(self, turn: Turn, place: Place) -> None:
        self._queue.leave(place)
        turn.settled.append(place.key)

    def _granted(self) -> RangeAnswer:
        """Granted, free to be, or freed."""
        return RangeAnswer(lease_seconds=self._config.lease_seconds)

    def _answer(self, turn: Turn, session: int, obstacle: Claim | Place) -> RangeAnswer:
        """Not granted, because of this."""
        if isinstance(obstacle, Place):
            claim, holder = obstacle.claim, f"{obstacle.user}@{obstacle.client}"
        else:
            claim, holder = obstacle, self._store.holder(turn.connection, obstacle.session)
        return RangeAnswer(claim.range, claim.session == session, holder, self._config.lease_seconds)

    def _lease_end(self) -> float:
        return self._config.clock() + self._config.lease_seconds
