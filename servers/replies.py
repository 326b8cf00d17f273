"""Remembered replies: what makes a mutation happen exactly once, whatever is retried or replayed.

Invariant: a reply is stored in the same transaction as the change that it reports, and looked up
before anything else. It is forgotten when the session says that it has been received (``acked``);
from then on a request with that counter is refused. The newest row of a session stays, because it
bears the mark; a session's rows may go only when every ticket that could show them again has expired.

The marks are also kept in memory, so that a mutation reads no other's reply. After a rollback memory may
be ahead of the database: what a session has said that it has received stays true, and the number of
its replies is only a bound.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    LargeBinary,
    MetaData,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
)

from servers.database import Prepared, savepoint
from wire import codec
from wire.errors import Problem, Replayed, Unavailable, from_problem, to_problem
from wire.limits import TICKET_SECONDS

UNACKED_MAX = 100_000
"""Replies that are kept for one session."""

SESSIONS_MAX = 10_000
"""Sessions whose marks are in memory; those of others are read again."""


@dataclass
class _Kept:
    """What is kept for a session: all counters below ``mark`` are acknowledged."""

    mark: int
    replies: int


class Replies:
    """The table ``replies`` of one service's database."""

    def __init__(self, metadata: MetaData, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._table = Table(
            "replies",
            metadata,
            Column("session", BigInteger, primary_key=True, autoincrement=False),
            Column("counter", BigInteger, primary_key=True, autoincrement=False),
            Column("acked", BigInteger, nullable=False),
            Column("body", LargeBinary, nullable=True),  # a message, or
            Column("problem", LargeBinary, nullable=True),  # the error that it raised
            Column("at", Float, nullable=False, index=True),
            sqlite_with_rowid=False,
        )
        columns = self._table.c
        of_session = columns.session == bindparam("of_session")
        self._reply = Prepared(
            select(columns.body, columns.problem).where(
                of_session, columns.counter == bindparam("of_counter")
            )
        )
        self._kept_of = Prepared(select(func.max(columns.acked), func.count()).where(of_session))
        self._forget = Prepared(delete(self._table).where(of_session, columns.counter < bindparam("below")))
        self._remember = Prepared(insert(self._table))
        self._kept: dict[int, _Kept] = {}  # only touched inside changes, one at a time

    def once(
        self,
        connection: Connection,
        session: int,
        counter: int,
        acked: int,
        run: Callable[[], msgspec.Struct],
    ) -> bytes | OSError:
        """The encoded reply of ``run``, which is called unless this counter has a reply already.

        What ``run`` changed before it raised is rolled back; the OSError is remembered too, and returned
        (raised here, it would undo the transaction that remembers it). Unavailable is not remembered: it
        asks for a retry. What is no OSError goes through, with the changes left to the caller. Raises
        Replayed for an acknowledged counter, Unavailable if too many are not acknowledged.
        """
        known = self._reply.run(connection, of_session=session, of_counter=counter).fetchone()
        if known is not None:
            return _remembered(*known)
        kept = self._kept_for(connection, session)
        if counter < kept.mark:
            raise Replayed("this request was answered and acknowledged before")
        if kept.replies >= UNACKED_MAX:
            raise Unavailable("too many requests of this session are not acknowledged")
        outcome = _outcome(connection, run)
        if acked > kept.mark:
            kept.replies -= self._forget.run(connection, of_session=session, below=acked).rowcount
            kept.mark = acked
        kept.replies += 1
        self._remember.run(
            connection,
            session=session,
            counter=counter,
            acked=kept.mark,
            body=None if isinstance(outcome, OSError) else outcome,
            problem=codec.encode(to_problem(outcome)) if isinstance(outcome, OSError) else None,
            at=self._clock(),
        )
        return outcome

    def _kept_for(self, connection: Connection, session: int) -> _Kept:
        kept = self._kept.get(session)
        if kept is None:
            mark, replies = self._kept_of.run(connection, of_session=session).fetchone() or (None, 0)
            if len(self._kept) >= SESSIONS_MAX:
                self._kept.clear()
            kept = self._kept[session] = _Kept(mark or 0, replies)
        return kept

    def forget_old(self, connection: Connection) -> None:
        """Drops rows that no valid ticket can ask for any more."""
        table = self._table
        connection.execute(delete(table).where(table.c.at < self._clock() - 2 * TICKET_SECONDS))
        self._kept.clear()


def _outcome(connection: Connection, run: Callable[[], msgspec.Struct]) -> bytes | OSError:
    """What ``run`` answers, or raises: then nothing that it has changed is left. Raises Unavailable."""
    savepoint(connection, "SAVEPOINT once")
    try:
        return codec.encode(run())
    except OSError as error:
        savepoint(connection, "ROLLBACK TO SAVEPOINT once")
        if isinstance(error, Unavailable):
            raise
        return error
    finally:
        savepoint(connection, "RELEASE SAVEPOINT once")


def _remembered(body: bytes | None, problem: bytes | None) -> bytes | OSError:
    if problem is not None:
        return from_problem(codec.decode(problem, Problem))
    return bytes(body or b"")


def settle(outcome: bytes | OSError) -> bytes:
    """The reply, or raises the error that stands in its place."""
    if isinstance(outcome, OSError):
        raise outcome
    return outcome
