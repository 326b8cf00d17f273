"""The sessions that have feeds, as a later process must know them (see schema.feeds)."""

from collections.abc import Iterable

from sqlalchemy import Connection, delete, insert, select

from servers.database import Database
from servers.directory.schema import feeds


class FeedRows:
    """For one thread at a time. ``before``: the sessions that were there at the start, and their leases."""

    def __init__(self, database: Database) -> None:
        self._database = database
        with database.read() as connection:
            rows = connection.execute(select(feeds.c.session, feeds.c.lease_seconds)).all()
        self.before: dict[int, float] = dict(tuple(row) for row in rows)
        self._leases = dict(self.before)

    @property
    def sessions(self) -> list[int]:
        """All that are recorded."""
        return list(self._leases)

    def record(self, session: int, lease_seconds: float) -> None:
        """Durably, if it is not yet: may be believed for so long."""
        if self._leases.get(session, 0.0) >= lease_seconds:
            return

        def change(connection: Connection) -> None:
            connection.execute(delete(feeds).where(feeds.c.session == session))
            connection.execute(insert(feeds), {"session": session, "lease_seconds": lease_seconds})

        self._database.write(change)
        self._leases[session] = lease_seconds

    def forget(self, sessions: Iterable[int]) -> None:
        """They believe nothing."""
        gone = list(sessions)
        if gone:
            self._database.write(lambda connection: _delete(connection, gone))
            for session in gone:
                self._leases.pop(session, None)


def _delete(connection: Connection, sessions: list[int]) -> None:
    connection.execute(delete(feeds).where(feeds.c.session.in_(sessions)))
