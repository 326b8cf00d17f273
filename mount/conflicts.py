"""Conflict copies: where content goes that lost a race, so that nothing is lost silently."""

import errno
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator

import msgspec

from cache.copies import NeedsManifest
from mount.nodes import Node
from mount.proxy import Proxy
from mount.reading import Reader
from wire.acl import ACCESS, build
from wire.chunking import chunk_count
from wire.errors import ChunksMissing, Unavailable, fail
from wire.limits import CHUNK_BYTES, MANIFEST_CHUNKS_MAX
from wire.messages.directory import ROOT_INO, Attr, ChunkChange, Commit, Create, Op, SetXattr, Unlink
from wire.names import conflict_name

log = logging.getLogger(__name__)

COMMIT_ATTEMPTS = 4

PRIVATE = stat.S_IRUSR | stat.S_IWUSR
"""What is left of a file's mode in a folder that is not its own: its own may have been closed to others."""

NO_NAME = b""
"""In an origin (see LocalCopy.set_origin): the file was made without a name in that folder."""

_NO_PLACE = frozenset({errno.EEXIST, errno.ENOENT, errno.EACCES, errno.ENOTDIR})
_GONE = frozenset({errno.ESTALE, errno.ENOENT, errno.EACCES})
"""What a service says of content of a version that is not retained, or not to be read any more."""


def save_conflict_copy(proxy: Proxy, reader: Reader, node: Node) -> bytes:
    """Stores what this mount shows of ``node`` as a new file beside the original; returns its name.

    Chunks that were not written here are named, not copied, as long as the base is retained; afterwards
    those that are here are uploaded, and the others become holes. The name is made when everything is
    uploaded. If the process dies before the commit, an empty file is left; whatever is raised, the dirty
    copy is still on disk.
    """
    content = _Content(proxy, reader, node)
    changes = content.changes()
    lock = proxy.write_locks.take_fresh()
    try:
        made, attr = _create(proxy, node, lock.ino, lock.grant)
        try:
            _commit(proxy, node, content, changes, attr, lock.grant)
        except OSError as error:
            if not isinstance(error, Unavailable):  # else it may have been carried out
                _take_away(proxy, node, made)
            raise
    finally:
        proxy.write_locks.release(lock.ino)
    if content.lost:
        log.warning(
            "inode %d: %d chunks of the version that was changed are neither here nor retained; in %r they"
            " are zeros",
            *(node.ino, content.lost, made.name),
        )
    return made.name


class _Content:
    """What a conflict copy consists of. ``lost`` counts the chunks that are to be had nowhere."""

    def __init__(self, proxy: Proxy, reader: Reader, node: Node) -> None:
        self._proxy = proxy
        self._reader = reader
        self._node = node
        self._base_is_gone = False
        self.lost = 0

    def changes(self) -> list[ChunkChange]:
        """How the copy names its chunks: by upload if they are dirty, by the base's ids if they are not."""
        count = chunk_count(self._node.copy.size)
        return [change for index in range(count) if (change := self._change(index))]

    def again(self, change: ChunkChange) -> ChunkChange | None:
        """The change, for a chunk that the directory cannot count on: uploaded from what is here, or what
        a file server has still; None if that is nothing."""
        try:
            self._reader.ensure(self._node, change.index * CHUNK_BYTES, 1, self._node.caller)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self.lost += 1
            return None
        return self._upload(change.index)

    def _change(self, index: int) -> ChunkChange | None:
        copy = self._node.copy
        if copy.is_dirty(index):
            return self._upload(index)
        if not copy.learned(index) and not self._learn(index):
            self.lost += 1
            return None
        try:
            chunk = copy.chunk_at(index)
        except NeedsManifest as error:
            raise fail(errno.ESTALE, "the local copy moved to another version meanwhile") from error
        return ChunkChange(index, chunk.id, chunk.size) if chunk else None

    def _learn(self, index: int) -> bool:
        """Whether the base's manifest is still told."""
        if not self._base_is_gone:
            try:
                self._reader.learn(self._node, self._node.copy.version, index, self._node.caller)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                log.info("inode %d: %s", self._node.ino, error)
                self._base_is_gone = True
        return not self._base_is_gone

    def _upload(self, index: int) -> ChunkChange | None:
        data = self._node.copy.chunk_bytes(index)
        return self._proxy.upload(data, index) if data else None


def _create(proxy: Proxy, node: Node, ino: int, grant: bytes) -> tuple[Create, Attr]:
    for parent, name, mode in _places(node, proxy.keyring.session.user):
        create = Create(parent, name, stat.S_IFREG | mode, ino=ino, grant=grant)
        ops: list[Op] = [create]
        if node.attr.acl and mode & stat.S_IRWXG:  # without it the mask would be the group's rights
            ops.append(SetXattr(ino, ACCESS, build(mode, node.attr.acl)))
        try:
            attr = proxy.names.change(ops, node.caller)[-1].attr
        except OSError as error:
            if error.errno not in _NO_PLACE:
                raise
            log.info("%r cannot be made in inode %d: %s", name, parent, error)
            continue
        assert attr is not None, "a creation is answered with attributes"
        return create, attr
    raise fail(errno.EACCES, "there is no place for the conflict copy; the content stays in the cache folder")


def _places(node: Node, user: str) -> Iterator[tuple[int, bytes, int]]:
    """Where the copy may go, in order: the parent, the name, the permissions."""
    own = node.copy.origin()
    mode = stat.S_IMODE(node.attr.mode)
    now = time.time()
    text = time.strftime("%Y-%m-%d %H.%M.%S", time.localtime(now))
    exact = f"{text}.{int(now % 1 * 1e6):06d}"
    host = socket.gethostname()
    name = own[1] if own and own[1] != NO_NAME else f"inode {node.ino}".encode()
    if own is not None:
        yield own[0], conflict_name(name, user, host, text), mode
        yield own[0], conflict_name(name, user, host, exact), mode
    yield ROOT_INO, conflict_name(name, user, host, exact), mode & PRIVATE


def _commit(
    proxy: Proxy, node: Node, content: _Content, changes: list[ChunkChange], attr: Attr, grant: bytes
) -> None:
    """Fills the new file, in as many steps as its manifest needs."""
    size, base = node.copy.size, attr.version
    for first in range(0, max(1, chunk_count(size)), MANIFEST_CHUNKS_MAX):
        commit = Commit(
            ino=attr.ino,
            grant=grant,
            base=base,
            commit_id=os.urandom(16),
            size=size,
            keep_size=min(size, first * CHUNK_BYTES),
            chunks=[change for change in changes if first <= change.index < first + MANIFEST_CHUNKS_MAX],
            mtime=node.shown_attr().mtime,
        )
        base = _send(proxy, node, content, commit)


def _send(proxy: Proxy, node: Node, content: _Content, commit: Commit) -> int:
    """The new version."""
    for _ in range(COMMIT_ATTEMPTS):
        try:
            attr = proxy.names.change([commit], node.caller)[0].attr
        except ChunksMissing as error:
            missing = frozenset(error.chunks)
            log.info("inode %d: %d chunks are uploaded for the conflict copy", node.ino, len(missing))
            chunks = [content.again(one) if one.id in missing else one for one in commit.chunks]
            commit = msgspec.structs.replace(commit, chunks=[one for one in chunks if one is not None])
        else:
            assert attr is not None, "a commit is answered with attributes"
            return attr.version
    raise fail(errno.EIO, "the directory refused the conflict copy again and again")


def _take_away(proxy: Proxy, node: Node, made: Create) -> None:
    try:
        proxy.names.change([Unlink(made.parent, made.name)], node.caller)
    except OSError as error:
        log.info("%r is left, without its content: %s", made.name, error)
