"""The lock server without its routes: transactions, waiting, and waking.

All changes run in the database's one writer, so none of them sees another half done. Those who wait are woken
after the commit and then look again: a wake that comes too early, twice or for nothing does no harm.
"""

import errno
import logging
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec
from sqlalchemy import Connection, MetaData

from servers.database import Database
from servers.lock.alarm import Alarm
from servers.lock.config import LockConfig
from servers.lock.listing import list_locks
from servers.lock.range_queue import RangeQueue
from servers.lock.range_rules import RangeRules
from servers.lock.range_store import RangeStore
from servers.lock.ranges import Claim
from servers.lock.rules import Rules, Turn
from servers.lock.store import Store
from servers.lock.waiting import HeldBack, Waiting
from servers.replies import Replies, settle
from wire.errors import fail
from wire.limits import LOCK_LEASE_SECONDS, TICKET_SECONDS
from wire.messages.common import Empty
from wire.messages.lock import (
    Acquire,
    Acquired,
    AskRange,
    Break,
    LeaveRange,
    Locks,
    RangeAnswer,
    Release,
    Renew,
    Renewed,
    Restate,
    Restated,
    SetRange,
)
from wire.tickets import Ticket

log = logging.getLogger(__name__)

T = TypeVar("T")
A = TypeVar("A", bound=msgspec.Struct)

CLOSE_SECONDS = 5.0
"""How long closing waits for the requests that were held back."""


class _MustWait(Exception):
    """Not everything can be granted now. ``Replies.once`` lets it through and remembers no reply."""


class Asked(NamedTuple):
    """A mutation, as its reply is remembered."""

    ticket: Ticket
    counter: int
    acked: int

    @property
    def name(self) -> tuple[int, int]:
        """Whoever sends it once more gives it the same."""
        return self.ticket.session, self.counter


class LockService:
    """The locks of one realm. What changes something is given the session's ticket and the request's
    counter, and returns the encoded reply; it raises Replayed if that reply was acknowledged."""

    def __init__(self, config: LockConfig) -> None:
        self._config = config
        metadata = MetaData()
        self._store = Store(metadata)
        self._replies = Replies(metadata, config.clock)
        self._waiting = Waiting(config.waiting_requests_max)
        self._range_store = RangeStore(metadata)
        self.range_queue = RangeQueue(config.clock, config.place_seconds, config.order_seconds)
        self._rules = Rules(
            config, self._store, self._range_store, lambda row: self._waiting.asks((row.session, row.ino))
        )
        self._ranges = RangeRules(
            config,
            self._range_store,
            self.range_queue,
            lambda place: self._waiting.asks(place.key),
            self._rules.need_room,
        )
        self._alarm = Alarm(config.clock, self.expire)
        self._forget_at = 0.0
        self._database = Database(config.database, metadata)
        self._database.write(self._begin_again)
        self._alarm.set(config.clock())

    def _begin_again(self, connection: Connection) -> None:
        """Every lock and range has a whole lease, so that holders can renew. They may have been told another
        one before, and renew by that until they hear of this one: however long it was, at least as often as
        LOCK_LEASE_SECONDS asks for (clients.lock_lease). So all is kept for so long, however short this one
        is."""
        now = self._config.clock()
        expires = now + max(self._config.lease_seconds, LOCK_LEASE_SECONDS)
        self._store.begin_again(connection, now, expires)
        self._range_store.begin_again(connection, expires)

    def start(self) -> None:
        """From now on leases and places end by themselves."""
        self._alarm.start()

    def close(self) -> None:
        """Answers those who wait, then closes the database."""
        self._alarm.close()
        self._waiting.close(CLOSE_SECONDS)
        self._database.close()

    def acquire(self, ticket: Ticket, counter: int, message: Acquire) -> bytes:
        """Acquired, at the latest after ``wait_seconds``."""

        def ask(turn: Turn, queue: bool) -> Acquired:
            look = self._rules.look(turn, ticket.session, message.inos)
            return self._rules.take(turn, ticket, look, queue)

        asked = Asked(ticket, counter, message.acked)
        keys = [(ticket.session, ino) for ino in message.inos]
        if message.wait_seconds > 0 and (request := self._waiting.enter(asked.name, keys)):
            return self._patiently(
                asked,
                request,
                message.wait_seconds,
                lambda turn: ask(turn, queue=True),
                lambda turn: ask(turn, queue=False),
                lambda answer: all(lock.token for lock in answer.answers),
            )
        return self._once(asked, lambda turn: ask(turn, queue=message.wait_seconds > 0))

    def release(self, ticket: Ticket, counter: int, message: Release) -> bytes:
        """Empty. When it returns, the next in the queues have the locks."""

        def run(turn: Turn) -> Empty:
            self._rules.leave(turn, ticket.session, message.leave)
            self._store.remove_held(turn.connection, ticket.session, message.locks)
            self._rules.pass_on(turn)
            return Empty()

        return self._once(Asked(ticket, counter, message.acked), run)

    def renew(self, ticket: Ticket, counter: int, message: Renew) -> bytes:
        """Renewed. A lease that is over but not ended yet goes on: nobody else had the lock since."""

        def run(turn: Turn) -> Renewed:
            lease_seconds = self._config.lease_seconds
            expires = self._config.clock() + lease_seconds
            held = self._store.extend_all(turn.connection, ticket.session, expires)
            wanted = self._store.wanted(turn.connection, ticket.session)
            shared = sorted(self._range_store.shared(turn.connection, wanted))
            ranged = self._ranges.renew(turn, ticket.session)
            return Renewed(held, wanted, shared, ranged, lease_seconds)

        return self._once(Asked(ticket, counter, message.acked), run)

    def set_range(self, ticket: Ticket, counter: int, message: SetRange) -> bytes:
        """RangeAnswer, at the latest after ``wait_seconds``. Raises EDEADLK and ENOLCK."""
        rules = self._ranges
        asked = Asked(ticket, counter, message.acked)
        if message.is_free:
            return self._once(asked, lambda turn: rules.free(turn, ticket, message))
        keys = [(message.ino, Claim(ticket.session, message.range))]
        if message.wait_seconds > 0 and (request := self._waiting.enter(asked.name, keys)):
            return self._patiently(
                asked,
                request,
                message.wait_seconds,
                lambda turn: rules.set(turn, ticket, message),
                lambda turn: rules.collect(turn, ticket, message),
                lambda answer: answer.conflict is None,
            )
        return self._once(asked, lambda turn: rules.set(turn, ticket, message))

    def leave_range(self, ticket: Ticket, counter: int, message: LeaveRange) -> bytes:
        """Empty. What was held back for the owner is answered."""

        def run(turn: Turn) -> Empty:
            self._ranges.leave(turn, ticket.session, message)
            return Empty()

        return self._once(Asked(ticket, counter, message.acked), run)

    def ask_range(self, ticket: Ticket, message: AskRange) -> RangeAnswer:
        """Which held range stands against it."""
        with self._database.read() as connection:
            return self._ranges.ask(Turn(connection), ticket.session, message)

    def restate_ranges(self, ticket: Ticket, counter: int, message: Restate) -> bytes:
        """Restated. Raises ENOLCK, and BadMessage if ranges of one owner overlap. What is held back of the
        session's other requests about the inode is nobody's any more: who sent it has given up, or has died,
        and would not know of a grant. Such a place is kept for who asks for it again."""

        def run(turn: Turn) -> Restated:
            places = self.range_queue.of_inode(message.ino)
            self._waiting.send_away(place.key for place in places if place.session == ticket.session)
            return self._ranges.restate(turn, ticket, message)

        return self._once(Asked(ticket, counter, message.acked), run)

    def break_lock(self, ticket: Ticket, counter: int, message: Break) -> bytes:
        """Empty. Raises EPERM for all but admins, ENOENT if nobody has the lock or a range."""

        def run(turn: Turn) -> Empty:
            if not ticket.admin:
                raise fail(errno.EPERM, "only an admin may break a lock")
            was_locked = self._store.remove_lock(turn.connection, message.ino)
            had_ranges = self._ranges.break_all(turn, message.ino)
            if not was_locked and not had_ranges:
                raise fail(errno.ENOENT, f"nobody holds the lock of inode {message.ino}")
            log.warning("%s broke the lock of inode %d", ticket.user, message.ino)
            self._rules.pass_on(turn)
            return Empty()

        return self._once(Asked(ticket, counter, message.acked), run)

    def locks(self) -> Locks:
        """Who has what, and who waits, as many as an answer may have."""
        with self._database.read() as connection:
            places, now = self.range_queue.places(), self._config.clock()
            return list_locks(connection, self._store, self._range_store, places, now)

    def expire(self) -> None:
        """Ends the leases and places whose time is over and wakes those who are next. The alarm calls it."""
        self._forget_old_replies()
        self._write(self._end_old)

    def _end_old(self, turn: Turn) -> None:
        self._rules.end_old(turn)
        self._ranges.end_old(turn)

    def _forget_old_replies(self) -> None:
        now = self._config.clock()
        if now >= self._forget_at:
            self._database.write(self._replies.forget_old)
            self._forget_at = now + TICKET_SECONDS

    def _patiently(
        self,
        asked: Asked,
        request: HeldBack,
        wait_seconds: float,
        ask: Callable[[Turn], A],
        collect: Callable[[Turn], A],
        is_all: Callable[[A], bool],
    ) -> bytes:
        """The reply of ``ask`` if that ``is_all`` that was wanted, else of ``collect`` when it is granted, or
        the time is over. The request is held back from before the first look: whoever lets go after that look
        finds it. It ceases to be in the transaction that makes its answer: what is let go later is not given
        to a session that was told that it has not got it."""

        def leave_and_collect(turn: Turn) -> A:
            self._waiting.leave(request)
            return collect(turn)

        try:
            reply = self._once_if(asked, ask, is_all)
            if reply is None:
                request.done.wait(wait_seconds)
                reply = self._once(asked, leave_and_collect)
            return reply
        finally:
            self._waiting.leave(request)
            # An alarm for its places may have rung in vain while it was held back.
            self._alarm.set(self._config.clock() + self._config.place_seconds)

    def _once_if(self, asked: Asked, run: Callable[[Turn], A], is_all: Callable[[A], bool]) -> bytes | None:
        """As ``_once``, or None if the answer is not all that was wanted: then what was granted and queued
        stays so, and no reply is remembered, because it is not known yet. If the server dies then, or the
        request is sent again meanwhile, it finds these grants and places."""

        def run_all(turn: Turn) -> A:
            answer = run(turn)
            if not is_all(answer):
                raise _MustWait
            return answer

        def change(turn: Turn) -> bytes | OSError | None:
            try:
                return self._remembered(turn, asked, run_all)
            except _MustWait:
                return None

        outcome = self._write(change)
        return None if outcome is None else settle(outcome)

    def _once(self, asked: Asked, run: Callable[[Turn], msgspec.Struct]) -> bytes:
        """The reply of ``run``, or the one that is remembered."""
        return settle(self._write(lambda turn: self._remembered(turn, asked, run)))

    def _remembered(self, turn: Turn, asked: Asked, run: Callable[[Turn], msgspec.Struct]) -> bytes | OSError:
        return self._replies.once(
            turn.connection, asked.ticket.session, asked.counter, asked.acked, lambda: run(turn)
        )

    def _write(self, change: Callable[[Turn], T]) -> T:
        """What ``change`` returns, when it is durable. Then those for whom it settled something are woken,
        and the alarm is set for the leases and places that it began."""
        turns: list[Turn] = []

        def run(connection: Connection) -> T:
            turns.append(Turn(connection))
            return change(turns[0])

        try:
            return self._database.write(run)
        finally:  # also if it failed: those whose places it took look again, and ask anew
            for turn in turns:
                self._waiting.settle(turn.settled)
                self._alarm.set(turn.due)
