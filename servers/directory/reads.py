"""What may be asked of the directory, each as one view of the database."""

import errno
import stat

from servers.directory import chunks, content_store, store
from servers.directory.attributes import visible_xattrs
from servers.directory.storage import Storage
from servers.directory.store import Inode
from servers.directory.view import View, is_directory
from wire.chunking import chunk_count
from wire.errors import fail
from wire.limits import NAME_BYTES_MAX, RESOLVED_CHUNKS_MAX
from wire.messages.directory import (
    ROOT_INO,
    Attr,
    Attrs,
    ChunkAt,
    Entry,
    FindCommit,
    FoundCommit,
    GetAttrs,
    GetManifest,
    GetPaths,
    GetTarget,
    GetXattrs,
    List,
    Listing,
    Manifest,
    Paths,
    Resolve,
    Resolved,
    Target,
    Xattrs,
)
from wire.permissions import READ, SEARCH, Owned, is_owner, may


def resolve(view: View, storage: Storage, message: Resolve) -> Resolved:
    """The walk is done at once; then each step is checked in order."""
    met = store.walk(view.connection, message.parent, message.names)
    if not met:
        return Resolved([], "ENOENT")
    if message.parent not in view.reachable(met[:1]):
        return Resolved([], "EACCES")
    attrs = [met[0].attr()]
    for depth, name in enumerate(message.names):
        reason = _why_not(view, met[depth], name)
        if not reason and depth + 1 == len(met):
            reason = "ENOENT"
        if reason:
            return Resolved(attrs, reason)
        attrs.append(met[depth + 1].attr())
    if message.content and _has_content_for(view, met[-1]):
        return Resolved(attrs, manifest=_manifest(view, storage, met[-1], range(RESOLVED_CHUNKS_MAX)))
    return Resolved(attrs)


def _has_content_for(view: View, inode: Inode) -> bool:
    return stat.S_ISREG(inode.mode) and inode.size > 0 and may(view.who, inode, READ)


def _why_not(view: View, directory: Inode, name: bytes) -> str:
    if not is_directory(directory):
        return "ENOTDIR"
    if not may(view.who, directory, SEARCH):
        return "EACCES"
    return "ENAMETOOLONG" if len(name) > NAME_BYTES_MAX else ""


def get_attrs(view: View, message: GetAttrs) -> Attrs:
    """None for what is not there, or cannot be reached."""
    found = view.find_all(set(message.inos))
    reached = view.reachable(list(found.values()))
    return Attrs([found[ino].attr() if ino in reached else None for ino in message.inos])


def list_entries(view: View, message: List) -> Listing:
    """One page of a directory. Without SEARCH a name and a type may be read, and no more: the other
    attributes are 0."""
    directory = view.reach(message.ino)
    if not is_directory(directory):
        raise fail(errno.ENOTDIR)
    view.need(directory, READ)
    parent = directory.parent or directory.ino
    if message.change == directory.change:
        return Listing(directory.attr(), parent, unchanged=True)
    entries = store.page(view.connection, directory.ino, message.after, message.limit + 1)
    more = len(entries) > message.limit
    if not may(view.who, directory, SEARCH):
        entries = [Entry(entry.name, _only_type(entry.attr), entry.cookie) for entry in entries]
    return Listing(directory.attr(), parent, entries[: message.limit], more)


def _only_type(attr: Attr) -> Attr:
    return Attr(attr.ino, stat.S_IFMT(attr.mode), *(0,) * 10, has_xattrs=False)


def get_manifest(view: View, storage: Storage, message: GetManifest) -> Manifest:
    """The range of the version, each chunk with its servers, those first that answer."""
    inode = view.reach(message.ino)
    if not stat.S_ISREG(inode.mode):
        raise fail(errno.EISDIR if is_directory(inode) else errno.EINVAL)
    _need_to_read(view, inode)
    return _manifest(
        view, storage, inode, range(message.first, message.first + message.count), message.version
    )


def _manifest(view: View, storage: Storage, inode: Inode, indices: range, version: int = 0) -> Manifest:
    """Of ``version``, or of the current one (0)."""
    version = version or inode.version
    old = None if version == inode.version else version
    size = inode.size if old is None else _old_size(view, inode, old)
    end = min(indices.stop, chunk_count(size))
    found = content_store.get_extents(view.connection, inode.ino, indices.start, end, old)
    where = chunks.locations(view.connection, [extent.chunk for extent in found])
    order = {tuple(servers): storage.order(servers) for servers in where.values()}
    placed = [
        ChunkAt(extent.index, extent.chunk, extent.size, order[tuple(where[extent.chunk])])
        for extent in found
    ]
    servers = sorted({server for some in order for server in some})
    return Manifest(inode.ino, version, size, placed, storage.addresses(servers))


def _old_size(view: View, inode: Inode, version: int) -> int:
    """Of a version that was replaced, for who could have read it then: what was secret stays so when the file
    becomes another one's, or gets other content for all to see."""
    was = content_store.old_version(view.connection, inode.ino, version)
    if was is None:
        raise fail(errno.ESTALE, f"version {version} of inode {inode.ino} is not retained")
    _need_to_read(view, was)
    return was.size


def _need_to_read(view: View, what: Owned) -> None:
    if not is_owner(view.who, what) and not may(view.who, what, READ):
        raise fail(errno.EACCES)


def get_target(view: View, message: GetTarget) -> Target:
    """Raises EINVAL for what is no symlink."""
    inode = view.reach(message.ino)
    if inode.target is None:
        raise fail(errno.EINVAL)
    return Target(inode.target)


def get_xattrs(view: View, message: GetXattrs) -> Xattrs:
    """All that the identity may see."""
    return Xattrs(visible_xattrs(view, view.reach(message.ino)))


def get_paths(view: View, message: GetPaths) -> Paths:
    """The first path in the order of parents and names that may be walked."""
    names = store.names_of(view.connection, message.inos)
    known: dict[int, bytes] = {ROOT_INO: b""}
    paths: list[bytes | None] = []
    for ino in message.inos:
        way = next(((p, name) for p, name in names.get(ino, []) if view.may_enter(p)), None)
        if ino == ROOT_INO:
            paths.append(b"/")
        else:
            paths.append(None if way is None else _path_of(view, way[0], known) + b"/" + way[1])
    return Paths(paths)


def _path_of(view: View, directory: int, known: dict[int, bytes]) -> bytes:
    """Of a directory that may be entered, without a final slash."""
    if directory not in known:
        (parent, name) = store.names_of(view.connection, [directory])[directory][0]
        known[directory] = _path_of(view, parent, known) + b"/" + name
    return known[directory]


def find_commit(view: View, message: FindCommit) -> FoundCommit:
    """Who knows the commit's id has made it; others are told of no file that they cannot reach."""
    version = content_store.version_of(view.connection, message.ino, message.commit_id)
    inode = view.find(message.ino)
    if inode is None or (not version and inode.ino not in view.reachable([inode])):
        return FoundCommit(version, 0)
    return FoundCommit(version, inode.version)
