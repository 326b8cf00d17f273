"""A service's database: concurrent readers, and one writer that commits in groups.

A change is a function of a connection. Whoever finds nobody writing does it for all who wait: he runs
each change in a savepoint and commits them together, one fsync for all of them. So a change that comes
alone costs no change of threads, and those that come meanwhile make the next group. A caller gets its
result only after that commit: what ``write`` has returned is durable (SQLite: WAL, synchronous=FULL).
A change that raises is rolled back alone.
"""

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, MetaData, create_engine, event
from sqlalchemy.exc import DBAPIError

from wire.errors import Unavailable, fail

log = logging.getLogger(__name__)

T = TypeVar("T")


def sqlite_url(path: Path) -> str:
    """The SQLAlchemy URL of a database file; its folder is made, for the owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    return f"sqlite:///{path}"


class Database:
    """``url`` is SQLAlchemy's; tables that ``metadata`` names and that are missing are made."""

    def __init__(self, url: str, metadata: MetaData) -> None:
        self._engine = create_engine(url, pool_size=64, max_overflow=64)
        if self._engine.dialect.name == "sqlite":
            _prepare_sqlite(self._engine)
        metadata.create_all(self._engine)
        self._waiting: deque[tuple[Callable[[Connection], Any], Future[Any]]] = deque()
        self._leading = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the database throughout."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            raise _translate(error) from error

    def write(self, change: Callable[[Connection], T]) -> T:
        """Runs ``change`` and returns its result when it is durable; raises what it raised. A change must not
        write again."""
        future: Future[T] = Future()
        self._waiting.append((change, future))
        with self._leading:
            if not future.done():
                self._commit(self._take_group())
        return future.result()

    def close(self) -> None:
        """Waits for the writer and closes all connections."""
        with self._leading:
            self._engine.dispose()

    def _take_group(self) -> list[tuple[Callable[[Connection], Any], Future[Any]]]:
        return [self._waiting.popleft() for _ in range(len(self._waiting))]

    def _commit(self, group: list[tuple[Callable[[Connection], Any], Future[Any]]]) -> None:
        outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with self._engine.connect() as connection, connection.begin():
                for change, future in group:
                    savepoint(connection, "SAVEPOINT change")
                    try:
                        outcomes.append((future, change(connection), None))
                        savepoint(connection, "RELEASE SAVEPOINT change")
                    except Exception as error:
                        savepoint(connection, "ROLLBACK TO SAVEPOINT change")
                        savepoint(connection, "RELEASE SAVEPOINT change")
                        known = _translate(error) if isinstance(error, DBAPIError) else error
                        outcomes.append((future, None, known))
        except Exception as error:
            known = _translate(error) if isinstance(error, DBAPIError) else error
            log.error("a commit failed, nothing of its group was done: %s", known)
            outcomes = [(future, None, known) for _, future in group]
        for future, result, failure in outcomes:
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)


def savepoint(connection: Connection, command: str) -> None:
    """SAVEPOINT, ROLLBACK TO or RELEASE, past SQLAlchemy: it would take ten times as long."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(command)
    finally:
        cursor.close()


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # Python's own transaction handling would not begin one for SELECT; see SQLAlchemy's SQLite notes.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "busy_timeout=10000",
            "foreign_keys=OFF",
            "cache_size=-65536",
            "temp_store=MEMORY",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")


def _translate(error: DBAPIError) -> OSError:
    """A database that has no room or does not answer, in the words of the rest."""
    text = str(error.orig)
    if "disk is full" in text or "No space" in text:
        return fail(errno.ENOSPC, "the service's disk is full")
    if "locked" in text or error.connection_invalidated:
        return Unavailable(f"the database is busy: {text}")
    return fail(errno.EIO, f"the database failed: {text}")
