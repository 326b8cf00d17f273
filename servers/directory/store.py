"""Persistence of inodes, entries, extended attributes, reservations and holds. No rules.

Every statement is built once: on the hot paths their making would cost more than their running.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, bindparam, case, delete, func, insert, literal, select, update

from servers.database import Prepared
from servers.directory.schema import entries, holds, inodes, reserved, xattrs
from wire.messages.directory import ROOT_INO, Attr, Entry

WALK_NAMES_MAX = 16
"""Names resolved by one statement; longer paths take several."""


class Inode(msgspec.Struct):
    """A row of ``inodes``, in the order of its columns."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime: int
    mtime: int
    ctime: int
    version: int
    change: int
    xattrs: int
    token: int
    parent: int | None = None
    target: bytes | None = None
    acl: bytes = b""
    holes: int = 0

    def attr(self) -> Attr:
        """What is told of it."""
        return Attr(
            self.ino,
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            self.rdev,
            self.size,
            self.atime,
            self.mtime,
            self.ctime,
            self.version,
            self.change,
            self.xattrs > 0,
            self.acl,
            self.holes,
        )


_GET = Prepared(select(inodes).where(inodes.c.ino == bindparam("of")))
_GET_MANY = select(inodes).where(inodes.c.ino.in_(bindparam("inos", expanding=True)))
_INSERT_INODES = Prepared(insert(inodes))
_ADD_ENTRY = Prepared(insert(entries))
_UPDATE = Prepared(
    update(inodes).where(inodes.c.ino == bindparam("key")), [c.name for c in inodes.c if c.name != "ino"]
)
_CHILD = Prepared(
    select(entries.c.ino.label("named"), inodes)
    .outerjoin(inodes, inodes.c.ino == entries.c.ino)
    .where(entries.c.parent == bindparam("of_parent"), entries.c.name == bindparam("of_name"))
)
_ANY_CHILD = select(entries.c.ino).where(entries.c.parent == bindparam("parent")).limit(1)
_ENTRY = (entries.c.parent == bindparam("at_parent"), entries.c.name == bindparam("at_name"))
_REMOVE_ENTRY = Prepared(delete(entries).where(*_ENTRY))
_POINT_ENTRY = update(entries).where(*_ENTRY).values(ino=bindparam("to"))
_NAMES_OF = (
    select(entries.c.ino, entries.c.parent, entries.c.name)
    .where(entries.c.ino.in_(bindparam("inos", expanding=True)))
    .order_by(entries.c.ino, entries.c.parent, entries.c.name)
)
_PAGE = (
    select(entries.c.name, entries.c.cookie, inodes)
    .join(inodes, inodes.c.ino == entries.c.ino)
    .where(entries.c.parent == bindparam("parent"), entries.c.cookie > bindparam("after"))
    .order_by(entries.c.cookie)
    .limit(bindparam("count"))
)
_HELD = select(holds.c.ino).where(
    holds.c.session == bindparam("session"), holds.c.ino.in_(bindparam("inos", expanding=True))
)
_DROP = delete(holds).where(holds.c.ino == bindparam("at_ino"), holds.c.session == bindparam("at_session"))
_USE_UP = Prepared(
    delete(reserved).where(
        reserved.c.ino == bindparam("at_ino"), reserved.c.session == bindparam("at_session")
    )
)
_XATTRS = select(xattrs.c.name, xattrs.c.value).where(xattrs.c.ino == bindparam("ino"))
_XATTR = Prepared(
    select(xattrs.c.value).where(xattrs.c.ino == bindparam("of"), xattrs.c.name == bindparam("called"))
)
_XATTR_SIZES = select(xattrs.c.name, func.length(xattrs.c.value)).where(xattrs.c.ino == bindparam("ino"))
_REMOVE_XATTR = delete(xattrs).where(
    xattrs.c.ino == bindparam("at_ino"), xattrs.c.name == bindparam("at_name")
)


def _make_chain() -> Select[Any]:
    up = (
        select(inodes, literal(0).label("depth"))
        .where(inodes.c.ino == bindparam("ino"))
        .cte("up", recursive=True)
    )
    above = inodes.alias("above")
    up = up.union_all(select(above, up.c.depth + 1).where(above.c.ino == up.c.parent, up.c.ino != ROOT_INO))
    return select(*(up.c[column.name] for column in inodes.c)).order_by(up.c.depth)


_CHAIN = _make_chain()


@cache
def _walk(count: int) -> Prepared:
    """From the inode ``parent`` along the names ``n0`` … : the inodes met, the first one included."""
    start = select(literal(0).label("depth"), inodes.c.ino).where(inodes.c.ino == bindparam("parent"))
    way = start.cte("way", recursive=True)
    name = case({depth: bindparam(f"n{depth}") for depth in range(count)}, value=way.c.depth)
    step = select(way.c.depth + 1, entries.c.ino).where(entries.c.parent == way.c.ino, entries.c.name == name)
    way = way.union_all(step)
    return Prepared(select(inodes).join(way, way.c.ino == inodes.c.ino).order_by(way.c.depth))


# Inodes


def get_inode(connection: Connection, ino: int) -> Inode | None:
    """The inode, or None."""
    row = _GET.run(connection, of=ino).fetchone()
    return None if row is None else Inode(*row)


def get_inodes(connection: Connection, inos: Iterable[int]) -> dict[int, Inode]:
    """Those that are there."""
    rows = connection.execute(_GET_MANY, {"inos": list(inos)})
    return {row[0]: Inode(*row) for row in rows}


def insert_inodes(connection: Connection, new: Iterable[Inode]) -> None:
    """New rows."""
    _INSERT_INODES.run_many(connection, map(msgspec.structs.asdict, new))


def update_inodes(connection: Connection, changed: Iterable[Inode]) -> None:
    """Writes whole rows."""
    _UPDATE.run_many(connection, ({**msgspec.structs.asdict(inode), "key": inode.ino} for inode in changed))


def chain(connection: Connection, ino: int) -> list[Inode]:
    """The directory and all above it, the root last."""
    return [Inode(*row) for row in connection.execute(_CHAIN, {"ino": ino})]


def walk(connection: Connection, parent: int, names: Sequence[bytes]) -> list[Inode]:
    """``parent`` and the inodes that the names lead to, as far as they do."""
    met = _walk_some(connection, parent, names[:WALK_NAMES_MAX])
    done = WALK_NAMES_MAX
    while done < len(names) and len(met) == done + 1:
        met += _walk_some(connection, met[-1].ino, names[done : done + WALK_NAMES_MAX])[1:]
        done += WALK_NAMES_MAX
    return met


def _walk_some(connection: Connection, parent: int, names: Sequence[bytes]) -> list[Inode]:
    if not names:
        only = get_inode(connection, parent)
        return [] if only is None else [only]
    steps = {f"n{depth}": name for depth, name in enumerate(names)}
    return [Inode(*row) for row in _walk(len(names)).run(connection, parent=parent, **steps).fetchall()]


# Entries


def get_child(connection: Connection, parent: int, name: bytes) -> tuple[int, Inode | None] | None:
    """The number that the entry names, and its inode if that is written already; None without entry."""
    row = _CHILD.run(connection, of_parent=parent, of_name=name).fetchone()
    if row is None:
        return None
    return row[0], None if row[1] is None else Inode(*row[1:])


def is_empty(connection: Connection, directory: int) -> bool:
    """Whether no entry is in it."""
    return connection.execute(_ANY_CHILD, {"parent": directory}).first() is None


def add_entry(connection: Connection, parent: int, name: bytes, ino: int, cookie: int) -> None:
    """A new entry; ``cookie`` is the clock's value of this change."""
    _ADD_ENTRY.run(connection, parent=parent, name=name, ino=ino, cookie=cookie)


def remove_entry(connection: Connection, parent: int, name: bytes) -> None:
    """The entry goes, what it named stays."""
    _REMOVE_ENTRY.run(connection, at_parent=parent, at_name=name)


def point_entry(connection: Connection, parent: int, name: bytes, ino: int) -> None:
    """An entry that exists names ``ino`` from now on; the name was there all the time, so its cookie
    stays."""
    connection.execute(_POINT_ENTRY, {"at_parent": parent, "at_name": name, "to": ino})


def names_of(connection: Connection, inos: Iterable[int]) -> dict[int, list[tuple[int, bytes]]]:
    """The entries ``(parent, name)`` of each inode that has one."""
    found: dict[int, list[tuple[int, bytes]]] = {}
    for ino, parent, name in connection.execute(_NAMES_OF, {"inos": list(inos)}):
        found.setdefault(ino, []).append((parent, name))
    return found


def page(connection: Connection, parent: int, after: int, count: int) -> list[Entry]:
    """Entries with cookies above ``after``, in their order."""
    rows = connection.execute(_PAGE, {"parent": parent, "after": after, "count": count})
    return [Entry(row[0], Inode(*row[2:]).attr(), row[1]) for row in rows]


# Reservations and holds


def reserve(connection: Connection, inos: Iterable[int], session: int, at: float) -> None:
    """The numbers belong to ``session`` until they are used, since ``at`` (seconds)."""
    connection.execute(insert(reserved), [{"ino": ino, "session": session, "at": at} for ino in inos])


def use_up(connection: Connection, ino: int, session: int) -> bool:
    """Ends a reservation; False if there was none."""
    return _USE_UP.run(connection, at_ino=ino, at_session=session).rowcount == 1


def hold(connection: Connection, inos: Sequence[int], session: int, at: float) -> None:
    """The session holds them, since ``at`` (seconds)."""
    drop(connection, inos, session)
    if inos:
        connection.execute(insert(holds), [{"ino": ino, "session": session, "at": at} for ino in inos])


def drop(connection: Connection, inos: Sequence[int], session: int) -> None:
    """The session holds them no more."""
    if inos:
        connection.execute(_DROP, [{"at_ino": ino, "at_session": session} for ino in inos])


def held(connection: Connection, inos: Iterable[int], session: int) -> set[int]:
    """Those that the session holds."""
    return set(connection.scalars(_HELD, {"inos": list(inos), "session": session}))


# Extended attributes


def get_xattrs(connection: Connection, ino: int) -> dict[bytes, bytes]:
    """All names and values."""
    return dict(connection.execute(_XATTRS, {"ino": ino}).all())


def get_xattr(connection: Connection, ino: int, name: bytes) -> bytes | None:
    """The value, None without such an attribute."""
    row = _XATTR.run(connection, of=ino, called=name).fetchone()
    return None if row is None else bytes(row[0])


def xattr_sizes(connection: Connection, ino: int) -> Mapping[bytes, int]:
    """All names and how long their values are."""
    return dict(connection.execute(_XATTR_SIZES, {"ino": ino}).all())


def set_xattr(connection: Connection, ino: int, name: bytes, value: bytes) -> None:
    """A new attribute; an old one of this name must have been removed."""
    connection.execute(insert(xattrs), {"ino": ino, "name": name, "value": value})


def remove_xattr(connection: Connection, ino: int, name: bytes) -> None:
    """The attribute goes, if it is there."""
    connection.execute(_REMOVE_XATTR, {"at_ino": ino, "at_name": name})
