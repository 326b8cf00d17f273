"""The lock server's tables and what always holds between them.

Locks. A row of ``locks`` is a held lock: at most one an inode, because the inode is the key. A free lock
has no row. A lease that has ended stays a row until the service takes it away, so it can be renewed as
long as nobody else has got the lock.

Queues. A row of ``waiters`` is a session's place in the queue of an inode: one a session and inode, in
the order of ``place``. Nobody waits for a lock that he holds: the row goes with the grant. ``asked_at``
is when the session last asked; while its request is held back, the place cannot end.

Numbers. Tokens and places come from one counter, ``meta.number``, which is raised in the transaction
that uses it: both are strictly increasing over restarts, and no number is used twice.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Float,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    tuple_,
    update,
)

from servers.database import Prepared
from wire.messages.lock import Held


class LockRow(NamedTuple):
    """A held lock. ``since`` and ``expires`` in seconds since the epoch."""

    ino: int
    token: int
    session: int
    user: str
    client: str
    since: float
    expires: float


class WaiterRow(NamedTuple):
    """A place in the queue of ``ino``. ``since`` and ``asked_at`` in seconds since the epoch."""

    place: int
    ino: int
    session: int
    user: str
    client: str
    since: float
    asked_at: float


class Store:
    """The tables of one lock server's database, added to ``metadata``. Every method is part of the
    caller's transaction."""

    def __init__(self, metadata: MetaData) -> None:
        self._meta = Table(
            "meta",
            metadata,
            Column("key", String, primary_key=True),
            Column("value", BigInteger, nullable=False),
        )
        self._locks = Table(
            "locks",
            metadata,
            Column("ino", BigInteger, primary_key=True, autoincrement=False),
            Column("token", BigInteger, nullable=False),
            Column("session", BigInteger, nullable=False, index=True),
            Column("user", String, nullable=False, index=True),
            Column("client", String, nullable=False),
            Column("since", Float, nullable=False),
            Column("expires", Float, nullable=False, index=True),
            sqlite_with_rowid=False,
        )
        self._waiters = Table(
            "waiters",
            metadata,
            Column("place", BigInteger, primary_key=True, autoincrement=False),
            Column("ino", BigInteger, nullable=False),
            Column("session", BigInteger, nullable=False),
            Column("user", String, nullable=False, index=True),
            Column("client", String, nullable=False),
            Column("since", Float, nullable=False),
            Column("asked_at", Float, nullable=False),
            UniqueConstraint("ino", "session"),
            sqlite_with_rowid=False,
        )
        # On the way of every acquisition and range.
        counts = (
            select(func.count()).where(table.c.user == bindparam("of_user")).scalar_subquery()
            for table in (self._locks, self._waiters)
        )
        self._count_of_user = Prepared(select(sum(counts, literal(0))))

    def begin_again(self, connection: Connection, now: float, expires: float) -> None:
        """After a start: every lock ends at ``expires``, every waiter has asked ``now``."""
        if connection.execute(select(self._meta.c.value).where(self._meta.c.key == "number")).first() is None:
            connection.execute(insert(self._meta), {"key": "number", "value": 0})
        connection.execute(update(self._locks).values(expires=expires))
        connection.execute(update(self._waiters).values(asked_at=now))

    def take_numbers(self, connection: Connection, count: int) -> range:
        """``count`` numbers that were never given out before, rising."""
        if not count:
            return range(0)
        meta = self._meta
        change = update(meta).where(meta.c.key == "number").values(value=meta.c.value + count)
        last: int = connection.execute(change.returning(meta.c.value)).scalar_one()
        return range(last - count + 1, last + 1)

    def count_of(self, connection: Connection, user: str) -> int:
        """How many locks and places the sessions of ``user`` have."""
        row = self._count_of_user.run(connection, of_user=user).fetchone()
        return int(row[0]) if row else 0

    # Locks

    def locks_of(self, connection: Connection, inos: Collection[int]) -> dict[int, LockRow]:
        """The held ones among the locks of ``inos``."""
        rows = connection.execute(select(self._locks).where(self._locks.c.ino.in_(inos)))
        return {row.ino: LockRow(*row) for row in rows}

    def first_locks(self, connection: Connection, limit: int) -> list[LockRow]:
        """Held locks, by inode."""
        rows = connection.execute(select(self._locks).order_by(self._locks.c.ino).limit(limit))
        return [LockRow(*row) for row in rows]

    def add_locks(self, connection: Connection, rows: Sequence[LockRow]) -> None:
        """New locks; their inodes have none."""
        if rows:
            connection.execute(insert(self._locks), [row._asdict() for row in rows])

    def extend(self, connection: Connection, session: int, inos: Collection[int], expires: float) -> None:
        """One more lease for those of the session's locks. None becomes shorter by it: what was kept longer
        than a lease at the start was kept for one who may not have heard this answer."""
        if inos:
            mine = (self._locks.c.session == session) & self._locks.c.ino.in_(inos)
            connection.execute(update(self._locks).where(mine).values(expires=self._not_before(expires)))

    def extend_all(self, connection: Connection, session: int, expires: float) -> list[Held]:
        """One more lease for all of the session's locks, as ``extend``; returns them by inode."""
        locks = self._locks
        change = update(locks).where(locks.c.session == session).values(expires=self._not_before(expires))
        return [
            Held(*row)
            for row in sorted(connection.execute(change.returning(locks.c.ino, locks.c.token)).all())
        ]

    def _not_before(self, expires: float) -> ColumnElement[float]:
        """``expires``, or the end of the lease that there is, if that is later."""
        return case((self._locks.c.expires > expires, self._locks.c.expires), else_=expires)

    def remove_held(self, connection: Connection, session: int, held: Collection[Held]) -> None:
        """The session's locks under exactly these tokens."""
        if held:
            locks = self._locks
            named = tuple_(locks.c.ino, locks.c.token).in_([(lock.ino, lock.token) for lock in held])
            connection.execute(delete(locks).where(locks.c.session == session, named))

    def remove_lock(self, connection: Connection, ino: int) -> bool:
        """Whoever holds it. Returns whether anybody did."""
        return connection.execute(delete(self._locks).where(self._locks.c.ino == ino)).rowcount > 0

    def remove_expired(self, connection: Connection, now: float) -> int:
        """The locks whose lease has ended. Returns how many."""
        return connection.execute(delete(self._locks).where(self._locks.c.expires <= now)).rowcount

    def next_expiry(self, connection: Connection) -> float | None:
        """When the first lease ends."""
        found: float | None = connection.execute(select(func.min(self._locks.c.expires))).scalar_one()
        return found

    # Queues

    def queues_of(self, connection: Connection, inos: Collection[int]) -> defaultdict[int, list[WaiterRow]]:
        """The queues of ``inos``, heads first."""
        waiters = self._waiters
        return _by_ino(connection.execute(select(waiters).where(waiters.c.ino.in_(inos))).all())

    def first_queues(self, connection: Connection, limit: int) -> defaultdict[int, list[WaiterRow]]:
        """Queues of held locks, heads first: the first ``limit`` places by inode."""
        waiters = self._waiters
        held = waiters.c.ino.in_(select(self._locks.c.ino))
        query = select(waiters).where(held).order_by(waiters.c.ino, waiters.c.place).limit(limit)
        return _by_ino(connection.execute(query).all())

    def heads_of_free(self, connection: Connection) -> list[WaiterRow]:
        """The heads of all queues whose lock nobody holds."""
        waiters, others = self._waiters, self._waiters.alias()
        held = exists().where(self._locks.c.ino == waiters.c.ino)
        preceded = exists().where(others.c.ino == waiters.c.ino, others.c.place < waiters.c.place)
        rows = connection.execute(select(waiters).where(~held, ~preceded).order_by(waiters.c.place))
        return [WaiterRow(*row) for row in rows]

    def wanted(self, connection: Connection, session: int) -> list[int]:
        """The inodes that the session has locked and others wait for."""
        locks, waiters = self._locks, self._waiters
        both = select(waiters.c.ino).distinct().join(locks, locks.c.ino == waiters.c.ino)
        rows = connection.execute(both.where(locks.c.session == session).order_by(waiters.c.ino))
        return list(rows.scalars())

    def add_waiters(self, connection: Connection, rows: Sequence[WaiterRow]) -> None:
        """New places; their sessions have none in these queues."""
        if rows:
            connection.execute(insert(self._waiters), [row._asdict() for row in rows])

    def touch(self, connection: Connection, places: Collection[int], now: float) -> None:
        """The sessions in these places have asked ``now``."""
        if places:
            waiters = self._waiters
            connection.execute(update(waiters).where(waiters.c.place.in_(places)).values(asked_at=now))

    def remove_places(self, connection: Connection, places: Iterable[int]) -> None:
        """Takes these places out of their queues."""
        if rows := [{"gone": place} for place in places]:
            connection.execute(delete(self._waiters).where(self._waiters.c.place == bindparam("gone")), rows)

    def leave(self, connection: Connection, session: int, inos: Collection[int]) -> None:
        """Takes the session out of these queues."""
        if inos:
            waiters = self._waiters
            connection.execute(delete(waiters).where(waiters.c.session == session, waiters.c.ino.in_(inos)))

    def silent_since(self, connection: Connection, moment: float) -> list[WaiterRow]:
        """The places whose sessions last asked at ``moment`` or before."""
        rows = connection.execute(select(self._waiters).where(self._waiters.c.asked_at <= moment))
        return [WaiterRow(*row) for row in rows]

    def first_asked_after(self, connection: Connection, moment: float) -> float | None:
        """The earliest time after ``moment`` at which a waiter last asked."""
        asked_at = self._waiters.c.asked_at
        found: float | None = connection.execute(
            select(func.min(asked_at)).where(asked_at > moment)
        ).scalar_one()
        return found


def _by_ino(rows: Iterable[Sequence[object]]) -> defaultdict[int, list[WaiterRow]]:
    queues: defaultdict[int, list[WaiterRow]] = defaultdict(list)
    for row in sorted(WaiterRow._make(row) for row in rows):
        queues[row.ino].append(row)
    return queues
