"""Rows of chunks and replicas, and what always holds between them.

``refs`` is the number of extents that name a chunk, ``copies`` the number of its replica rows; every
change of these rows in the directory is one of the functions here. They run inside a transaction of the
caller: a chunk that is added must be referenced before it ends, so that nobody else ever sees a chunk
that is neither referenced nor condemned. A condemned chunk is never revived.

A new replica row bears the number of its server's running (or last) inventory, so that the end of that
inventory does not take it for missing.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Integer, bindparam, case, delete, func, insert, select, update

from servers.database import Prepared
from servers.directory.schema import chunks, replicas, servers
from wire.tickets import Receipt

log = logging.getLogger(__name__)

IDS_MAX = 1000
"""The most ids in one statement."""

# On the way of every commit.
_STATE = Prepared(select(chunks.c.condemned_at, chunks.c.copies).where(chunks.c.id == bindparam("chunk")))
_REFERENCE = Prepared(
    update(chunks)
    .where(chunks.c.id == bindparam("chunk"))
    .values(refs=chunks.c.refs + bindparam("count", type_=Integer))
)
_INVENTORY_NUMBERS = Prepared(select(servers.c.id, servers.c.inventory))
_INSERT_CHUNKS = Prepared(insert(chunks), ["id", "size", "refs", "copies"])
_INSERT_REPLICAS = Prepared(insert(replicas))


def batches(ids: Iterable[bytes], size: int = IDS_MAX) -> Iterator[list[bytes]]:
    """``ids`` in lists of up to ``size``; without it they fit one statement."""
    rest = list(ids)
    for start in range(0, len(rest), size):
        yield rest[start : start + size]


def add_chunks(connection: Connection, receipts: Sequence[Receipt]) -> None:
    """Makes chunks known, with their replicas in the order of the receipt; of a known chunk, replicas that
    are missing are added after the others. A condemned chunk, and a server that never registered, is left
    out; a chunk with no registered server stays unknown."""
    numbers = _inventory_numbers(connection)
    wanted: dict[bytes, list[int]] = {}
    for receipt in receipts:
        has = wanted.setdefault(receipt.chunk, [])
        has += [
            server for server in dict.fromkeys(receipt.servers) if server in numbers and server not in has
        ]
    condemned_at: dict[bytes, float | None] = {}
    for chunk in wanted:
        if state := _STATE.run(connection, chunk=chunk).fetchone():
            condemned_at[chunk] = state[0]
    sizes = {receipt.chunk: receipt.size for receipt in receipts}
    new = {chunk: has for chunk, has in wanted.items() if has and chunk not in condemned_at}
    _insert_chunks(connection, new, sizes, numbers)
    living = [chunk for chunk, condemned in condemned_at.items() if condemned is None]
    _complete(connection, {chunk: wanted[chunk] for chunk in living}, numbers)


def usable(connection: Connection, ids: Iterable[bytes]) -> set[bytes]:
    """Those that are known, not condemned, and have a replica."""
    return {chunk for chunk in ids if _is_usable(_STATE.run(connection, chunk=chunk).fetchone())}


def _is_usable(state: Sequence[Any] | None) -> bool:
    if state is None:
        return False
    condemned_at, copies = state
    return condemned_at is None and copies > 0


def reference(connection: Connection, counts: Mapping[bytes, int]) -> None:
    """As many extents more name each chunk."""
    _REFERENCE.run_many(connection, ({"chunk": chunk, "count": count} for chunk, count in counts.items()))


def dereference(connection: Connection, counts: Mapping[bytes, int], now: float) -> None:
    """As many extents less name each chunk; one that no extent names is condemned. ``now`` in seconds."""
    if counts:
        unnamed = chunks.c.refs == bindparam("count")
        connection.execute(
            update(chunks)
            .where(chunks.c.id == bindparam("chunk"))
            .values(
                refs=chunks.c.refs - bindparam("count"),
                condemned_at=case((unnamed, bindparam("now")), else_=chunks.c.condemned_at),
            ),
            [{"chunk": chunk, "count": count, "now": now} for chunk, count in counts.items()],
        )


def locations(connection: Connection, ids: Sequence[bytes]) -> dict[bytes, list[int]]:
    """The servers that have each chunk, by rank; an empty list where none has it."""
    found: dict[bytes, list[int]] = {chunk: [] for chunk in ids}
    for some in batches(found):
        query = (
            select(replicas.c.chunk, replicas.c.server)
            .where(replicas.c.chunk.in_(some))
            .order_by(replicas.c.chunk, replicas.c.rank, replicas.c.server)
        )
        for chunk, server in connection.execute(query):
            found[chunk].append(server)
    return found


def add_replicas(connection: Connection, server: int, ids: Iterable[bytes]) -> set[bytes]:
    """Records that a registered ``server`` has these chunks, as its running inventory's; returns those that
    are known. Condemned ones are recorded too: they are to be deleted there."""
    numbers = _inventory_numbers(connection)
    known: set[bytes] = set()
    for some in batches(ids):
        known.update(connection.scalars(select(chunks.c.id).where(chunks.c.id.in_(some))))
    _complete(connection, {chunk: [server] for chunk in known}, numbers)
    for some in batches(known):
        connection.execute(
            update(replicas)
            .where(replicas.c.chunk.in_(some), replicas.c.server == server)
            .values(inventory=numbers[server])
        )
    return known


def remove_replicas(connection: Connection, server: int, ids: Iterable[bytes]) -> int:
    """Records that ``server`` has these chunks no more; returns how many it had."""
    removed = 0
    for some in batches(dict.fromkeys(ids)):
        here = (replicas.c.server == server, replicas.c.chunk.in_(some))
        had = connection.scalars(select(replicas.c.chunk).where(*here)).all()
        if not had:
            continue
        connection.execute(delete(replicas).where(*here))
        connection.execute(update(chunks).where(chunks.c.id.in_(had)).values(copies=chunks.c.copies - 1))
        _report_lost(connection, had)
        removed += len(had)
    return removed


def count_chunks(connection: Connection) -> tuple[int, int]:
    """How many chunks are known, and how many of them are condemned."""
    row = connection.execute(
        select(func.count(), func.count(chunks.c.condemned_at)).select_from(chunks)
    ).one()
    return row[0], row[1]


def _report_lost(connection: Connection, ids: Sequence[bytes]) -> None:
    lost = connection.scalars(
        select(chunks.c.id).where(chunks.c.id.in_(ids), chunks.c.copies == 0, chunks.c.condemned_at.is_(None))
    ).all()
    if lost:
        log.error("%d chunks have no replica any more, one is %s", len(lost), lost[0].hex())


def _inventory_numbers(connection: Connection) -> dict[int, int]:
    return dict(_INVENTORY_NUMBERS.run(connection).fetchall())


def _insert_chunks(
    connection: Connection,
    new: Mapping[bytes, Sequence[int]],
    sizes: Mapping[bytes, int],
    numbers: Mapping[int, int],
) -> None:
    _INSERT_CHUNKS.run_many(
        connection,
        ({"id": chunk, "size": sizes[chunk], "refs": 0, "copies": len(has)} for chunk, has in new.items()),
    )
    _INSERT_REPLICAS.run_many(
        connection,
        (
            {"chunk": chunk, "server": server, "rank": rank, "inventory": numbers[server]}
            for chunk, has in new.items()
            for rank, server in enumerate(has)
        ),
    )


def _complete(
    connection: Connection, wanted: Mapping[bytes, Sequence[int]], numbers: Mapping[int, int]
) -> None:
    """Adds the replicas that known chunks are missing, behind those that they have."""
    ranks: dict[bytes, dict[int, int]] = defaultdict(dict)
    for some in batches(wanted):
        query = select(replicas.c.chunk, replicas.c.server, replicas.c.rank)
        for chunk, server, rank in connection.execute(query.where(replicas.c.chunk.in_(some))):
            ranks[chunk][server] = rank
    rows = []
    for chunk, has in wanted.items():
        free = max(ranks[chunk].values(), default=-1) + 1
        missing = [server for server in has if server not in ranks[chunk]]
        for rank, server in enumerate(missing, free):
            rows.append({"chunk": chunk, "server": server, "rank": rank, "inventory": numbers[server]})
    if rows:
        _INSERT_REPLICAS.run_many(connection, rows)
        connection.execute(
            update(chunks).where(chunks.c.id == bindparam("of")).values(copies=chunks.c.copies + 1),
            [{"of": row["chunk"]} for row in rows],
        )
