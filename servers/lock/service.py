"""The lock server without its routes: transactions, waiting, and waking.

All changes run in the database's one writer, so none of them sees another half done. Those who wait are woken
after the commit and then look again: a wake that comes too early, twice or for nothing does no harm.
"""

import errno
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from sqlalchemy import Connection, MetaData

from servers.database import Database
from servers.lock.alarm import Alarm
from servers.lock.config import LockConfig
from servers.lock.rules import Look, Rules, Turn
from servers.lock.store import LockRow, Store, WaiterRow
from servers.lock.waiting import HeldBack, Waiting
from servers.replies import Replies, settle
from wire.errors import fail
from wire.limits import TICKET_SECONDS
from wire.messages.common import Empty
from wire.messages.lock import Acquire, Acquired, Break, LockInfo, Locks, Release, Renew, Renewed, Waiter
from wire.tickets import Ticket

log = logging.getLogger(__name__)

T = TypeVar("T")

LOCKS_LISTED_MAX = 6000
"""Locks and places in one answer; each has at most 700 bytes."""

CLOSE_SECONDS = 5.0
"""How long closing waits for the requests that were held back."""


class _MustWait(Exception):
    """Not everything can be granted now. ``Replies.once`` lets it through and remembers no reply."""

    def __init__(self, look: Look) -> None:
        super().__init__(f"{look.taken} are taken")
        self.look = look


class LockService:
    """The locks of one realm. What changes something is given the session's ticket and the request's
    counter, and returns the encoded reply; it raises Replayed if that reply was acknowledged."""

    def __init__(self, config: LockConfig) -> None:
        self._config = config
        metadata = MetaData()
        self._store = Store(metadata)
        self._replies = Replies(metadata, config.clock)
        self._waiting = Waiting(config.waiting_requests_max)
        self._rules = Rules(config, self._store, lambda row: self._waiting.asks(row.session, row.ino))
        self._alarm = Alarm(config.clock, self.expire)
        self._forget_at = 0.0
        self._database = Database(config.database, metadata)
        now = config.clock()
        self._database.write(
            lambda connection: self._store.begin_again(connection, now, now + config.lease_seconds)
        )
        self._alarm.set(now)

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
        queue = message.wait_seconds > 0
        # Held back from before the first look: whoever lets go after that look finds this request.
        request = self._waiting.enter(ticket.session, message.inos) if queue else None
        if request is None:
            return self._once(
                ticket, counter, message.acked, lambda turn: self._ask(turn, ticket, message, queue)
            )
        try:
            reply = self._take_or_queue(ticket, counter, message)
            if reply is None:
                request.done.wait(message.wait_seconds)
                reply = self._collect(ticket, counter, message, request)
            return reply
        finally:
            self._waiting.leave(request)
            # An alarm for its places may have rung in vain while it was held back.
            self._alarm.set(self._config.clock() + self._config.place_seconds)

    def release(self, ticket: Ticket, counter: int, message: Release) -> bytes:
        """Empty. When it returns, the next in the queues have the locks."""

        def run(turn: Turn) -> Empty:
            self._rules.leave(turn, ticket.session, message.leave)
            self._store.remove_held(turn.connection, ticket.session, message.locks)
            self._rules.pass_on(turn)
            return Empty()

        return self._once(ticket, counter, message.acked, run)

    def renew(self, ticket: Ticket, counter: int, message: Renew) -> bytes:
        """Renewed. A lease that is over but not ended yet goes on: nobody else had the lock since."""

        def run(turn: Turn) -> Renewed:
            expires = self._config.clock() + self._config.lease_seconds
            held = self._store.extend_all(turn.connection, ticket.session, expires)
            return Renewed(held, self._store.wanted(turn.connection, ticket.session), [])

        return self._once(ticket, counter, message.acked, run)

    def break_lock(self, ticket: Ticket, counter: int, message: Break) -> bytes:
        """Empty. Raises EPERM for all but admins, ENOENT if the lock is free."""

        def run(turn: Turn) -> Empty:
            if not ticket.admin:
                raise fail(errno.EPERM, "only an admin may break a lock")
            if not self._store.remove_lock(turn.connection, message.ino):
                raise fail(errno.ENOENT, f"nobody holds the lock of inode {message.ino}")
            log.warning("%s broke the lock of inode %d", ticket.user, message.ino)
            self._rules.pass_on(turn)
            return Empty()

        return self._once(ticket, counter, message.acked, run)

    def locks(self) -> Locks:
        """The held locks and their queues, as many as an answer may have."""
        with self._database.read() as connection:
            rows = self._store.first_locks(connection, LOCKS_LISTED_MAX + 1)
            queues = self._store.first_queues(connection, LOCKS_LISTED_MAX + 1)
        now, room = self._config.clock(), LOCKS_LISTED_MAX
        shown: list[LockInfo] = []
        for row in rows:
            queue = queues[row.ino]
            if room <= len(queue):
                shown += [_info(row, queue[: room - 1], now)] if room else []
                return Locks(shown, more=True)
            shown.append(_info(row, queue, now))
            room -= 1 + len(queue)
        return Locks(shown)

    def expire(self) -> None:
        """Ends the leases and places whose time is over and wakes those who are next. The alarm calls it."""
        self._forget_old_replies()
        self._write(self._rules.end_old)

    def _forget_old_replies(self) -> None:
        now = self._config.clock()
        if now >= self._forget_at:
            self._database.write(self._replies.forget_old)
            self._forget_at = now + TICKET_SECONDS

    def _take_or_queue(self, ticket: Ticket, counter: int, message: Acquire) -> bytes | None:
        """The reply, if it was given before or everything can be granted now. Otherwise None: what is free is
        granted, the rest is queued, and no reply is remembered, because it is not known yet. If the
        server dies then, or the request is sent again meanwhile, it finds these grants and places."""

        def change(turn: Turn) -> bytes | OSError | None:
            def run() -> Acquired:
                look = self._rules.look(turn, ticket.session, message.inos)
                if look.taken:
                    raise _MustWait(look)
                return self._rules.take(turn, ticket, look, queue=True)

            try:
                return self._replies.once(turn.connection, ticket.session, counter, message.acked, run)
            except _MustWait as wait:
                self._rules.take(turn, ticket, wait.look, queue=True)
                return None

        outcome = self._write(change)
        return None if outcome is None else settle(outcome)

    def _collect(self, ticket: Ticket, counter: int, message: Acquire, request: HeldBack) -> bytes:
        """The reply after waiting. In this transaction the request ceases to be held back: a lock that is let
        go later is not given to a session that was told that it has not got it."""

        def run(turn: Turn) -> Acquired:
            self._waiting.leave(request)
            return self._ask(turn, ticket, message, queue=False)

        return self._once(ticket, counter, message.acked, run)

    def _ask(self, turn: Turn, ticket: Ticket, message: Acquire, queue: bool) -> Acquired:
        look = self._rules.look(turn, ticket.session, message.inos)
        return self._rules.take(turn, ticket, look, queue)

    def _once(self, ticket: Ticket, counter: int, acked: int, run: Callable[[Turn], msgspec.Struct]) -> bytes:
        """The reply of ``run``, or the one that is remembered."""

        def change(turn: Turn) -> bytes | OSError:
            return self._replies.once(turn.connection, ticket.session, counter, acked, lambda: run(turn))

        return settle(self._write(change))

    def _write(self, change: Callable[[Turn], T]) -> T:
        """What ``change`` returns, when it is durable. Then those for whom it settled something are woken,
        and the alarm is set for the leases and places that it began."""
        turns: list[Turn] = []

        def run(connection: Connection) -> T:
            turns.append(Turn(connection))
            return change(turns[0])

        result = self._database.write(run)
        self._waiting.settle(turns[0].settled)
        self._alarm.set(turns[0].due)
        return result


def _info(row: LockRow, queue: Sequence[WaiterRow], now: float) -> LockInfo:
    waiters = [Waiter(waiter.user, waiter.client, waiter.session, waiter.since) for waiter in queue]
    left = max(0.0, row.expires - now)
    return LockInfo(row.ino, row.token, row.user, row.client, row.session, row.since, left, waiters)
