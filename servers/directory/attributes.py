"""What happens to attributes: mode, owners, times, and extended attributes.

Order and errors as in Linux: setattr_prepare() of fs/attr.c, xattr(7), setxattr(2).
"""

import errno
import stat

from servers.directory import store
from servers.directory.store import Inode
from servers.directory.transaction import Transaction
from servers.directory.view import View, is_directory
from wire.errors import fail
from wire.limits import XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX
from wire.messages.directory import RemoveXattr, Result, SetAttr, SetXattr
from wire.permissions import (
    CAPABILITIES,
    READ,
    WRITE,
    is_owner,
    may,
    may_chown,
    mode_after_chmod,
    mode_without_privileges,
)

XATTRS_BYTES_MAX = 1024 * 1024
"""Names and values of one inode together."""

CREATE, REPLACE = 1, 2


def set_attr(tx: Transaction, op: SetAttr) -> Result:
    """chmod(2), chown(2), utimensat(2), all or none of it."""
    inode = tx.reach(op.ino)
    times = (op.atime, op.mtime, op.atime_now or None, op.mtime_now or None)
    if all(field is None for field in (op.mode, op.uid, op.gid, *times)) and not _drops_any(tx, op, inode):
        return Result(inode.attr())
    _check_set_attr(tx, op, inode)
    if is_directory(inode) and (op.mode, op.uid, op.gid) != (None, None, None):
        tx.change_ways()
    now = tx.tick()
    _apply_owners_and_mode(tx, op, inode)
    _apply_times(op, inode, now)
    tx.stamp(inode, now)
    return Result(inode.attr())


def _drops_any(tx: Transaction, op: SetAttr, inode: Inode) -> bool:
    is_privileged = inode.mode != mode_without_privileges(tx.who, inode)
    return op.drop_privileges and (is_privileged or _has_capabilities(tx, inode))


def _check_set_attr(tx: Transaction, op: SetAttr, inode: Inode) -> None:
    chown = op.uid is not None or op.gid is not None
    if chown and not may_chown(tx.who, inode, op.uid, op.gid):
        raise fail(errno.EPERM)
    if op.mode is not None:
        check_chmod(tx, inode)
    times = op.atime_now or op.mtime_now or op.atime is not None or op.mtime is not None
    if times and not is_owner(tx.who, inode):
        if not (op.atime_now and op.mtime_now) or op.atime is not None or op.mtime is not None:
            raise fail(errno.EPERM)  # one of them alone is no touch(1), whatever it is set to
        tx.need(inode, WRITE)
    if op.drop_privileges and not is_owner(tx.who, inode):
        tx.need(inode, WRITE)


def check_chmod(tx: Transaction, inode: Inode) -> None:
    """Raises EPERM for who does not own it, EOPNOTSUPP for a symlink."""
    if not is_owner(tx.who, inode):
        raise fail(errno.EPERM)
    if stat.S_ISLNK(inode.mode):
        raise fail(errno.EOPNOTSUPP, "a symlink has no mode of its own")


def _apply_owners_and_mode(tx: Transaction, op: SetAttr, inode: Inode) -> None:
    if op.drop_privileges or op.uid is not None or op.gid is not None:
        # Root's chown clears them too, as Linux does it (chown(2)).
        inode.mode = mode_without_privileges(tx.who, inode)
        drop_capabilities(tx, inode)
        inode.uid = inode.uid if op.uid is None else op.uid
        inode.gid = inode.gid if op.gid is None else op.gid
    if op.mode is not None:
        inode.mode = mode_after_chmod(tx.who, inode, op.mode)


def _apply_times(op: SetAttr, inode: Inode, now: int) -> None:
    if op.atime_now or op.atime is not None:
        inode.atime = now if op.atime is None else op.atime
    if op.mtime_now or op.mtime is not None:
        inode.mtime = now if op.mtime is None else op.mtime


def drop_capabilities(tx: Transaction, inode: Inode) -> None:
    """What is to happen when a file is written or given away, by whomever (capabilities(7)). The caller
    stamps the inode."""
    if not is_directory(inode) and _has_capabilities(tx, inode):
        store.remove_xattr(tx.connection, inode.ino, CAPABILITIES)
        inode.xattrs -= 1


def _has_capabilities(tx: Transaction, inode: Inode) -> bool:
    return bool(inode.xattrs) and CAPABILITIES in store.xattr_sizes(tx.connection, inode.ino)


# Extended attributes


def visible_xattrs(view: View, inode: Inode) -> dict[bytes, bytes | None]:
    """What the identity may see. Names need no permission, values of ``user.`` attributes need READ: they are
    None without it. ``trusted.`` is root's alone, the rest everybody's (xattr_permission() of fs/xattr.c)."""
    found = store.get_xattrs(view.connection, inode.ino) if inode.xattrs else {}
    if view.who.is_root:
        return dict(found)
    may_read = may(view.who, inode, READ)
    return {
        name: value if may_read or not name.startswith(b"user.") else None
        for name, value in found.items()
        if not name.startswith(b"trusted.")
    }


def set_xattr(tx: Transaction, op: SetXattr) -> Result:
    """Makes or replaces an attribute."""
    inode = tx.reach(op.ino)
    _check_xattr_change(tx, inode, op.name)
    if len(op.value) > XATTR_VALUE_BYTES_MAX:
        raise fail(errno.E2BIG, f"a value has at most {XATTR_VALUE_BYTES_MAX} bytes")
    exists = _has_xattr(tx, inode, op.name)
    if op.flags & CREATE and exists:
        raise fail(errno.EEXIST)
    if op.flags & REPLACE and not exists:
        raise fail(errno.ENODATA)
    put_xattr(tx, inode, op.name, op.value)
    tx.stamp(inode, tx.tick())
    return Result(inode.attr())


def put_xattr(tx: Transaction, inode: Inode, name: bytes, value: bytes) -> None:
    """Makes or replaces an attribute, whoever may; the caller stamps the inode. Raises ENOSPC."""
    sizes = store.xattr_sizes(tx.connection, inode.ino) if inode.xattrs else {}
    others = sum(len(other) + size for other, size in sizes.items() if other != name)
    if others + len(name) + len(value) > XATTRS_BYTES_MAX:
        raise fail(errno.ENOSPC, f"the extended attributes of a file have at most {XATTRS_BYTES_MAX} bytes")
    if name in sizes:
        store.remove_xattr(tx.connection, inode.ino, name)
    else:
        inode.xattrs += 1
    store.set_xattr(tx.connection, inode.ino, name, value)


def remove_xattr(tx: Transaction, op: RemoveXattr) -> Result:
    """An attribute goes. Raises ENODATA if it is not there."""
    inode = tx.reach(op.ino)
    _check_xattr_change(tx, inode, op.name)
    if not drop_xattr(tx, inode, op.name):
        raise fail(errno.ENODATA)
    tx.stamp(inode, tx.tick())
    return Result(inode.attr())


def drop_xattr(tx: Transaction, inode: Inode, name: bytes) -> bool:
    """Takes an attribute away, whoever may; False if it is not there. The caller stamps the inode."""
    if not _has_xattr(tx, inode, name):
        return False
    store.remove_xattr(tx.connection, inode.ino, name)
    inode.xattrs -= 1
    return True


def _has_xattr(tx: Transaction, inode: Inode, name: bytes) -> bool:
    return inode.xattrs > 0 and store.get_xattr(tx.connection, inode.ino, name) is not None


def _check_xattr_change(tx: Transaction, inode: Inode, name: bytes) -> None:
    if len(name) > XATTR_NAME_BYTES_MAX:
        raise fail(errno.ERANGE, f"the name of an attribute has at most {XATTR_NAME_BYTES_MAX} bytes")
    space, _, rest = name.partition(b".")
    if space not in (b"user", b"trusted", b"security"):
        raise fail(errno.EOPNOTSUPP)
    if not rest or b"\0" in name:
        raise fail(errno.EINVAL)
    if space == b"user":
        _check_user_xattr_change(tx, inode)
    elif not tx.who.is_root:
        raise fail(errno.EPERM)


def _check_user_xattr_change(tx: Transaction, inode: Inode) -> None:
    if not (stat.S_ISREG(inode.mode) or is_directory(inode)):
        raise fail(errno.EPERM, "only files and directories have user attributes")
    if is_directory(inode) and inode.mode & stat.S_ISVTX and not is_owner(tx.who, inode):
        raise fail(errno.EPERM, "a sticky directory's attributes are its owner's")
    tx.need(inode, WRITE)
