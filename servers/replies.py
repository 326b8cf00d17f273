"""Remembered replies: what makes a mutation happen exactly once, whatever is retried or replayed.

Invariant: a reply is stored in the same transaction as the change that it reports, and looked up
before anything else. It is forgotten when the session says that it has been received (``acked``);
from then on a request with that counter is refused. The newest row of a session stays, because it
bears the mark; a session's rows may go only when every ticket that could show them again has expired.
"""

import time
from collections.abc import Callable

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
    insert,
    select,
)

from servers.database import savepoint
from wire import codec
from wire.errors import Problem, Replayed, Unavailable, from_problem, to_problem
from wire.limits import TICKET_SECONDS


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
        # Built once: on every mutation's way their making would cost more than their running.
        columns = self._table.c
        of_session = columns.session == bindparam("of_session")
        self._counters = select(columns.counter, columns.acked).where(of_session)
        self._reply = select(columns.body, columns.problem).where(
            of_session, columns.counter == bindparam("of_counter")
        )
        self._forget = delete(self._table).where(of_session, columns.counter < bindparam("below"))
        self._remember = insert(self._table)

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
        Replayed for an acknowledged counter.
        """
        rows = connection.execute(self._counters, {"of_session": session}).all()
        if any(row.counter == counter for row in rows):
            return self._remembered(connection, session, counter)
        mark = max((row.acked for row in rows), default=0)
        if counter < mark:
            raise Replayed("this request was answered and acknowledged before")
        outcome: bytes | OSError
        savepoint(connection, "SAVEPOINT once")
        try:
            outcome = codec.encode(run())
        except OSError as error:
            savepoint(connection, "ROLLBACK TO SAVEPOINT once")
            if isinstance(error, Unavailable):
                raise
            outcome = error
        finally:
            savepoint(connection, "RELEASE SAVEPOINT once")
        if any(row.counter < acked for row in rows):
            connection.execute(self._forget, {"of_session": session, "below": acked})
        connection.execute(
            self._remember,
            {
                "session": session,
                "counter": counter,
                "acked": max(acked, mark),
                "body": None if isinstance(outcome, OSError) else outcome,
                "problem": codec.encode(to_problem(outcome)) if isinstance(outcome, OSError) else None,
                "at": self._clock(),
            },
        )
        return outcome

    def _remembered(self, connection: Connection, session: int, counter: int) -> bytes | OSError:
        row = connection.execute(self._reply, {"of_session": session, "of_counter": counter}).one()
        if row.problem is not None:
            return from_problem(codec.decode(row.problem, Problem))
        return bytes(row.body)

    def forget_old(self, connection: Connection) -> None:
        """Drops rows that no valid ticket can ask for any more."""
        table = self._table
        connection.execute(delete(table).where(table.c.at < self._clock() - 2 * TICKET_SECONDS))


def settle(outcome: bytes | OSError) -> bytes:
    """The reply, or raises the error that stands in its place."""
    if isinstance(outcome, OSError):
        raise outcome
    return outcome
