"""A service's database: concurrent readers, and one writer that commits in groups.

A change is a function of a connection. Whoever finds nobody writing does it for all who wait: he runs
each change in a savepoint and commits them together, one fsync for all of them. So a change that comes
alone costs no change of threads, and those that come meanwhile make the next group. A caller gets its
result only after that commit: what ``write`` has returned is durable (SQLite: WAL, synchronous=FULL).
A change that raises is rolled back alone.

``Prepared`` is for the statements of hot paths: it gives SQLite what SQLAlchemy has compiled once.
"""

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ClauseElement, Connection, Engine, MetaData, create_engine, event
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler

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
        # Last in, first out: the connection that was used last has pages and statements at hand.
        self._engine = create_engine(url, pool_size=64, max_overflow=64, pool_use_lifo=True)
        if self._engine.dialect.name == "sqlite":
            _prepare_sqlite(self._engine)
        metadata.create_all(self._engine)
        self._failures: tuple[type[Exception], ...] = (DBAPIError, self._engine.dialect.loaded_dbapi.Error)
        self._waiting: deque[tuple[Callable[[Connection], Any], Future[Any]]] = deque()
        self._leading = threading.Lock()
        self._writer = self._engine.connect()  # under _leading

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the database throughout."""
        try:
            with self._engine.connect() as connection, connection.begin():
                yield connection
        except self._failures as error:
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
            self._writer.close()
            self._engine.dispose()

    def _take_group(self) -> list[tuple[Callable[[Connection], Any], Future[Any]]]:
        return [self._waiting.popleft() for _ in range(len(self._waiting))]

    def _commit(self, group: list[tuple[Callable[[Connection], Any], Future[Any]]]) -> None:
        outcomes: list[tuple[Any, Exception | None]] = []
        try:
            with self._writer.begin():
                outcomes += [self._run(change) for change, _ in group]
        except Exception as error:
            known = _translate(error) if isinstance(error, self._failures) else error
            log.error("a commit failed, nothing of its group was done: %s", known)
            # SQLAlchemy takes a transaction whose COMMIT failed for ended; SQLite may not.
            self._writer.connection.rollback()
            outcomes = [(None, known)] * len(group)
        for (_, future), (result, failure) in zip(group, outcomes, strict=True):
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

    def _run(self, change: Callable[[Connection], Any]) -> tuple[Any, Exception | None]:
        """What the change returned or raised; if it raised, nothing of it is left."""
        savepoint(self._writer, "SAVEPOINT change")
        try:
            result = change(self._writer)
        except Exception as error:
            savepoint(self._writer, "ROLLBACK TO SAVEPOINT change")
            savepoint(self._writer, "RELEASE SAVEPOINT change")
            return None, _translate(error) if isinstance(error, self._failures) else error
        savepoint(self._writer, "RELEASE SAVEPOINT change")
        return result, None


class Prepared:
    """A statement of SQLAlchemy Core that is compiled once and given to the driver as it is: SQLAlchemy's own
    way of running one costs five times as much as SQLite itself. Built with the module, used by all threads.

    ``columns`` are those that an INSERT names, if not all. Values must be what the driver takes.
    """

    def __init__(self, statement: ClauseElement, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, _Compiled] = {}

    def run(self, connection: Connection, **values: Any) -> DBAPICursor:
        """The driver's cursor, from which rows come as tuples."""
        compiled = self._compile(connection)
        cursor = connection.connection.cursor()
        cursor.execute(compiled.text, compiled.parameters(values))
        return cursor

    def run_many(self, connection: Connection, rows: Iterable[Mapping[str, Any]]) -> int:
        """Once for each of ``rows``; how many rows of the database that concerned."""
        compiled = self._compile(connection)
        cursor = connection.connection.cursor()
        cursor.executemany(compiled.text, [compiled.parameters(values) for values in rows])
        concerned: int = cursor.rowcount
        cursor.close()
        return concerned

    def _compile(self, connection: Connection) -> "_Compiled":
        dialect = connection.dialect
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            made = self._statement.compile(dialect=dialect, column_keys=self._columns)
            assert isinstance(made, SQLCompiler)
            compiled = self._compiled[dialect.name] = _Compiled(made.string, made.positiontup, made.params)
        return compiled


class _Compiled(NamedTuple):
    """A statement in the driver's words, the order of its parameters (None: they go by name), and its
    constants."""

    text: str
    order: Sequence[str] | None
    constants: Mapping[str, Any]

    def parameters(self, values: Mapping[str, Any]) -> Any:
        """As the driver wants them."""
        known = {**self.constants, **values}
        return known if self.order is None else [known[name] for name in self.order]


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


def _translate(error: Exception) -> OSError:
    """A database that has no room or does not answer, in the words of the rest."""
    text = str(error.orig if isinstance(error, DBAPIError) else error)
    if "disk is full" in text or "No space" in text:
        return fail(errno.ENOSPC, "the service's disk is full")
    if "locked" in text or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return Unavailable(f"the database is busy: {text}")
    return fail(errno.EIO, f"the database failed: {text}")
