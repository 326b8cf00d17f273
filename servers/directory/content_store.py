"""Persistence of versions and extents. No rules. (Chunks and replicas: servers.directory.chunks.)"""

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import Connection, bindparam, insert, or_, select, update

from servers.database import Prepared
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
_END = update(extents).where(*_LIVE).values(until=bindparam("now"))
_END_EXTENT = Prepared(_END.where(extents.c.index == bindparam("at")))
_END_EXTENTS_FROM = Prepared(_END.where(extents.c.index >= bindparam("at")))
_ADD_VERSION = Prepared(insert(versions), ["ino", "version", "size", "commit_id", "until"])
_ADD_EXTENTS = Prepared(insert(extents))
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
_RANGE_NOW = Prepared(_RANGE.where(extents.c.until.is_(None)))
_RANGE_AT = Prepared(
    _RANGE.where(
        extents.c.since <= bindparam("version"),
        or_(extents.c.until.is_(None), extents.c.until > bindparam("version")),
    )
)


def commit_id(connection: Connection, ino: int, version: int) -> bytes | None:
    """Of the commit that made this version; None if no commit did."""
    return connection.scalar(_COMMIT_ID, {"ino": ino, "version": version})


def version_of(connection: Connection, ino: int, commit: bytes) -> int:
    """The retained version that this commit made, or 0."""
    return connection.scalar(_VERSION_OF, {"ino": ino, "commit_id": commit}) or 0


def add_version(connection: Connection, ino: int, version: int, size: int, commit: bytes) -> None:
    """A version that is current."""
    _ADD_VERSION.run(connection, ino=ino, version=version, size=size, commit_id=commit, until=None)


def end_extents(connection: Connection, ino: int, indices: Sequence[int], now: int) -> int:
    """At these indices nothing of the version before ``now`` stands any more. How many did."""
    if not indices:
        return 0
    return _END_EXTENT.run_many(connection, ({"of": ino, "at": index, "now": now} for index in indices))


def end_extents_from(connection: Connection, ino: int, first: int, now: int) -> int:
    """As ``end_extents``, for all indices from ``first`` on."""
    return _END_EXTENTS_FROM.run(connection, of=ino, at=first, now=now).rowcount


def add_extents(connection: Connection, ino: int, now: int, placed: Iterable[tuple[int, bytes]]) -> None:
    """``(index, chunk)`` pairs that stand from version ``now`` on."""
    rows = [
        {"ino": ino, "index": index, "since": now, "until": None, "chunk": chunk} for index, chunk in placed
    ]
    _ADD_EXTENTS.run_many(connection, rows)


def get_extents(
    connection: Connection, ino: int, first: int, end: int, version: int | None = None
) -> list[Extent]:
    """The chunks at ``first`` up to, not including, ``end``, of the current version or of ``version``."""
    if version is None:
        found = _RANGE_NOW.run(connection, ino=ino, first=first, end=end)
    else:
        found = _RANGE_AT.run(connection, ino=ino, first=first, end=end, version=version)
    return [Extent(*row) for row in found.fetchall()]


# Versions that were replaced


class OldVersion(msgspec.Struct):
    """A version that was replaced: its size in bytes, and the file's mode, owners and ACL until then."""

    size: int
    mode: int
    uid: int
    gid: int
    acl: bytes


_VERSION = (versions.c.ino == bindparam("of"), versions.c.version == bindparam("old"))
_END_VERSION = Prepared(
    update(versions)
    .where(*_VERSION)
    .values(
        until=bindparam("now"),
        mode=bindparam("had"),
        uid=bindparam("by"),
        gid=bindparam("group"),
        acl=bindparam("entries"),
    )
)
_OLD_VERSION = select(versions.c.size, versions.c.mode, versions.c.uid, versions.c.gid, versions.c.acl).where(
    *_VERSION, versions.c.until.is_not(None)
)


def end_version(connection: Connection, inode: Inode, now: int) -> None:
    """The version of ``inode`` was replaced by ``now``. (One that no commit made has no row.)"""
    _END_VERSION.run(
        connection,
        of=inode.ino,
        old=inode.version,
        now=now,
        had=inode.mode,
        by=inode.uid,
        group=inode.gid,
        entries=inode.acl,
    )


def old_version(connection: Connection, ino: int, version: int) -> OldVersion | None:
    """A retained version that a commit made and another has replaced; None if there is none."""
    row = connection.execute(_OLD_VERSION, {"of": ino, "old": version}).first()
    return None if row is None else OldVersion(*row)
