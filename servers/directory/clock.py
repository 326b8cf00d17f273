"""The directory's clock and its counter of inode numbers.

Both live in memory and are written once a transaction. ``tick`` and ``new_inos`` are called only inside a
change of the database (``Database.write``), one at a time, so they need no lock. After a rollback memory is
ahead of the database: that makes gaps, which harm nobody. What a crash takes back was never told to anyone.
"""

from collections.abc import Callable

from sqlalchemy import Connection, bindparam, insert, select, update

from servers.database import Prepared
from servers.directory.schema import meta
from wire.messages.directory import ROOT_INO

_SAVE = Prepared(update(meta).where(meta.c.key == bindparam("at_key")), ["value"])


class Clock:
    """Strictly increasing nanoseconds, over restarts too. ``now_ns`` is the machine's clock."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._last = 0
        self._next_ino = ROOT_INO + 1

    def load(self, connection: Connection) -> bool:
        """Goes on where the database says; False if it is new, and then has the rows from now on."""
        rows = dict(connection.execute(select(meta.c.key, meta.c.value)).all())
        if "clock" in rows:
            self._last, self._next_ino = rows["clock"], rows["next_ino"]
            return True
        connection.execute(
            insert(meta), [{"key": "clock", "value": 0}, {"key": "next_ino", "value": self._next_ino}]
        )
        return False

    def tick(self) -> int:
        """The next value: the time, or one more than the last value if the time is not later."""
        self._last = max(self._now_ns(), self._last + 1)
        return self._last

    def new_inos(self, count: int) -> range:
        """Numbers that no inode ever had."""
        first = self._next_ino
        self._next_ino += count
        return range(first, self._next_ino)

    def now_seconds(self) -> float:
        """The machine's time, in seconds since the epoch."""
        return self._now_ns() / 1e9

    def save(self, connection: Connection) -> None:
        """Before the commit of every transaction that ticked or took numbers."""
        rows = ({"at_key": "clock", "value": self._last}, {"at_key": "next_ino", "value": self._next_ino})
        _SAVE.run_many(connection, rows)
