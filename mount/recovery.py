"""After a mount that was killed: what its cache folder holds that was never committed.

For each dirty copy the directory is asked first whether the commit that was under way has arrived.
What a close or fsync had begun is committed now, if its base is still the current version. All else
(content of programs that never got that far, or that lost to another writer) becomes a conflict copy.
"""

import logging
import os
from contextlib import closing

from cache.copies import CopyStore, LocalCopy, Pending
from mount.committing import Committer
from mount.conflicts import save_conflict_copy
from mount.nodes import Node
from mount.proxy import Proxy
from mount.reading import Reader
from wire.chunking import fits
from wire.errors import Busy, Conflict
from wire.limits import LOCK_LEASE_SECONDS
from wire.messages.directory import Attr

log = logging.getLogger(__name__)


def recover(proxy: Proxy, copies: CopyStore) -> int:
    """Goes through all dirty copies; returns how many are still dirty because a service did not answer."""
    left = 0
    for ino in copies.dirty_inos():
        try:
            with closing(copies.open(ino)) as copy:
                log.warning("inode %d: %s", ino, _recover(proxy, copy))
        except Exception as error:  # one copy that is damaged must not keep the others, or the mount
            left += 1
            log.warning("inode %d is left dirty for the next mount: %r", ino, error)
    return left


def _recover(proxy: Proxy, copy: LocalCopy) -> str:
    """What became of it, for the log."""
    attr = proxy.directory.attrs([copy.ino])[0]
    node = Node(copy, attr or _nameless(copy))
    pending = copy.pending()
    if pending is not None:
        found = proxy.directory.find_commit(copy.ino, pending.commit_id)
        if found.version:
            copy.committed(pending.snapshot, found.version, pending.chunk_ids)
            if not copy.dirty:
                return "its last commit had arrived"
        elif attr is not None and _is_whole(copy, pending) and _commit(proxy, node):
            return "its last commit was sent again"
    if not copy.dirty:
        return "it lost to another writer, and was kept as a conflict copy"
    name = save_conflict_copy(proxy, Reader(proxy), node)
    copy.discard()
    return f"content that was never committed is kept as {os.fsdecode(name)!r}"


def _is_whole(copy: LocalCopy, pending: Pending) -> bool:
    """Whether the file has what was to be committed: nothing was written since, and (after a loss of power)
    nothing is missing."""
    return not pending.later_changes and all(
        fits(known[0], copy.chunk_bytes(index)) if known else not copy.chunk_bytes(index)
        for index, known in pending.chunk_ids.items()
    )


def _commit(proxy: Proxy, node: Node) -> bool:
    """Commits under a lock of our own, if nobody has written meanwhile."""
    reader = Reader(proxy)
    committer = Committer(proxy, reader, on_settled=lambda _: None, on_saved_late=lambda _: None)
    try:
        # Until the dead mount's own lease is over.
        lock = proxy.write_locks.acquire(node.ino, LOCK_LEASE_SECONDS + 5)
    except Busy:
        return False
    try:
        attr = proxy.directory.attrs([node.ino])[0]
        if attr is None or attr.version != node.copy.version:
            return False
        node.copy.abort_commit()
        node.lock = lock
        committer.commit(node)
    except (Conflict, PermissionError):  # the leave to write was the dead mount's, or another user's
        return False
    finally:
        proxy.write_locks.release(node.ino)
    return True


def _nameless(copy: LocalCopy) -> Attr:
    """For an inode that is gone: a conflict copy needs a mode."""
    return Attr(copy.ino, 0o100600, 0, 0, 0, 0, copy.size, 0, 0, 0, copy.version, 0, False)
