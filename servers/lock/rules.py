"""The rules of the write locks: one holder an inode, first come first served, leases, rising tokens.

What every transaction leaves behind: a free lock that has a queue is reserved for the head of it, who is
between two requests. A head whose request is held back has got the lock already (``pass_on``). One who stays
away for ``place_seconds`` loses the place, and the next one is the head. Leases and places end in ``end_old``
only, so no other rule needs a clock to say who holds what.
"""

import errno
import logging
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sqlalchemy import Connection

from servers.lock.config import LockConfig
from servers.lock.range_store import RangeStore
from servers.lock.store import LockRow, Store, WaiterRow
from wire.errors import fail
from wire.messages.lock import Acquired, LockAnswer
from wire.tickets import Grant, seal_grant

log = logging.getLogger(__name__)


class Who(Protocol):
    """A session, as tickets, locks and places name it."""

    @property
    def session(self) -> int:
        """Its number."""

    @property
    def user(self) -> str:
        """Whose it is."""

    @property
    def client(self) -> str:
        """Where it runs."""


@dataclass
class Turn:
    """One transaction, and what is to be done after its commit."""

    connection: Connection
    settled: list[Hashable] = field(default_factory=list)
    """What was granted, or whose queue was left: nobody waits for it any more. A session and an inode for a
    write lock, the key of a place (range_queue) for a range."""
    due: float = math.inf
    """When a lease or place that began here ends, if it is not prolonged."""

    def ends(self, at: float) -> None:
        """A lease or place ends at ``at``."""
        self.due = min(self.due, at)


class Look(NamedTuple):
    """How the inodes of a request stand for its session, before anything is changed."""

    inos: Sequence[int]
    mine: list[LockRow]
    free: list[int]
    """Nobody has it, and nobody waits in front."""
    taken: list[int]
    locks: dict[int, LockRow]
    queues: dict[int, list[WaiterRow]]


class Rules:
    """What may be done in a transaction. ``asks`` says whether a waiter's request is held back right now."""

    def __init__(
        self, config: LockConfig, store: Store, ranges: RangeStore, asks: Callable[[WaiterRow], bool]
    ) -> None:
        self._config = config
        self._store = store
        self._ranges = ranges
        self._asks = asks

    def look(self, turn: Turn, session: int, inos: Sequence[int]) -> Look:
        """Changes nothing."""
        locks = self._store.locks_of(turn.connection, inos)
        queues = self._store.queues_of(turn.connection, inos)
        look = Look(inos, [], [], [], locks, queues)
        for ino in dict.fromkeys(inos):
            lock, queue = locks.get(ino), queues[ino]
            if lock is not None and lock.session == session:
                look.mine.append(lock)
            elif lock is None and (not queue or queue[0].session == session):
                look.free.append(ino)
            else:
                look.taken.append(ino)
        return look

    def take(self, turn: Turn, who: Who, look: Look, queue: bool) -> Acquired:
        """Grants what is free and extends what is ``who``'s already; keeps the places that it has in the
        queues of what is taken and, with ``queue``, joins those in which it has none. Raises ENOLCK if its
        user would have too many."""
        places = [row for ino in look.taken for row in look.queues[ino] if row.session == who.session]
        at_home = {row.ino for row in places}
        homeless = [ino for ino in look.taken if ino not in at_home] if queue else []
        used = [row.place for ino in look.free for row in look.queues[ino] if row.session == who.session]
        self.need_room(turn, who.user, len(look.free) - len(used) + len(homeless))
        now, connection = self._config.clock(), turn.connection
        self._store.remove_places(connection, used)
        granted = self._grant(turn, [(ino, who) for ino in look.free])
        mine = [row.ino for row in look.mine]
        self._store.extend(connection, who.session, mine, now + self._config.lease_seconds)
        self._store.touch(connection, [row.place for row in places], now)
        self._join(turn, who, homeless)
        if look.taken:
            turn.ends(now + self._config.place_seconds)
        turn.settled.extend((who.session, ino) for ino in mine)
        shared = self._ranges.shared(connection, look.inos)
        answers = {row.ino: self._granted(row, row.ino in shared) for row in (*look.mine, *granted)}
        answers.update((ino, _refused(look, ino, ino in shared)) for ino in look.taken)
        return Acquired([answers[ino] for ino in look.inos], self._config.lease_seconds)

    def leave(self, turn: Turn, session: int, inos: Sequence[int]) -> None:
        """Gives up the session's places. Call ``pass_on`` afterwards."""
        self._store.leave(turn.connection, session, inos)
        turn.settled.extend((session, ino) for ino in inos)

    def pass_on(self, turn: Turn) -> None:
        """Gives every free lock to the head of its queue, if its request is held back at this moment."""
        heads = [row for row in self._store.heads_of_free(turn.connection) if self._asks(row)]
        self._store.remove_places(turn.connection, [row.place for row in heads])
        self._grant(turn, [(row.ino, row) for row in heads])

    def end_old(self, turn: Turn) -> None:
        """Ends the leases and places whose time is over; the turn is due when the next one's is."""
        store, connection, now = self._store, turn.connection, self._config.clock()
        if ended := store.remove_expired(connection, now):
            log.info("the leases of %d locks have ended", ended)
        silent_since = now - self._config.place_seconds
        gone = [row for row in store.silent_since(connection, silent_since) if not self._asks(row)]
        store.remove_places(connection, [row.place for row in gone])
        turn.settled.extend((row.session, row.ino) for row in gone)
        self.pass_on(turn)
        # The silent places that remain are held back: they count anew from when their request is answered.
        asked = store.first_asked_after(connection, silent_since)
        if asked is not None:
            turn.ends(asked + self._config.place_seconds)
        expiry = store.next_expiry(connection)
        if expiry is not None:
            turn.ends(expiry)

    def need_room(self, turn: Turn, user: str, more: int) -> None:
        """Raises ENOLCK if the user would have too many locks, ranges and places with so many more. Inode
        numbers are easily guessed: without a limit one user could lock everything."""
        most = self._config.user_locks_max
        if more <= 0:
            return
        count = self._store.count_of(turn.connection, user) + self._ranges.count_of(turn.connection, user)
        if count + more > most:
            raise fail(errno.ENOLCK, f"a user has at most {most} locks, ranges and places in queues")

    def _grant(self, turn: Turn, gifts: Sequence[tuple[int, Who]]) -> list[LockRow]:
        """New locks under new tokens. The inodes are free and their new holders wait for them no more."""
        now = self._config.clock()
        expires = now + self._config.lease_seconds
        tokens = self._store.take_numbers(turn.connection, len(gifts))
        rows = [
            LockRow(ino, token, who.session, who.user, who.client, now, expires)
            for (ino, who), token in zip(gifts, tokens, strict=True)
        ]
        self._store.add_locks(turn.connection, rows)
        turn.settled.extend((row.session, row.ino) for row in rows)
        if rows:
            turn.ends(expires)
        return rows

    def _join(self, turn: Turn, who: Who, inos: Sequence[int]) -> None:
        now = self._config.clock()
        places = self._store.take_numbers(turn.connection, len(inos))
        rows = [
            WaiterRow(place, ino, who.session, who.user, who.client, now, now)
            for place, ino in zip(places, inos, strict=True)
        ]
        self._store.add_waiters(turn.connection, rows)

    def _granted(self, row: LockRow, is_shared: bool) -> LockAnswer:
        grant = seal_grant(self._config.keys.grant, Grant(row.ino, row.token, row.session))
        return LockAnswer(row.ino, row.token, grant, is_shared=is_shared)


def _refused(look: Look, ino: int, is_shared: bool) -> LockAnswer:
    """Who has it, or for whom it is reserved."""
    holder: Who = look.locks.get(ino) or look.queues[ino][0]
    return LockAnswer(ino, holder=f"{holder.user}@{holder.client}", is_shared=is_shared)
