"""What happens to content: opening for writing, and the commit that makes a new version.

Between the read of the inode and the last write of a commit nobody else changes anything: both are in
one change of the database's only writer. A commit costs what it changes, not what the file is long.
"""

import errno
import stat
from collections import Counter
from collections.abc import Iterable

from servers.directory import chunks, content_store
from servers.directory.attributes import check_chmod, drop_capabilities
from servers.directory.store import Inode
from servers.directory.transaction import Transaction
from servers.directory.view import is_directory
from wire.chunking import chunk_count
from wire.errors import BadMessage, ChunksMissing, Conflict, TicketRefused, fail
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ChunkChange, Commit, Op, OpenWrite, Result
from wire.permissions import READ, WRITE, is_owner, mode_after_chmod, mode_without_privileges
from wire.tickets import Receipt, open_receipt


def open_write(tx: Transaction, op: OpenWrite) -> Result:
    """Permission is checked here, not at the commit; the version answered is the base of what follows."""
    inode = tx.reach(op.ino)
    _need_regular(inode)
    tx.need(inode, WRITE | READ if op.read else WRITE)
    tx.take_grant(op.grant, inode)
    return Result(inode.attr())


def _need_regular(inode: Inode) -> None:
    if not stat.S_ISREG(inode.mode):
        raise fail(errno.EISDIR if is_directory(inode) else errno.EINVAL)


def commit(tx: Transaction, op: Commit) -> Result:
    """See Commit. While the base is current, the commit cannot have been made before; so only then its id
    is not asked for."""
    inode = _reach_to_commit(tx, op)
    _need_regular(inode)
    if op.base != inode.version:
        if content_store.commit_id(tx.connection, inode.ino, inode.version) == op.commit_id:
            tx.is_repeated = True
            return Result(inode.attr())
        tx.take_grant(op.grant, inode)
        raise Conflict(f"the base is version {op.base}, the current one is {inode.version}")
    tx.take_grant(op.grant, inode)
    _check_changes(op)
    _check_attributes(tx, op, inode)
    _check_boundary(tx, op, inode)
    _check_chunks(tx, op)
    now = tx.tick()
    _change_extents(tx, op, inode, now)
    content_store.end_version(tx.connection, inode, now)
    content_store.add_version(tx.connection, inode.ino, now, op.size, op.commit_id)
    _change_inode(tx, op, inode, now)
    return Result(inode.attr())


def _reach_to_commit(tx: Transaction, op: Commit) -> Inode:
    """The inode, for who may commit to it.

    A grant alone is no right: the lock server gives anybody the lock of any number. One whose token is the
    mark is that of an opening, which asked for permission; it may have been taken away since, as it is with
    a descriptor. A token above the mark is of no opening: the lock was lost and taken again, or the file was
    never opened. Then it is asked now, but not for WRITE of the owner, whose programs write what they have
    made read-only. A token below the mark is refused by ``take_grant``, and learns no more than that.
    """
    token = tx.open_grant(op.grant, op.ino).token
    inode = tx.find(op.ino)
    if inode is not None and token <= inode.token:
        return inode
    inode = tx.reach(op.ino)
    if not is_owner(tx.who, inode):
        tx.need(inode, WRITE)
    return inode


def _check_changes(op: Commit) -> None:
    indices = {change.index for change in op.chunks}
    if len(indices) != len(op.chunks):
        raise BadMessage("a commit names an index twice")
    if indices and max(indices) >= chunk_count(op.size):
        raise BadMessage("a commit names a chunk behind the end of the content")


def _check_attributes(tx: Transaction, op: Commit, inode: Inode) -> None:
    """Explicit mode and times are a chmod and a utimensat that came with the content: the owner's right."""
    if op.mode is not None:
        check_chmod(tx, inode)
    if (op.atime is not None or op.mtime is not None) and not is_owner(tx.who, inode):
        raise fail(errno.EPERM)


def _kept(op: Commit, inode: Inode) -> int:
    """How many bytes of the base the new content begins with, before its changes."""
    return min(op.keep_size, op.size, inode.size)


def _check_boundary(tx: Transaction, op: Commit, inode: Inode) -> None:
    """Content that was cut off within a chunk must not come back when the file grows again: such a chunk
    is kept only while the end of the content hides it."""
    kept = _kept(op, inode)
    last, length = divmod(kept, CHUNK_BYTES)
    if op.size == kept or not length or any(change.index == last for change in op.chunks):
        return
    standing = content_store.get_extents(tx.connection, inode.ino, last, last + 1)
    if standing and standing[0].size > length:
        raise BadMessage(f"chunk {last} has bytes that were cut off; a commit that grows must replace it")


def _check_chunks(tx: Transaction, op: Commit) -> None:
    """Every chunk must be one that the directory can count on: known and not condemned, or told of by a
    fresh receipt. Raises ChunksMissing with all others."""
    wanted = {change.id: change for change in op.chunks if change.id is not None}
    if not wanted:
        return
    receipts = [receipt for change in wanted.values() if (receipt := _receipt(tx, change))]
    if receipts:
        chunks.add_chunks(tx.connection, receipts)
    missing = sorted(wanted.keys() - chunks.usable(tx.connection, wanted))
    if missing:
        raise ChunksMissing(f"{len(missing)} chunks must be uploaded again", missing)


def _receipt(tx: Transaction, change: ChunkChange) -> Receipt | None:
    receipt = tx.receipts.get(change.receipt)
    if receipt is None or (receipt.chunk, receipt.size) != (change.id, change.size):
        return None
    return receipt if receipt.issued > tx.clock.now_seconds() - tx.config.grace_seconds else None


def _change_extents(tx: Transaction, op: Commit, inode: Inode, now: int) -> None:
    """Invariant: no live extent begins at or behind the end of the content."""
    first_gone = chunk_count(_kept(op, inode))
    had = chunk_count(inode.size)
    if first_gone < had:
        content_store.end_extents_from(tx.connection, inode.ino, first_gone, now)
    replaced = [change.index for change in op.chunks if change.index < min(first_gone, had)]
    content_store.end_extents(tx.connection, inode.ino, replaced, now)
    placed = [(change.index, change.id) for change in op.chunks if change.id is not None]
    content_store.add_extents(tx.connection, inode.ino, now, placed)
    chunks.reference(tx.connection, Counter(chunk for _, chunk in placed))


def _change_inode(tx: Transaction, op: Commit, inode: Inode, now: int) -> None:
    written, changed = (_moment(told, inode, now) for told in (op.written, op.changed))
    inode.size, inode.version = op.size, now
    inode.mtime = op.mtime if op.mtime is not None else now if written is None else written
    if op.atime is not None:
        inode.atime = op.atime
    if op.mode is not None:
        inode.mode = mode_after_chmod(tx.who, inode, op.mode)
    elif not tx.who.is_root:
        inode.mode = mode_without_privileges(inode.mode)
    drop_capabilities(tx, inode)
    ctime = now if written is None and changed is None else max(inode.ctime, written or 0, changed or 0)
    tx.stamp(inode, now)
    inode.ctime = ctime


def _moment(told: int | None, inode: Inode, now: int) -> int | None:
    """When something was changed that comes with a commit: as the client says, who saw the base, and no later
    than now."""
    return None if told is None else max(inode.version, min(told, now))


def open_receipts(join_key: bytes, ops: Iterable[Op]) -> dict[bytes, Receipt]:
    """The receipts of all commits among ``ops`` that open, by their sealed text. Opening thousands takes
    long, so it is done before the writer is occupied."""
    opened = {}
    for op in ops:
        if isinstance(op, Commit):
            for change in op.chunks:
                if change.receipt:
                    try:
                        opened[change.receipt] = open_receipt(join_key, change.receipt)
                    except TicketRefused:
                        continue  # as if there were none: the chunk is asked for again
    return opened
