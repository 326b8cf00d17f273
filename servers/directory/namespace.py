"""What happens to names: create (also without one), link, unlink, rmdir. (rename has a module of its own.)

Errors come in the order in which Linux finds them (fs/namei.c): the way to the parent, the name,
whether it exists, then permission on the parent, then the operation's own conditions.
"""

import errno
import stat

from servers.directory import acls, store
from servers.directory.store import Inode
from servers.directory.transaction import Transaction
from servers.directory.view import is_directory
from wire.errors import fail
from wire.limits import LINK_MAX, SYMLINK_BYTES_MAX
from wire.messages.directory import Create, CreateNameless, Drop, Hold, Link, Reserve, Result, Rmdir, Unlink
from wire.permissions import owner_of_new

_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, *_DEVICES)


def reserve(tx: Transaction, op: Reserve) -> Result:
    """Numbers for files that the session will create."""
    inos = list(tx.new_inos(op.count))
    store.reserve(tx.connection, inos, tx.session, tx.clock.now_seconds())
    return Result(inos=inos)


def create(tx: Transaction, op: Create) -> Result:
    """A new inode and its entry."""
    _check_request(op)
    parent = tx.directory(op.parent)
    if tx.look_up(parent, op.name) is not None:
        raise fail(errno.EEXIST)
    tx.need_to_add(parent)
    if stat.S_IFMT(op.mode) in _DEVICES and not tx.who.is_root:
        raise fail(errno.EPERM, "only root makes device nodes")
    inode = _new_inode(tx, parent, _number(tx, op.ino), op.mode)
    _set_kind(inode, op)
    acls.pass_on(tx, parent, inode, op.umask)
    store.add_entry(tx.connection, parent.ino, op.name, inode.ino, inode.change)
    tx.add(inode)
    if op.ino:
        tx.take_grant(op.grant, inode)
    if is_directory(inode):
        parent.nlink += 1
    tx.stamp_directory(parent, inode.change)
    return Result(inode.attr(), [parent.attr()])


def create_nameless(tx: Transaction, op: CreateNameless) -> Result:
    """A new file without an entry. It is in nobody's listing, so the directory does not change."""
    parent = tx.directory(op.parent)
    tx.need_to_add(parent)
    inode = _new_inode(tx, parent, _number(tx, op.ino), stat.S_IFREG | stat.S_IMODE(op.mode))
    inode.nlink, inode.parent = 0, parent.ino
    acls.pass_on(tx, parent, inode, op.umask)
    tx.add(inode)
    tx.take_grant(op.grant, inode)
    tx.hold([inode.ino])
    return Result(inode.attr())


def _check_request(op: Create) -> None:
    kind = stat.S_IFMT(op.mode)
    if kind not in _TYPES:
        raise fail(errno.EINVAL, f"mode {op.mode:o} has no type")
    if op.ino and kind != stat.S_IFREG:
        raise fail(errno.EINVAL, "only regular files are created under a reserved number")
    if kind == stat.S_IFLNK:
        if not op.target:
            raise fail(errno.ENOENT, "a symlink must point somewhere")
        if len(op.target) > SYMLINK_BYTES_MAX:
            raise fail(errno.ENAMETOOLONG, f"a symlink's target has at most {SYMLINK_BYTES_MAX} bytes")
        if b"\0" in op.target:
            raise fail(errno.EINVAL, "a symlink's target has no NUL")


def _new_inode(tx: Transaction, parent: Inode, ino: int, mode: int) -> Inode:
    """Empty, with one name."""
    mode, uid, gid = owner_of_new(tx.who, parent, mode)
    now = tx.tick()
    return Inode(
        ino=ino,
        mode=mode,
        nlink=1,
        uid=uid,
        gid=gid,
        rdev=0,
        size=0,
        atime=now,
        mtime=now,
        ctime=now,
        version=now,
        change=now,
        xattrs=0,
        token=0,
    )


def _set_kind(inode: Inode, op: Create) -> None:
    """What a new inode has that is no regular file."""
    kind = stat.S_IFMT(op.mode)
    if kind == stat.S_IFDIR:
        inode.nlink, inode.parent = 2, op.parent
    elif kind == stat.S_IFLNK:
        inode.mode = kind | 0o777
        inode.size, inode.target = len(op.target), op.target
    elif kind in _DEVICES:
        inode.rdev = op.rdev


def _number(tx: Transaction, wanted: int) -> int:
    """``wanted``, if it was reserved; 0: any that is new."""
    if not wanted:
        return tx.new_inos(1)[0]
    if not store.use_up(tx.connection, wanted, tx.session):
        raise fail(errno.EINVAL, f"inode number {wanted} is not reserved for this session")
    return wanted


def link(tx: Transaction, op: Link) -> Result:
    """Another name for a file, or its first. What has lost its last name stays without: others have been told
    that it is gone."""
    inode = tx.reach(op.ino)
    parent = tx.directory(op.parent)
    if tx.look_up(parent, op.name) is not None:
        raise fail(errno.EEXIST)
    tx.need_to_add(parent)
    if is_directory(inode):
        raise fail(errno.EPERM, "a directory has one name only")
    if not inode.nlink and inode.parent is None:
        raise fail(errno.ENOENT, "the file was removed")
    if inode.nlink >= LINK_MAX:
        raise fail(errno.EMLINK)
    now = tx.tick()
    store.add_entry(tx.connection, parent.ino, op.name, inode.ino, now)
    if not inode.nlink:
        inode.parent = None
        store.drop(tx.connection, [inode.ino], tx.session)
    inode.nlink += 1
    tx.stamp(inode, now)
    tx.stamp_directory(parent, now)
    return Result(inode.attr(), [parent.attr()])


def unlink(tx: Transaction, op: Unlink) -> Result:
    """A name goes; the last one makes the inode an orphan."""
    parent = tx.directory(op.parent)
    child = tx.child(parent, op.name)
    tx.need_to_remove(parent, child)
    if is_directory(child):
        raise fail(errno.EISDIR)
    now = tx.tick()
    store.remove_entry(tx.connection, parent.ino, op.name)
    tx.unname(child, now, op.hold)
    tx.stamp_directory(parent, now)
    return Result(child.attr(), [parent.attr()])


def rmdir(tx: Transaction, op: Rmdir) -> Result:
    """An empty directory goes."""
    parent = tx.directory(op.parent)
    child = tx.child(parent, op.name)
    tx.need_to_remove(parent, child)
    if not is_directory(child):
        raise fail(errno.ENOTDIR)
    if not store.is_empty(tx.connection, child.ino):
        raise fail(errno.ENOTEMPTY)
    now = tx.tick()
    store.remove_entry(tx.connection, parent.ino, op.name)
    tx.unname(child, now)
    parent.nlink -= 1
    tx.stamp_directory(parent, now)
    return Result(child.attr(), [parent.attr()])


def hold(tx: Transaction, op: Hold) -> Result:
    """Answers the inodes that are held now: those that are gone or out of reach are passed over."""
    found = tx.find_all(op.inos)
    reached = sorted(tx.reachable(list(found.values())))
    tx.hold(reached)
    return Result(inos=reached)


def drop(tx: Transaction, op: Drop) -> Result:
    """What is not held is passed over."""
    store.drop(tx.connection, op.inos, tx.session)
    return Result()
