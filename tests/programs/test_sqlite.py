"""SQLite, by turns on two mounts: each finds what the other committed, whole."""

import sqlite3
from contextlib import closing

import pytest

from tests.programs.sides import Sides
from tests.support.times import wait_until

ROWS = 100


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist"])
def test_by_turns(sides: Sides, journal: str) -> None:
    with closing(sqlite3.connect(sides.mounts[0] / "base.db")) as base:
        base.execute("pragma page_size=1024")
        base.execute(f"pragma journal_mode={journal}")
        base.execute("create table numbers (number integer primary key, turn integer, text text)")
        base.execute("create index turns on numbers (turn)")
    for turn in range(4):
        with closing(sqlite3.connect(sides.mounts[turn % 2] / "base.db")) as base:
            base.execute(f"pragma journal_mode={journal}")
            write(base, turn)
            assert base.execute("pragma integrity_check").fetchall() == [("ok",)]
            assert counts(base) == dict.fromkeys(range(turn + 1), ROWS - 34)
    for mount in sides.mounts:
        with closing(sqlite3.connect(mount / "base.db")) as base:
            assert len(counts(base)) == 4


def write(base: sqlite3.Connection, turn: int) -> None:
    """Some transactions: 66 rows of this turn are left, and nothing of the one that is undone."""
    with base:
        rows = ((turn * ROWS + number, turn, "x" * number * 7) for number in range(ROWS))
        base.executemany("insert into numbers values (?, ?, ?)", rows)
    with base:
        base.execute("delete from numbers where turn = ? and number % ? % 3 = 0", (turn, ROWS))
    with pytest.raises(ZeroDivisionError), base:
        base.execute("delete from numbers")
        raise ZeroDivisionError
    for number in range(3):
        with base:
            base.execute("update numbers set text = text || ? where turn = ?", (f" {number}", turn))


def counts(base: sqlite3.Connection) -> dict[int, int]:
    """How many rows there are of each turn."""
    return dict(base.execute("select turn, count(*) from numbers group by turn order by turn").fetchall())


def test_a_hot_journal_is_rolled_back_on_the_other_mount(sides: Sides) -> None:
    """Its program was killed in the middle of a commit: the journal is there, the database half written."""
    one, two = sides.mounts
    with closing(sqlite3.connect(one / "base.db")) as base:
        base.execute("create table numbers (number integer, text text)")
        with base:
            base.executemany("insert into numbers values (?, ?)", ((n, "before" * 100) for n in range(200)))
    spoil = (
        "import os, sqlite3; base = sqlite3.connect('base.db', isolation_level=None);"
        "base.execute('pragma cache_size=2'); base.execute('begin exclusive');"
        "base.execute(\"update numbers set text = 'after'\"); os._exit(0)"
    )
    sides.run_in(one, "python3", "-c", spoil)
    assert (two / "base.db-journal").stat().st_size > 0
    with closing(sqlite3.connect(two / "base.db")) as base:
        assert base.execute("select count(*), min(length(text)) from numbers").fetchone() == (200, 600)
        assert base.execute("pragma integrity_check").fetchall() == [("ok",)]
    wait_until(lambda: not (one / "base.db-journal").exists(), 5)


def test_a_write_ahead_log_on_one_mount(sides: Sides) -> None:
    one, two = sides.mounts
    with (
        closing(sqlite3.connect(one / "base.db")) as base,
        closing(sqlite3.connect(one / "base.db")) as other,
    ):
        assert base.execute("pragma journal_mode=wal").fetchone() == ("wal",)
        base.execute("create table numbers (number integer)")
        for number in range(20):
            with base:
                base.execute("insert into numbers values (?)", (number,))
            assert other.execute("select max(number) from numbers").fetchone() == (number,)
    with closing(sqlite3.connect(two / "base.db")) as base:
        assert base.execute("select count(*) from numbers").fetchone() == (20,)
        assert base.execute("pragma journal_mode=delete").fetchone() == ("delete",)


def test_vacuum_and_a_backup(sides: Sides) -> None:
    one, two = sides.mounts
    with closing(sqlite3.connect(one / "base.db")) as base, closing(sqlite3.connect(two / "copy.db")) as copy:
        base.execute("create table blobs (blob)")
        with base:
            base.executemany("insert into blobs values (randomblob(50000))", ((),) * 30)
        with base:
            base.execute("delete from blobs where rowid % 2")
        base.execute("vacuum")
        base.backup(copy)
    for path in (two / "base.db", one / "copy.db"):
        with closing(sqlite3.connect(path)) as base:
            assert base.execute("select sum(length(blob)) from blobs").fetchone() == (750_000,)
            assert base.execute("pragma integrity_check").fetchall() == [("ok",)]
