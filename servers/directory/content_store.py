"""Persistence of versions and extents. No rules. (Chunks and replicas: servers.directory.chunks.)"""

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import Connection, bindparam, insert, or_, select, update

from servers.directory.schema import chunks, extents, versions
from servers.directory.store import Inode


class Extent(msgspec.Struct):
    """A chunk at an index of a file; its ``size`` is in bytes."""

    index: int
    chunk: bytes
    size: int


_COMMIT_ID = select(versions.c.commit_id).where(
    versions.c.ino == bindparam("ino"), versions.c.version == bindparam("version")
)
_VERSION_OF = select(versions.c.version).where(
    versions.c.ino == bindparam("ino"), versions.c.commit_id == bindparam("commit_id")
)
_LIVE = (extents.c.ino == bindparam("of"), extents.c.until.is_(None))
_END_EXTENT = update(extents).where(*_LIVE, extents.c.index == bindparam("at")).values(until=bindparam("now"))
_END_EXTENTS_FROM = (
    update(extents).where(*_LIVE, extents.c.index >= bindparam("at")).values(until=bindparam("now"))
)
_ADD_VERSION = insert(versions)
_ADD_EXTENTS = insert(extents)
_RANGE = (
    select(extents.c.index, extents.c.chunk, chunks.c.size)
    .join(chunks, chunks.c.id == extents.c.chunk)
    .where(
        extents.c.ino == bindparam("ino"),
        extents.c.index >= bindparam("first"),
        extents.c.index < bindparam("end"),
    )
    .order_by(extents.c.index)
)
_RANGE_NOW = _RANGE.where(extents.c.until.is_(None))
_RANGE_AT = _RANGE.where(
    extents.c.since <= bindparam("version"),
    or_(extents.c.until.is_(None), extents.c.until > bindparam("version")),
)


def commit_id(connection: Connection, ino: int, version: int) -> bytes | None:
    """Of the commit that made this version; None if no commit did."""
    return connection.scalar(_COMMIT_ID, {"ino": ino, "version": version})


def version_of(connection: Connection, ino: int, commit: bytes) -> int:
    """The retained version that this commit made, or 0."""
    return connection.scalar(_VERSION_OF, {"ino": ino, "commit_id": commit}) or 0


def add_version(connection: Connection, ino: int, version: int, size: int, commit: bytes) -> None:
    """A version that is current."""
    connection.execute(
        _ADD_VERSION, {"ino": ino, "version": version, "size": size, "commit_id": commit, "until": None}
    )


def end_extents(connection: Connection, ino: int, indices: Sequence[int], now: int) -> None:
    """At these indices nothing of the version before ``now`` stands any more."""
    if indices:
        connection.execute(_END_EXTENT, [{"of": ino, "at": index, "now": now} for index in indices])


def end_extents_from(connection: Connection, ino: int, first: int, now: int) -> None:
    """As ``end_extents``, for all indices from ``first`` on."""
    connection.execute(_END_EXTENTS_FROM, {"of": ino, "at": first, "now": now})


def add_extents(connection: Connection, ino: int, now: int, placed: Iterable[tuple[int, bytes]]) -> None:
    """``(index, chunk)`` pairs that stand from version ``now`` on."""
    rows = [
        {"ino": ino, "index": index, "since": now, "until": None, "chunk": chunk} for index, chunk in placed
    ]
    if rows:
        connection.execute(_ADD_EXTENTS, rows)


def get_extents(
    connection: Connection, ino: int, first: int, end: int, version: int | None = None
) -> list[Extent]:
    """The chunks at ``first`` up to, not including, ``end``, of the current version or of ``version``."""
    arguments = {"ino": ino, "first": first, "end": end}
    if version is None:
        rows = connection.execute(_RANGE_NOW, arguments)
    else:
        rows = connection.execute(_RANGE_AT, {**arguments, "version": version})
    return [Extent(*row) for row in rows]


# Versions that were replaced


class OldVersion(msgspec.Struct):
    """A version that was replaced: its size in bytes, and the file's mode and owners until then."""

    size: int
    mode: int
    uid: int
    gid: int


_VERSION = (versions.c.ino == bindparam("of"), versions.c.version == bindparam("old"))
_END_VERSION = (
    update(versions)
    .where(*_VERSION)
    .values(until=bindparam("now"), mode=bindparam("had"), uid=bindparam("by"), gid=bindparam("group"))
)
_OLD_VERSION = select(versions.c.size, versions.c.mode, versions.c.uid, versions.c.gid).where(
    *_VERSION, versions.c.until.is_not(None)
)


def end_version(connection: Connection, inode: Inode, now: int) -> None:
    """The version of ``inode`` was replaced by ``now``. (One that no commit made has no row.)"""
    row = {"of": inode.ino, "old": inode.version, "now": now}
    connection.execute(_END_VERSION, {**row, "had": inode.mode, "by": inode.uid, "group": inode.gid})


def old_version(connection: Connection, ino: int, version: int) -> OldVersion | None:
    """A retained version that a commit made and another has replaced; None if there is none."""
    row = connection.execute(_OLD_VERSION, {"of": ino, "old": version}).first()
    return None if row is None else OldVersion(*row)
