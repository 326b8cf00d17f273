"""rename(2), with the order of its errors as in fs/namei.c of Linux.

Invariants: a directory never gets into its own subtree (checked here, and only renames move
directories, all of them in the one writer); ``parent`` of a moved directory and ``nlink`` of both parents
change in the same transaction as the entries.
"""

import errno
from dataclasses import dataclass

from servers.directory import store
from servers.directory.store import Inode
from servers.directory.transaction import Transaction
from servers.directory.view import is_directory
from wire.errors import fail
from wire.messages.directory import Rename, Result
from wire.permissions import WRITE

NOREPLACE, EXCHANGE = 1, 2


@dataclass(frozen=True)
class _Move:
    """``inode`` (named in ``old``) goes to ``new``, where ``target`` stands, if anything does."""

    old: Inode
    new: Inode
    inode: Inode
    target: Inode | None
    exchange: bool


def rename(tx: Transaction, op: Rename) -> Result:
    """Moves a name, replacing or exchanging what has the new one. Two names of one inode: nothing happens."""
    old, new = tx.directory(op.parent), tx.directory(op.new_parent)
    inode, target = tx.child(old, op.name), tx.look_up(new, op.new_name)
    if op.flags == NOREPLACE and target is not None:
        raise fail(errno.EEXIST)
    if op.flags == EXCHANGE and target is None:
        raise fail(errno.ENOENT)
    move = _Move(old, new, inode, target, op.flags == EXCHANGE)
    _check_tree(tx, move)
    if target is inode:
        return Result(inode.attr())
    _check_permission(tx, move)
    if target is not None and not move.exchange:
        _check_replaced(tx, inode, target)
    now = tx.tick()
    _move_entries(tx, op, move, now)
    return _account(tx, op, move, now)


def _check_tree(tx: Transaction, move: _Move) -> None:
    """No directory may be moved into its own subtree, nor replace one that it is in."""
    if move.old is move.new:
        return
    if is_directory(move.inode) and _is_under(tx, move.new, move.inode):
        raise fail(errno.EINVAL, "a directory cannot be moved into itself")
    if move.target is not None and is_directory(move.target) and _is_under(tx, move.old, move.target):
        raise fail(errno.EINVAL if move.exchange else errno.ENOTEMPTY)


def _is_under(tx: Transaction, directory: Inode, top: Inode) -> bool:
    return any(above.ino == top.ino for above in tx.chain(directory.ino))


def _check_permission(tx: Transaction, move: _Move) -> None:
    tx.need_to_remove(move.old, move.inode)
    if move.target is None:
        tx.need_to_add(move.new)
    else:
        tx.need_to_remove(move.new, move.target)
        if not move.exchange:
            _check_types(move.inode, move.target)
    if move.old is move.new:
        return
    # ".." of a directory that gets another parent is changed too.
    if is_directory(move.inode):
        tx.need(move.inode, WRITE)
    if move.exchange and move.target is not None and is_directory(move.target):
        tx.need(move.target, WRITE)


def _check_types(inode: Inode, target: Inode) -> None:
    if is_directory(inode) and not is_directory(target):
        raise fail(errno.ENOTDIR)
    if is_directory(target) and not is_directory(inode):
        raise fail(errno.EISDIR)


def _check_replaced(tx: Transaction, inode: Inode, target: Inode) -> None:
    if is_directory(target) and not store.is_empty(tx.connection, target.ino):
        raise fail(errno.ENOTEMPTY)


def _move_entries(tx: Transaction, op: Rename, move: _Move, now: int) -> None:
    if move.exchange and move.target is not None:
        store.point_entry(tx.connection, op.parent, op.name, move.target.ino)
    else:
        store.remove_entry(tx.connection, op.parent, op.name)
    if move.target is not None:
        store.point_entry(tx.connection, op.new_parent, op.new_name, move.inode.ino)
    else:
        store.add_entry(tx.connection, op.new_parent, op.new_name, move.inode.ino, now)


def _account(tx: Transaction, op: Rename, move: _Move, now: int) -> Result:
    """Link counts, ".." and times."""
    _settle(tx, move.inode, move.old, move.new, now)
    touched = {move.old.ino: move.old, move.new.ino: move.new}
    if move.target is not None:
        touched[move.target.ino] = move.target
        if move.exchange:
            _settle(tx, move.target, move.new, move.old, now)
        else:
            if is_directory(move.target):
                move.new.nlink -= 1
            tx.unname(move.target, now, op.hold and move.target.nlink == 1)
    tx.stamp_directory(move.old, now)
    tx.stamp_directory(move.new, now)
    return Result(move.inode.attr(), [inode.attr() for inode in touched.values()])


def _settle(tx: Transaction, inode: Inode, old: Inode, new: Inode, now: int) -> None:
    if is_directory(inode):
        tx.change_ways()
        old.nlink -= 1
        new.nlink += 1
        inode.parent = new.ino
    tx.stamp(inode, now)
