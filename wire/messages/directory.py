"""Messages of the directory server. All are sealed: under the directory role for clients, under the
join role for file servers.

Every change is an operation in the list of one ``POST /v1/mutations``. The list is applied in order
in one transaction: all of it or, if one fails, nothing.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from wire.chunking import chunk_count
from wire.limits import (
    CHUNK_BYTES,
    FEED_POLL_SECONDS_MAX,
    FILE_BYTES_MAX,
    LIST_ENTRIES_MAX,
    MANIFEST_CHUNKS_MAX,
    OPS_MAX,
    SYMLINK_BYTES_MAX,
)
from wire.messages.common import (
    Caller,
    ChunkId,
    CommitId,
    Count,
    Id32,
    Inos,
    Name,
    Positive,
    Sealed,
    ServerAddress,
)

ROOT_INO = 1

Time = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Mode = Annotated[int, Meta(ge=0, le=0o177777)]
Size = Annotated[int, Meta(ge=0, le=FILE_BYTES_MAX)]


class Attr(msgspec.Struct, frozen=True, array_like=True):
    """What stat(2) tells of an inode, and the directory's clock for it."""

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
    """Of the content: raised by every commit."""
    change: int
    """Of the inode: raised by every change, also of an entry in a directory."""
    has_xattrs: bool
    """Its access ACL apart."""
    acl: bytes = b""
    """Entries of its access ACL that the mode does not say, see wire.acl."""
    holes: int = 0
    """How many chunks of the content are not there: they read as zeros and take no space."""

    @property
    def stored_bytes(self) -> int:
        """What the content takes, of one copy: whole chunks are there or are holes."""
        return min(self.size, (chunk_count(self.size) - self.holes) * CHUNK_BYTES)


# Operations


class Reserve(msgspec.Struct, frozen=True, tag=True):
    """Inode numbers that this session may create files under, so that it can lock them beforehand."""

    count: Annotated[int, Meta(ge=1, le=OPS_MAX)]


class Create(msgspec.Struct, frozen=True, tag=True):
    """A new inode of any type (in ``mode``) and its entry. EEXIST if the name is taken.

    With ``ino`` (one that was reserved) and ``grant`` for it, a file is created open for writing: the
    token mark is raised as OpenWrite does. A directory with a default ACL gives that on; in others ``umask``
    is taken from the mode.
    """

    parent: Positive
    name: Name
    mode: Mode
    rdev: Count = 0
    target: Annotated[bytes, Meta(max_length=SYMLINK_BYTES_MAX + 1)] = b""
    ino: Count = 0
    grant: Sealed = b""
    umask: Mode = 0


class CreateNameless(msgspec.Struct, frozen=True, tag=True):
    """A file without a name, open for writing and held by this session, as open(2) says of O_TMPFILE. It is
    made as Create makes a file in ``parent``, with a number that was reserved and a grant for it, but
    ``parent`` does not change. ``mode`` has the permissions."""

    parent: Positive
    ino: Positive
    grant: Sealed
    mode: Mode
    umask: Mode = 0


class Link(msgspec.Struct, frozen=True, tag=True):
    """Another entry for ``ino``, or the first one for what was made without. That ends the session's Hold.
    ENOENT for what has lost its last name."""

    ino: Positive
    parent: Positive
    name: Name


class Unlink(msgspec.Struct, frozen=True, tag=True):
    """Removes an entry that is not a directory. With ``hold`` the session keeps the inode (see Hold)."""

    parent: Positive
    name: Name
    hold: bool = False


class Rmdir(msgspec.Struct, frozen=True, tag=True):
    """Removes an empty directory."""

    parent: Positive
    name: Name


class Rename(msgspec.Struct, frozen=True, tag=True):
    """rename(2); ``flags`` are RENAME_NOREPLACE (1) and RENAME_EXCHANGE (2) of <linux/fs.h>. With ``hold``
    the session keeps an inode whose last name is replaced."""

    parent: Positive
    name: Name
    new_parent: Positive
    new_name: Name
    flags: Annotated[int, Meta(ge=0, le=2)] = 0
    hold: bool = False


class SetAttr(msgspec.Struct, frozen=True, tag=True):
    """Mode, owners, times; what is None stays. ``atime_now`` and ``mtime_now`` take the directory's clock;
    both together need write permission only, as utimensat(2) says of UTIME_NOW. So does
    ``drop_privileges``: set-id bits and capabilities go, as they do when an ordinary user writes."""

    ino: Positive
    mode: Mode | None = None
    uid: Id32 | None = None
    gid: Id32 | None = None
    atime: Time | None = None
    mtime: Time | None = None
    atime_now: bool = False
    mtime_now: bool = False
    drop_privileges: bool = False


class SetXattr(msgspec.Struct, frozen=True, tag=True):
    """setxattr(2); ``flags`` are XATTR_CREATE (1) and XATTR_REPLACE (2). They do not count for an ACL
    (wire.acl.NAMES): an access ACL changes the mode with it, and one that only says a mode is none."""

    ino: Positive
    name: Name
    value: bytes
    flags: Annotated[int, Meta(ge=0, le=3)] = 0


class RemoveXattr(msgspec.Struct, frozen=True, tag=True):
    """removexattr(2)."""

    ino: Positive
    name: Name


class OpenWrite(msgspec.Struct, frozen=True, tag=True):
    """Opens a file for writing: checks WRITE (and READ if ``read``), verifies the grant and raises the
    inode's token mark, so that an earlier holder's commits are refused from now on."""

    ino: Positive
    grant: Sealed
    read: bool = False


class ChunkChange(msgspec.Struct, frozen=True):
    """The chunk at ``index`` is now ``id``; without id it is a hole. ``receipt`` is needed for a chunk
    that the directory does not know yet."""

    index: Count
    id: ChunkId | None = None
    size: Annotated[int, Meta(ge=0, le=CHUNK_BYTES)] = 0
    receipt: Sealed = b""


class Commit(msgspec.Struct, frozen=True, tag=True):
    """Makes dirty content a new version.

    The new content is: of the base the chunks that begin below ``keep_size``, changed as ``chunks`` says,
    and ``size`` bytes in all. ESTALE (Conflict) if ``base`` is not the current version or the grant's token
    is below the mark; EACCES if it is above it, because nothing was opened under it, and the identity neither
    has WRITE nor owns the file; ChunksMissing if a chunk must be uploaded again. Times and mode that are None
    follow the rules (mtime is ``written``; set-id bits are dropped, but for root; capabilities always);
    explicit ones win. A commit id that is already the current version's is answered as it was the first time.

    close(2) moves no times: ``written`` and ``changed`` say, by the client's clock, when the content and
    anything of the file was changed last. A clock that is wrong is believed only between the base and now.
    """

    ino: Positive
    grant: Sealed
    base: Count
    commit_id: CommitId
    size: Size
    keep_size: Size
    chunks: Annotated[list[ChunkChange], Meta(max_length=MANIFEST_CHUNKS_MAX)]
    mode: Mode | None = None
    atime: Time | None = None
    mtime: Time | None = None
    written: Time | None = None
    changed: Time | None = None


class Hold(msgspec.Struct, frozen=True, tag=True):
    """The session has these inodes open: they outlive their last name until Drop or the session's end."""

    inos: Inos


class Drop(msgspec.Struct, frozen=True, tag=True):
    """The session has these inodes open no more."""

    inos: Inos


Op = (
    Reserve
    | Create
    | CreateNameless
    | Link
    | Unlink
    | Rmdir
    | Rename
    | SetAttr
    | SetXattr
    | RemoveXattr
    | OpenWrite
    | Commit
    | Hold
    | Drop
)


class Mutations(msgspec.Struct, frozen=True):
    """``POST /v1/mutations``; the request id is ``session.counter``. ``feed`` is what Told.feed said last, 0
    if nothing is believed: a session whose feed is another one when the change is made is told of it as
    others are."""

    acked: Count
    ops: Annotated[list[Op], Meta(min_length=1, max_length=OPS_MAX)]
    caller: Caller | None = None
    feed: Count = 0


class Result(msgspec.Struct, frozen=True):
    """What an operation did. ``attr`` is of the inode it is about (the moved one, for a rename);
    ``touched`` are the other inodes that it changed: parents, a replaced or exchanged inode."""

    attr: Attr | None = None
    touched: list[Attr] = []
    inos: list[int] = []


class Mutated(msgspec.Struct, frozen=True):
    """One result an operation; ``unpromised`` as in Resolved."""

    results: list[Result]
    unpromised: list[int] = []


# Reads


class Resolve(msgspec.Struct, frozen=True):
    """``POST /v1/resolve``: walks ``names`` from ``parent``; symlinks are not followed. ``content`` asks also
    where the content is."""

    parent: Positive
    names: Annotated[list[Name], Meta(max_length=OPS_MAX)]
    caller: Caller | None = None
    content: bool = False


class Resolved(msgspec.Struct, frozen=True):
    """The attributes of ``parent`` and of each name, as far as the walk came. If it stopped early
    ``errno`` says why (ENOENT, ENOTDIR, EACCES, ENAMETOOLONG). ``manifest`` has the first RESOLVED_CHUNKS_MAX
    chunks of a file whose content was asked for and may be read.

    To a session with a living feed (see Poll) every inode in an answer is promised, but for those in
    ``unpromised``: they have changed while the answer was made.
    """

    attrs: list[Attr]
    errno: str = ""
    manifest: "Manifest | None" = None
    unpromised: list[int] = []


class GetAttrs(msgspec.Struct, frozen=True):
    """``POST /v1/attrs``."""

    inos: Inos
    caller: Caller | None = None


class Attrs(msgspec.Struct, frozen=True):
    """None for an inode that is not there (or not reachable by this identity); ``unpromised`` as in
    Resolved."""

    attrs: list[Attr | None]
    unpromised: list[int] = []


class List(msgspec.Struct, frozen=True):
    """``POST /v1/list``: entries in the order of their cookies, after the cookie ``after``. A client
    that has the whole listing as of ``change`` may be answered "unchanged"."""

    ino: Positive
    after: Count = 0
    limit: Annotated[int, Meta(ge=1, le=LIST_ENTRIES_MAX)] = LIST_ENTRIES_MAX
    change: Count = 0
    caller: Caller | None = None


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A name in a directory, with the attributes of what it names. ``cookie`` is its place in every listing:
    when it was made, by the clock of ``change``. No other name of the directory ever has the same."""

    name: bytes
    attr: Attr
    cookie: int


class Listing(msgspec.Struct, frozen=True):
    """One page. ``attr`` and ``parent`` (the inode of "..") are the directory's own; no cookie is above
    ``attr.change``; ``unpromised`` as in Resolved."""

    attr: Attr
    parent: int
    entries: list[Entry] = []
    more: bool = False
    unchanged: bool = False
    unpromised: list[int] = []


class GetManifest(msgspec.Struct, frozen=True):
    """``POST /v1/manifest``: chunks ``first`` … ``first + count - 1`` of a version that is still retained
    (0: the current one). READ is checked, for one that was replaced also as the file's mode and owners were
    then; ESTALE if that version is gone."""

    ino: Positive
    version: Count = 0
    first: Count = 0
    count: Annotated[int, Meta(ge=0, le=MANIFEST_CHUNKS_MAX)] = MANIFEST_CHUNKS_MAX
    caller: Caller | None = None


class ChunkAt(msgspec.Struct, frozen=True, array_like=True):
    """A chunk and who has it, primary first."""

    index: int
    id: bytes
    size: int
    servers: list[int]


class Manifest(msgspec.Struct, frozen=True):
    """The chunks of the range that are not holes, in order; ``servers`` are all that they name."""

    ino: int
    version: int
    size: int
    chunks: list[ChunkAt]
    servers: list[ServerAddress]


class GetTarget(msgspec.Struct, frozen=True):
    """``POST /v1/target``: where a symlink points; EINVAL if it is none."""

    ino: Positive
    caller: Caller | None = None


class Target(msgspec.Struct, frozen=True):
    """The target's bytes, as they were given."""

    target: bytes


class GetXattrs(msgspec.Struct, frozen=True):
    """``POST /v1/xattrs``: all names and values of an inode (together at most 1 MiB)."""

    ino: Positive
    caller: Caller | None = None


class Xattrs(msgspec.Struct, frozen=True):
    """Names to values; None for a value that the identity may not read. An access ACL is not among them: see
    Attr."""

    xattrs: dict[bytes, bytes | None]


class GetPaths(msgspec.Struct, frozen=True):
    """``POST /v1/paths``: a path to each inode, for people; None where there is none that this identity
    may walk."""

    inos: Inos


class Paths(msgspec.Struct, frozen=True):
    """Absolute in the realm: ``/a/b``."""

    paths: list[bytes | None]


class FindCommit(msgspec.Struct, frozen=True):
    """``POST /v1/commits``: did this commit arrive?"""

    ino: Positive
    commit_id: CommitId


class FoundCommit(msgspec.Struct, frozen=True):
    """``version`` is what the commit made, or 0; ``current`` the inode's version now, 0 if it is gone."""

    version: int
    current: int


class Statfs(msgspec.Struct, frozen=True):
    """``GET /v1/statfs``: bytes that users can store, replicas counted once."""

    total_bytes: int
    free_bytes: int
    inodes: int


class GetPlacement(msgspec.Struct, frozen=True):
    """``POST /v1/placement``: where new chunks should go."""

    count: Annotated[int, Meta(ge=1, le=64)] = 8


class Placement(msgspec.Struct, frozen=True):
    """Sets of replicas, primary first, to be taken in turn for ``valid_seconds``. ENOSPC if no living
    file server has room."""

    sets: list[list[ServerAddress]]
    valid_seconds: float


# The feed


class FeedAt(msgspec.Struct, frozen=True):
    """``POST /v1/feeds`` (with Empty): the feed is asked at this port of the directory's host."""

    port: int
    lease_seconds: float


class Poll(msgspec.Struct, frozen=True):
    """``POST /v1/feed`` at the feed's address: of which inodes is nothing promised any more?

    A promise is: nothing of this inode (attributes, extended attributes, content; of a directory also its
    names, those that are not there too) changes before the session was told. It holds for the lease after
    the server got the session's last poll. ``feed`` is what Told.feed said, 0 at first; ``seen`` the number
    of the last message that was carried out. ``is_clean``: what was believed before this feed began is
    believed no more, neither by the client nor by its kernel.
    """

    feed: Count
    seen: Count
    is_clean: bool
    wait_seconds: Annotated[float, Meta(ge=0.0, le=FEED_POLL_SECONDS_MAX)] = 0.0


class Told(msgspec.Struct, frozen=True):
    """Nothing is promised any more of ``inos``: the messages with the numbers up to ``last``, which come
    again until a poll has ``seen`` them. ``is_new``: this feed begins with this answer, and whatever was
    believed before is to be dropped."""

    feed: int
    lease_seconds: float
    is_new: bool = False
    last: int = 0
    inos: list[int] = []


class LeaveFeed(msgspec.Struct, frozen=True):
    """``POST /v1/feed/leave`` at the feed's address: the session believes nothing any more, and this feed
    ends. Another one that it has begun since does not."""

    feed: Count


# File servers (join role), and the look from outside


class Register(msgspec.Struct, frozen=True):
    """``POST /v1/servers``: a file server starts. ``identity`` is what it made for itself at its first
    start; the same identity gets the same id."""

    identity: Annotated[bytes, Meta(min_length=16, max_length=16)]
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    url: Annotated[str, Meta(min_length=1, max_length=512)]
    total_bytes: Count
    free_bytes: Count
    pid: Count = 0


class Registered(msgspec.Struct, frozen=True):
    """The server's id, and how often to send heartbeats."""

    id: int
    heartbeat_seconds: float


class Inventory(msgspec.Struct, frozen=True):
    """``POST /v1/servers/{id}/inventory``: all chunks that the server has, page by page after each start
    (and now and then). ``first`` begins a new inventory, ``last`` ends it: what was not named is missing."""

    chunks: Annotated[list[ChunkId], Meta(max_length=20000)]
    first: bool = False
    last: bool = False


class InventoryAnswer(msgspec.Struct, frozen=True):
    """``unknown`` chunks belong to no version; the server deletes those that are older than
    ``older_than_seconds`` (younger ones may still be committed)."""

    unknown: list[bytes]
    older_than_seconds: float


class CopyTask(msgspec.Struct, frozen=True):
    """Fetch ``chunk`` from one of ``sources`` and keep it."""

    chunk: ChunkId
    size: int
    sources: list[ServerAddress]


class Heartbeat(msgspec.Struct, frozen=True):
    """``POST /v1/servers/{id}/heartbeat``: how the server is, and which tasks are done since the last."""

    total_bytes: Count
    free_bytes: Count
    deleted: Annotated[list[ChunkId], Meta(max_length=20000)] = []
    copied: Annotated[list[ChunkId], Meta(max_length=20000)] = []
    missing: Annotated[list[ChunkId], Meta(max_length=20000)] = []
    """Chunks found damaged or gone; the server has them no more."""


class Tasks(msgspec.Struct, frozen=True):
    """What the directory asks the server to do; ``servers`` are all that chunks may be forwarded to. ENOENT
    instead means: register again."""

    delete: list[bytes] = []
    copy: list[CopyTask] = []
    servers: list[ServerAddress] = []


class KnownServer(msgspec.Struct, frozen=True):
    """A file server, and whether it is alive, suspect or dead."""

    id: int
    name: str
    url: str
    state: str


class KnownServers(msgspec.Struct, frozen=True):
    """``GET /v1/servers/known`` (directory role): costs nothing, unlike ``Servers``."""

    servers: list[KnownServer]


class ServerState(msgspec.Struct, frozen=True):
    """A file server as the directory sees it; ``state`` is alive, suspect or dead."""

    id: int
    name: str
    url: str
    state: str
    pid: int
    heartbeat_age_seconds: float
    total_bytes: int
    free_bytes: int
    chunks: int
    primaries: int
    secondaries: int


class Servers(msgspec.Struct, frozen=True):
    """``GET /v1/servers`` (directory role). ``lacking`` chunks have fewer living replicas than
    ``replicas``; ``condemned`` ones wait for deletion. Where counting takes long, it is some seconds old."""

    servers: list[ServerState]
    replicas: int
    chunks: int
    lacking: int
    condemned: int
