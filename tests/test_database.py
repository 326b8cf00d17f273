"""A service's database: groups, failures, and what others may do to its files meanwhile."""

import errno
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, ForeignKey, Integer, MetaData, Table, bindparam, insert, select

from servers.database import Database, Prepared, sqlite_url
from servers.run import listening_sockets

_metadata = MetaData()
_parents = Table("parents", _metadata, Column("id", Integer, primary_key=True))
_children = Table(
    "children",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("parent", ForeignKey("parents.id", deferrable=True, initially="DEFERRED")),
)
_ADD = Prepared(insert(_parents))
_FIND = Prepared(select(_parents.c.id).where(_parents.c.id == bindparam("of")))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(sqlite_url(tmp_path / "x.db"), _metadata)
    yield database
    database.close()


def has(database: Database, number: int) -> bool:
    with database.read() as connection:
        return _FIND.run(connection, of=number).fetchone() is not None


def test_a_change_that_raises_leaves_nothing(database: Database) -> None:
    def change(connection: Connection) -> None:
        _ADD.run(connection, id=1)
        raise OSError(errno.EDOM, "no")

    with pytest.raises(OSError, match="no"):
        database.write(change)
    assert not has(database, 1)


def test_what_the_driver_raises_is_an_oserror(database: Database) -> None:
    database.write(lambda connection: _ADD.run(connection, id=1))
    with pytest.raises(OSError) as caught:
        database.write(lambda connection: _ADD.run(connection, id=1))
    assert caught.value.errno == errno.EIO
    database.write(lambda connection: _ADD.run_many(connection, [{"id": 2}, {"id": 3}]))
    assert [has(database, number) for number in (1, 2, 3, 4)] == [True, True, True, False]


def test_a_commit_that_fails_does_no_harm_to_the_next(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    database._writer.connection.cursor().execute("PRAGMA foreign_keys=ON")
    add_child = Prepared(insert(_children))
    with pytest.raises(OSError, match="FOREIGN KEY"):
        database.write(lambda connection: add_child.run(connection, id=1, parent=9))
    assert "nothing of its group was done" in caplog.text
    database.write(lambda connection: _ADD.run(connection, id=9))
    database.write(lambda connection: add_child.run(connection, id=1, parent=9))


def test_looking_for_listening_sockets_leaves_sqlites_locks_alone(database: Database, tmp_path: Path) -> None:
    """Without them an outside look would take itself for the only user, and remove the log at its end."""
    database.write(lambda connection: _ADD.run(connection, id=1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert listener.fileno() in [found.fileno() for found in listening_sockets()]
        assert listener.getsockname()
    look = (
        "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('select * from parents').fetchall())"
    )
    words = [sys.executable, "-c", look, str(tmp_path / "x.db")]
    seen = subprocess.run(words, capture_output=True, text=True, check=True)
    assert seen.stdout == "[(1,)]\n"
    assert (tmp_path / "x.db-wal").exists()
