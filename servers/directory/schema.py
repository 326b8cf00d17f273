"""The directory's tables and what always holds between them.

Clock. ``meta.clock`` is the last value given out as a version or change (ns); every transaction
that changes something takes ``max(now, clock + 1)``, so both are strictly increasing over restarts.

Names. ``entries`` maps (parent, name) to an inode. A directory has exactly one entry, except the root
(inode 1), which has none; ``inodes.nlink`` is the number of entries of a file, and for a directory
2 + its subdirectories. ``inodes.parent`` is set for directories, the inode of "..", and for a file that was
made without a name and never had one: the directory that it was made in.

Cookies. ``entries.cookie`` is the clock's value when a name was made, so no two names of a directory ever
have the same one, and none is above the directory's ``change``. A name keeps it as long as it is there,
whatever it names (rename over it, exchange). Directories are listed in their order: a listing that goes on
after a cookie tells what it would have told, whatever has come or gone meanwhile.

Content. ``extents`` says which chunk stood at an index of a file from version ``since`` up to, not
including, version ``until`` (NULL: it still does). No row: a hole. So a version V of a file is the
rows with ``since <= V < until``, a commit writes only what it changes, and old versions cost nothing
more. ``versions`` has one row a retained version: its size, the id of the commit that made it, and, when
it was replaced, whose the file was and its mode at that moment: who could not read it then cannot now.

Chunks. ``chunks.refs`` is the number of rows of ``extents`` that name the chunk. At 0 it is condemned
(``condemned_at``), and only a condemned chunk may be deleted, after the grace time; a commit can not
revive it (it is answered with ChunksMissing). ``chunks.copies`` is the number of its rows in
``replicas``. A replica is recorded only on a file server's word (receipt, inventory, heartbeat).

ACLs. ``inodes.acl`` is what an access ACL says besides the mode (wire.acl); a default ACL is a row of
``xattrs``. Both are counted where they stand: ``inodes.xattrs`` is the number of rows.

Orphans. An inode with ``nlink = 0`` stays while a row of ``holds`` names it or the retention time is
not over (``ctime``); then it goes with its extents, versions and xattrs.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    text,
)

metadata = MetaData()


def _id(name: str) -> Column[int]:
    return Column(name, BigInteger, primary_key=True, autoincrement=False)


def _index_where(name: str, condition: str, *columns: Column[Any], unique: bool = False) -> None:
    """Of the rows for which the condition holds."""
    where = text(condition)
    Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


meta = Table("meta", metadata, Column("key", String, primary_key=True), Column("value", BigInteger))
"""``clock``, ``next_ino``, ``next_server``."""

inodes = Table(
    "inodes",
    metadata,
    # In SQLite INTEGER, and only that, is the row's own number.
    Column("ino", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("mode", Integer, nullable=False),
    Column("nlink", Integer, nullable=False),
    Column("uid", BigInteger, nullable=False),
    Column("gid", BigInteger, nullable=False),
    Column("rdev", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("atime", BigInteger, nullable=False),
    Column("mtime", BigInteger, nullable=False),
    Column("ctime", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("change", BigInteger, nullable=False),
    Column("xattrs", Integer, nullable=False),  # how many it has
    Column("token", BigInteger, nullable=False),  # the mark: commits under a lower token are refused
    Column("parent", BigInteger, nullable=True),
    Column("target", LargeBinary, nullable=True),  # of a symlink
    Column("acl", LargeBinary, nullable=False),  # the extension of the access ACL
    Column("holes", BigInteger, nullable=False),  # chunks of the current version that have no extent
)
_index_where("inodes_orphaned", "nlink = 0", inodes.c.ctime)

entries = Table(
    "entries",
    metadata,
    _id("parent"),
    Column("name", LargeBinary, primary_key=True),
    Column("ino", BigInteger, nullable=False, index=True),
    Column("cookie", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
# With ``ino``, so that a page is read from the index and the inodes alone.
Index("entries_listed", entries.c.parent, entries.c.cookie, entries.c.ino)

xattrs = Table(
    "xattrs",
    metadata,
    _id("ino"),
    Column("name", LargeBinary, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    _id("ino"),
    _id("version"),
    Column("size", BigInteger, nullable=False),
    Column("commit_id", LargeBinary, nullable=True),
    Column("until", BigInteger, nullable=True, index=True),  # the version that replaced it; with it are set
    Column("mode", Integer, nullable=True),  # who might read it then,
    Column("uid", BigInteger, nullable=True),
    Column("gid", BigInteger, nullable=True),
    Column("acl", LargeBinary, nullable=True),
    sqlite_with_rowid=False,
)

extents = Table(
    "extents",
    metadata,
    _id("ino"),
    _id("index"),
    _id("since"),
    Column("until", BigInteger, nullable=True),
    Column("chunk", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
_index_where("extents_replaced", "until IS NOT NULL", extents.c.until)
# An index of a file has one chunk at most.
_index_where("extents_live", "until IS NULL", extents.c.ino, extents.c.index, unique=True)

chunks = Table(
    "chunks",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    Column("size", Integer, nullable=False),
    Column("refs", Integer, nullable=False),
    Column("copies", Integer, nullable=False),
    Column("condemned_at", Float, nullable=True),  # seconds since the epoch
    sqlite_with_rowid=False,
)
_index_where("chunks_condemned", "condemned_at IS NOT NULL", chunks.c.condemned_at)
Index("chunks_copies", chunks.c.copies)

replicas = Table(
    "replicas",
    metadata,
    Column("chunk", LargeBinary, primary_key=True),
    _id("server"),
    Column("rank", Integer, nullable=False),  # 0 is the primary
    Column("inventory", BigInteger, nullable=False),  # the last inventory that named it
    sqlite_with_rowid=False,
)
Index("replicas_server", replicas.c.server, replicas.c.inventory)

servers = Table(
    "servers",
    metadata,
    _id("id"),
    Column("identity", LargeBinary, nullable=False, unique=True),
    Column("name", String, nullable=False),
    Column("url", String, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("total_bytes", BigInteger, nullable=False),
    Column("free_bytes", BigInteger, nullable=False),
    Column("inventory", BigInteger, nullable=False),  # the number of its last inventory
    Column("written_off", Integer, nullable=False, default=0),  # 1: must register again
)
"""Heartbeats are kept in memory: after a restart every server is suspect until it is heard."""

reserved = Table(
    "reserved",
    metadata,
    _id("ino"),
    Column("session", BigInteger, nullable=False),
    Column("at", Float, nullable=False, index=True),  # seconds since the epoch
)
"""Inode numbers that were given out and not used yet; used up by the Create that names them. One whose row
was cleared is refused there, and is never given out again."""

feeds = Table("feeds", metadata, _id("session"), Column("lease_seconds", Float, nullable=False))
"""Sessions that may believe what they were told, and how long after their last poll: written before the first
promise, removed when they have left or their leases are over. Whom a killed process leaves here, the next one
waits for."""

holds = Table("holds", metadata, _id("ino"), _id("session"), Column("at", Float, nullable=False))
"""Sessions that have an inode open though it may lose its last name; ``at`` is when they last said so."""
