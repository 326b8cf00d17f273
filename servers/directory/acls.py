"""What happens to POSIX ACLs: set, removed, and passed on to what is made in a directory.

Order and errors as in Linux: set_posix_acl(), posix_acl_update_mode() and posix_acl_create() of
fs/posix_acl.c. An access ACL is kept as mode and extension (wire.acl), so every change of the mode is one of
the ACL; a default ACL is an extended attribute.
"""

import errno
import stat

from servers.directory import store
from servers.directory.attributes import check_chmod, drop_xattr, put_xattr
from servers.directory.store import Inode
from servers.directory.transaction import Transaction
from servers.directory.view import is_directory
from wire.acl import ACCESS, DEFAULT, Acl, build, parse
from wire.errors import fail
from wire.messages.directory import RemoveXattr, Result, SetXattr
from wire.permissions import mode_after_acl


def set_acl(tx: Transaction, op: SetXattr) -> Result:
    """Sets an ACL; one without entries removes it. Raises EINVAL and others as ``parse``, EPERM for who does
    not own the inode, EACCES for a default ACL of what is no directory."""
    acl = parse(op.value)
    if acl is None:
        return remove_acl(tx, RemoveXattr(op.ino, op.name))
    inode = tx.reach(op.ino)
    if op.name == DEFAULT and not is_directory(inode):
        raise fail(errno.EACCES, "only directories have default ACLs")
    check_chmod(tx, inode)
    if op.name == ACCESS:
        _set_access(tx, inode, acl)
    else:
        put_xattr(tx, inode, DEFAULT, build(*acl))
    tx.stamp(inode, tx.tick())
    return Result(inode.attr())


def _set_access(tx: Transaction, inode: Inode, acl: Acl) -> None:
    if is_directory(inode):
        tx.change_ways()
    inode.mode = mode_after_acl(tx.who, inode, acl.permissions)
    inode.acl = acl.extension


def remove_acl(tx: Transaction, op: RemoveXattr) -> Result:
    """The mode stays: what was the mask says from now on what the group may. If there is none, nothing
    happens."""
    inode = tx.reach(op.ino)
    check_chmod(tx, inode)
    if op.name == ACCESS:
        has_changed = bool(inode.acl)
        if has_changed and is_directory(inode):
            tx.change_ways()
        inode.acl = b""
    else:
        has_changed = drop_xattr(tx, inode, DEFAULT)
    if has_changed:
        tx.stamp(inode, tx.tick())
    return Result(inode.attr())


def pass_on(tx: Transaction, parent: Inode, inode: Inode, umask: int) -> None:
    """A new inode gets what its directory has as default ACL; without one, ``umask`` takes its due."""
    if stat.S_ISLNK(inode.mode):
        return
    value = store.get_xattr(tx.connection, parent.ino, DEFAULT) if parent.xattrs else None
    acl = None if value is None else parse(value)
    if acl is None:
        inode.mode &= ~(umask & 0o777)
        return
    inode.mode &= ~0o777 | acl.permissions
    inode.acl = acl.extension
    if is_directory(inode):
        put_xattr(tx, inode, DEFAULT, build(*acl))
