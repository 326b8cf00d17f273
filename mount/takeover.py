"""A worker goes on where the one before it was stopped: what programs have open is open again.

The slate says which handles there were, the cache folder has what was written through them, the lock server
knows whose locks are whose, the directory tells the rest. Nothing is asked that was given at the open:
whoever had a file open has it open, under the same number.

For each inode: was its lock kept all the time (the same token)? Then nobody else has written, and the writers
go on. If not, and there is a newer version, they get ESTALE, as after any lost lock; what is dirty becomes a
conflict copy at its commit. A commit that was on its way has arrived or not: the directory knows; what has
not is dirty as before. Content that is dirty and has only readers (its writer's close was cut off) is
committed now.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator

from mount.later_commits import LaterCommits
from mount.node_table import NodeTable
from mount.nodes import Node
from mount.proxy import Proxy
from mount.slate import OpenFile
from wire.errors import Conflict
from wire.limits import OPS_MAX
from wire.messages.common import Caller
from wire.messages.directory import Attr

log = logging.getLogger(__name__)

Handles = list[tuple[int, OpenFile]]
"""Slots and what is in them."""


def take_over(proxy: Proxy, table: NodeTable, later: LaterCommits) -> None:
    """Opens again what the slate names, before anything else is opened. Raises Unavailable if a service is
    away: then nothing is changed on the slate, and the next worker may try."""
    handles_of: dict[int, Handles] = defaultdict(list)
    for slot, file in sorted(proxy.slate.handles.items(), key=lambda item: item[1].number):
        handles_of[file.ino].append((slot, file))
    attrs = dict(_attrs(proxy, [handles[-1][1] for handles in handles_of.values()]))
    for ino, handles in handles_of.items():
        node = _open(table, handles, attrs.get(ino))
        node.is_shared = any(file.is_shared for _, file in handles)
        node.rescan()
        _settle_commit(proxy, node)
        node.pending = table.attributes_left(ino)
        if node.pending:
            node.set_at = time.time_ns()
        _restore_writers(proxy, node, [file for _, file in handles if file.is_writer], attrs.get(ino))
        if node.copy.dirty:
            node.written_at = time.time_ns()
            if not node.writers:
                table.pin(node.attr)
                later.add(node)
    table.forget_attributes_left()
    if handles_of:
        log.info("%d open files of the worker before are open again", len(handles_of))


def _attrs(proxy: Proxy, files: Iterable[OpenFile]) -> Iterator[tuple[int, Attr | None]]:
    """What the directory says of these inodes, asked for those who have them open."""
    inos_of: dict[tuple[int, ...] | None, tuple[Caller | None, list[int]]] = {}
    for file in files:
        key = None if file.caller is None else (file.caller.uid, *file.caller.gids)
        inos_of.setdefault(key, (file.caller, []))[1].append(file.ino)
    for caller, inos in inos_of.values():
        for first in range(0, len(inos), OPS_MAX):
            batch = inos[first : first + OPS_MAX]
            yield from zip(batch, proxy.directory.attrs(batch, caller), strict=True)


def _open(table: NodeTable, handles: Handles, attr: Attr | None) -> Node:
    shown = attr or _unreachable(handles[0][1].ino)
    for slot, file in handles:
        node = table.pin(shown)
        table.restore(slot, file, node)
    if attr is None:
        with node.guard:
            node.attr = _unreachable(node.ino, node.copy.size, node.copy.version)
    return node


def _settle_commit(proxy: Proxy, node: Node) -> None:
    pending = node.copy.pending()
    if pending is None:
        return
    found = proxy.directory.find_commit(node.ino, pending.commit_id)
    if found.version:
        node.copy.committed(found.version)
    else:
        node.copy.abort_commit()


def _restore_writers(proxy: Proxy, node: Node, writers: list[OpenFile], attr: Attr | None) -> None:
    copy = node.copy
    if node.is_shared:  # the programs' own locks were kept, or they are told
        node.writers = len(writers)
        node.caller = writers[-1].caller if writers else None
        if any(file.outrun for file in writers):
            node.failure = Conflict("somebody else has written meanwhile")
        if attr is not None and not copy.dirty:
            node.accept(attr)
        return
    if not writers:
        if attr is not None and not copy.dirty:
            node.accept(attr)
        return
    node.writers = len(writers)
    node.caller = writers[-1].caller
    node.lock = proxy.write_locks.held(node.ino)
    node.lock_lost = node.lock is None
    was_kept = node.lock is not None and any(file.token == node.lock.token for file in writers)
    if any(file.outrun for file in writers):
        node.failure = Conflict("somebody else has written meanwhile")
    elif copy.dirty:
        node.lock_lost = not was_kept  # the next write or commit finds out what that means
    elif attr is not None and attr.version >= copy.version:  # else it is from before a late commit arrived
        base = copy.version or writers[0].version
        node.move_to(attr)
        if not was_kept and attr.version != base:
            node.outrun()


def _unreachable(ino: int, size: int = 0, version: int = 0) -> Attr:
    """For an inode that is gone, or that its programs may not reach any more. Its ``change`` is older than
    whatever the directory may say."""
    return Attr(ino, 0o100600, 1, 0, 0, 0, size, 0, 0, 0, version, 0, False)
