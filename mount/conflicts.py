"""Conflict copies: where content goes that lost a race, so that nothing is lost silently."""

import errno
import logging
import os
import socket
import stat
import time

from cache.copies import NeedsManifest
from mount.nodes import Node
from mount.proxy import Proxy
from mount.reading import Reader
from wire.chunking import chunk_count
from wire.limits import CHUNK_BYTES, MANIFEST_CHUNKS_MAX
from wire.messages.directory import ROOT_INO, Attr, ChunkChange, Commit, Create
from wire.names import conflict_name

log = logging.getLogger(__name__)


def save_conflict_copy(proxy: Proxy, reader: Reader, node: Node) -> bytes:
    """Stores what this mount shows of ``node`` as a new file beside the original; returns its name.

    Chunks that were not written here are named, not copied: the base's chunks are retained. If the
    process dies before the commit, an empty file is left and the dirty copy is still on disk.
    """
    parent, name = node.copy.origin() or (ROOT_INO, f"inode {node.ino}".encode())
    lock = proxy.write_locks.take_fresh()
    try:
        attr = _create(proxy, node, parent, name, lock.ino, lock.grant)
        size = node.copy.size
        base = attr[1].version
        for first in range(0, max(1, chunk_count(size)), MANIFEST_CHUNKS_MAX):
            indices = range(first, min(chunk_count(size), first + MANIFEST_CHUNKS_MAX))
            commit = Commit(
                ino=lock.ino,
                grant=lock.grant,
                base=base,
                commit_id=os.urandom(16),
                size=size,
                keep_size=min(size, first * CHUNK_BYTES),
                chunks=[change for index in indices if (change := _chunk(proxy, reader, node, index))],
                mtime=node.shown_attr().mtime,
            )
            result = proxy.directory.mutate([commit], node.caller)[0].attr
            assert result is not None, "a commit is answered with attributes"
            base = result.version
    finally:
        proxy.write_locks.release(lock.ino)
    return attr[0]


def _create(proxy: Proxy, node: Node, parent: int, name: bytes, ino: int, grant: bytes) -> tuple[bytes, Attr]:
    mode = stat.S_IFREG | stat.S_IMODE(node.attr.mode)
    now = time.time()
    text = time.strftime("%Y-%m-%d %H.%M.%S", time.localtime(now))
    attempts = [
        (parent, text),
        (parent, f"{text}.{int(now % 1 * 1e6):06d}"),
        (ROOT_INO, f"{text}.{int(now % 1 * 1e6):06d}"),
    ]
    for folder, when in attempts:
        new_name = conflict_name(name, proxy.keyring.session.user, socket.gethostname(), when)
        try:
            attr = proxy.directory.mutate(
                [Create(folder, new_name, mode, ino=ino, grant=grant)], node.caller
            )[0].attr
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOENT, errno.EACCES, errno.ENOTDIR):
                raise
            log.info("%r cannot be made in inode %d: %s", new_name, folder, error)
            continue
        assert attr is not None, "a creation is answered with attributes"
        return new_name, attr
    raise OSError(
        errno.EACCES, "there is no place for the conflict copy; the content stays in the cache folder"
    )


def _chunk(proxy: Proxy, reader: Reader, node: Node, index: int) -> ChunkChange | None:
    """How the copy names its chunk: by upload if it is dirty, by the base's id if it is not."""
    if node.copy.is_dirty(index):
        data = node.copy.chunk_bytes(index)
        return proxy.upload(data, index) if data else None
    try:
        chunk = node.copy.chunk_at(index)
    except NeedsManifest:
        reader.ensure(node, index * CHUNK_BYTES, 1, node.caller)
        chunk = node.copy.chunk_at(index)
    return ChunkChange(index, chunk.id, chunk.size) if chunk else None
