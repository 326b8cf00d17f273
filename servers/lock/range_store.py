"""The tables of ranges that programs lock, and what always holds between them.

Ranges. A row of ``ranges`` is a held range. Those of one owner (``session``, ``is_flock``, ``owner``) of one
inode do not overlap, so the first byte tells them apart.

Leases. A session that has ranges has a row of ``range_leases``: all of them end together. The row stays when
the last range is freed, and ends when nobody renews it.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    MetaData,
    String,
    Table,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from servers.database import Prepared
from servers.lock.ranges import Claim
from wire.messages.lock import Range
from wire.ranges import WHOLE


class RangeRow(NamedTuple):
    """A held range, for people. ``since`` in seconds since the epoch."""

    ino: int
    claim: Claim
    user: str
    client: str
    since: float


class RangeStore:
    """The tables of one lock server's database, added to ``metadata``. Every method is part of the caller's
    transaction."""

    def __init__(self, metadata: MetaData) -> None:
        self._ranges = Table(
            "ranges",
            metadata,
            Column("ino", BigInteger, primary_key=True, autoincrement=False),
            Column("is_flock", Boolean, primary_key=True, autoincrement=False),
            Column("session", BigInteger, primary_key=True, autoincrement=False, index=True),
            Column("owner", BigInteger, primary_key=True, autoincrement=False),
            Column("first", BigInteger, primary_key=True, autoincrement=False),
            Column("last", BigInteger, nullable=False),
            Column("is_exclusive", Boolean, nullable=False),
            Column("pid", BigInteger, nullable=False),
            Column("since", Float, nullable=False),
            sqlite_with_rowid=False,
        )
        self._leases = Table(
            "range_leases",
            metadata,
            Column("session", BigInteger, primary_key=True, autoincrement=False),
            Column("user", String, nullable=False, index=True),
            Column("client", String, nullable=False),
            Column("expires", Float, nullable=False, index=True),
            sqlite_with_rowid=False,
        )
        self._prepare()

    def _prepare(self) -> None:
        """The statements of every request."""
        ranges, leases = self._ranges.c, self._leases.c
        self._columns = (
            ranges.session,
            ranges.is_flock,
            ranges.owner,
            ranges.first,
            ranges.last,
            ranges.is_exclusive,
            ranges.pid,
        )
        of_inode = ranges.ino == bindparam("of_ino")
        of_session = ranges.session == bindparam("of_session")
        touching = (ranges.first <= bindparam("up_to")) & (ranges.last >= bindparam("from_on"))
        others = ranges.is_exclusive & (ranges.session != bindparam("of_session"))
        same_kind = ranges.is_flock == bindparam("of_kind")
        self._of_inode = Prepared(select(*self._columns).where(of_inode))
        self._any = Prepared(select(ranges.ino).where(of_inode).limit(literal_column("1")))
        self._near = Prepared(select(*self._columns).where(of_inode, same_kind, or_(touching, others)))
        self._count = Prepared(select(func.count()).where(of_inode, of_session))
        self._user_count = Prepared(
            select(func.count())
            .select_from(self._ranges.join(self._leases, leases.session == ranges.session))
            .where(leases.user == bindparam("of_user"))
        )
        this = (of_inode, same_kind, of_session, ranges.owner == bindparam("of_owner"))
        self._remove = Prepared(delete(self._ranges).where(*this, ranges.first == bindparam("at")))
        self._add = Prepared(insert(self._ranges))
        until = bindparam("until", type_=Float)
        self._extend = Prepared(
            update(self._leases)
            .where(leases.session == bindparam("of_session"))
            .values(expires=case((leases.expires > until, leases.expires), else_=until))
        )
        self._begin = Prepared(insert(self._leases))

    def begin_again(self, connection: Connection, expires: float) -> None:
        """After a start: everything ends at ``expires``."""
        connection.execute(update(self._leases).values(expires=expires))

    # Ranges

    def of_inode(self, connection: Connection, ino: int) -> list[Claim]:
        """All ranges of ``ino``."""
        return [_claim(row) for row in self._of_inode.run(connection, of_ino=ino).fetchall()]

    def near(self, connection: Connection, ino: int, wanted: Claim) -> list[Claim]:
        """The ranges of ``ino`` that touch what is wanted, or are in conflict with it."""
        rows = self._near.run(
            connection,
            of_ino=ino,
            of_kind=wanted.range.is_flock,
            of_session=wanted.session,
            up_to=min(wanted.range.last + 1, WHOLE),
            from_on=wanted.range.first - 1,
        )
        return [_claim(row) for row in rows.fetchall()]

    def shared(self, connection: Connection, inos: Collection[int]) -> set[int]:
        """Those of ``inos`` of which anybody has ranges."""
        return {ino for ino in inos if self._any.run(connection, of_ino=ino).fetchone()}

    def inos_of(self, connection: Connection, session: int) -> list[int]:
        """The inodes of which the session has ranges, in order."""
        ranges = self._ranges.c
        query = select(ranges.ino).distinct().where(ranges.session == session).order_by(ranges.ino)
        return list(connection.execute(query).scalars())

    def count(self, connection: Connection, ino: int, session: int) -> int:
        """How many ranges of ``ino`` the session has."""
        row = self._count.run(connection, of_ino=ino, of_session=session).fetchone()
        return int(row[0]) if row else 0

    def count_of(self, connection: Connection, user: str) -> int:
        """How many ranges the sessions of ``user`` have."""
        row = self._user_count.run(connection, of_user=user).fetchone()
        return int(row[0]) if row else 0

    def change(
        self,
        connection: Connection,
        ino: int,
        session: int,
        removed: Iterable[Range],
        added: Iterable[Range],
        now: float,
    ) -> None:
        """Takes ``removed`` from the session and gives it ``added``."""
        for range in removed:
            self._remove.run(
                connection,
                of_ino=ino,
                of_kind=range.is_flock,
                of_session=session,
                of_owner=range.owner,
                at=range.first,
            )
        for range in added:
            self._add.run(
                connection,
                ino=ino,
                session=session,
                is_flock=range.is_flock,
                owner=range.owner,
                first=range.first,
                last=range.last,
                is_exclusive=range.is_exclusive,
                pid=range.pid,
                since=now,
            )

    def remove_all(self, connection: Connection, ino: int) -> bool:
        """Whoever has ranges of ``ino``. Returns whether anybody had."""
        return connection.execute(delete(self._ranges).where(self._ranges.c.ino == ino)).rowcount > 0

    def first_ranges(self, connection: Connection, limit: int) -> list[RangeRow]:
        """Held ranges, by inode and by what they lock."""
        ranges, leases = self._ranges, self._leases
        both = ranges.join(leases, leases.c.session == ranges.c.session)
        query = select(ranges.c.ino, leases.c.user, leases.c.client, ranges.c.since, *self._columns)
        rows = connection.execute(
            query.select_from(both)
            .order_by(ranges.c.ino, ranges.c.is_flock, ranges.c.first, ranges.c.session, ranges.c.owner)
            .limit(limit)
        )
        return [RangeRow(row[0], _claim(row[4:]), row[1], row[2], row[3]) for row in rows]

    # Leases

    def extend(self, connection: Connection, session: int, expires: float) -> bool:
        """One more lease for all ranges of the session, not shorter than what is left of the one before.
        Returns whether it has one."""
        return self._extend.run(connection, of_session=session, until=expires).rowcount > 0

    def begin(self, connection: Connection, session: int, user: str, client: str, expires: float) -> None:
        """The lease of a session that has none."""
        self._begin.run(connection, session=session, user=user, client=client, expires=expires)

    def holder(self, connection: Connection, session: int) -> str:
        """``user@client`` of a session that has ranges."""
        leases = self._leases.c
        query = select(leases.user, leases.client).where(leases.session == session)
        user, client = connection.execute(query).one()
        return f"{user}@{client}"

    def remove_expired(self, connection: Connection, now: float) -> int:
        """The leases that have ended, with their ranges. Returns how many of these."""
        leases = self._leases
        ended = delete(leases).where(leases.c.expires <= now).returning(leases.c.session)
        sessions = list(connection.execute(ended).scalars())
        if not sessions:
            return 0
        gone = delete(self._ranges).where(self._ranges.c.session.in_(sessions))
        return connection.execute(gone).rowcount

    def next_expiry(self, connection: Connection) -> float | None:
        """When the first lease ends."""
        found: float | None = connection.execute(select(func.min(self._leases.c.expires))).scalar_one()
        return found


def _claim(row: Sequence[int]) -> Claim:
    session, is_flock, owner, first, last, is_exclusive, pid = row
    return Claim(session, Range(bool(is_flock), owner, first, last, bool(is_exclusive), pid))
