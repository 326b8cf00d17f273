"""Inventories: what file servers say they have, against what the directory believes.

An inventory has a number, ``servers.inventory``, raised when its first page comes. Every replica row that
is named, or added while it runs (by a receipt or a copy), bears that number; at the end the rows with an
older one go. A chunk that is stored while the server lists must be in one or the other: so a server sends
an empty first page, and lists its chunks after that was answered.
"""

from functools import partial

from sqlalchemy import Connection, select, update

from servers.database import Database
from servers.directory.chunks import add_replicas, batches, remove_replicas
from servers.directory.schema import replicas, servers
from wire.messages.directory import Inventory

ROWS_MAX = 250
"""The most rows that one transaction touches."""


def take_page(database: Database, server_id: int, page: Inventory) -> list[bytes]:
    """Records one page, in several transactions; returns the chunks that the directory does not know.
    A page may be repeated."""
    if page.first:
        database.write(lambda connection: _begin(connection, server_id))
    unknown: list[bytes] = []
    for ids in batches(page.chunks, ROWS_MAX):
        known = database.write(partial(add_replicas, server=server_id, ids=ids))
        unknown += [chunk for chunk in ids if chunk not in known]
    if page.last:
        while database.write(lambda connection: _remove_unnamed(connection, server_id)) == ROWS_MAX:
            pass
    return unknown


def _begin(connection: Connection, server_id: int) -> None:
    connection.execute(
        update(servers).where(servers.c.id == server_id).values(inventory=servers.c.inventory + 1)
    )


def _remove_unnamed(connection: Connection, server_id: int) -> int:
    number = select(servers.c.inventory).where(servers.c.id == server_id).scalar_subquery()
    old = connection.scalars(
        select(replicas.c.chunk)
        .where(replicas.c.server == server_id, replicas.c.inventory < number)
        .limit(ROWS_MAX)
    ).all()
    return remove_replicas(connection, server_id, old)
