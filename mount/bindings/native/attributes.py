"""Requests that are about attributes, and extended ones."""

import stat

from mount.bindings.native import answers, protocol
from mount.bindings.native.context import Context
from mount.bindings.native.protocol import Fattr, Opcode
from mount.bindings.native.requests import DONE, Answer, Methods, Request
from mount.vfs import Changes
from wire.messages.directory import Attr


class Attributes:
    """One method an opcode, as ``methods`` says."""

    def __init__(self, the: Context) -> None:
        self._the = the
        self.methods: Methods = {
            Opcode.GETATTR: self.getattr,
            Opcode.STATX: self.statx,
            Opcode.SETATTR: self.setattr,
            Opcode.ACCESS: self.access,
            Opcode.STATFS: self.statfs,
            Opcode.GETXATTR: self.getxattr,
            Opcode.LISTXATTR: self.listxattr,
            Opcode.SETXATTR: self.setxattr,
            Opcode.REMOVEXATTR: self.removexattr,
        }

    def getattr(self, request: Request) -> Answer:
        """stat(2)."""
        asked = protocol.GETATTR_IN.read(request.body)
        return self._the.attr(self._stat(request, asked.getattr_flags, asked.fh))

    def statx(self, request: Request) -> Answer:
        """statx(2), when it asks for the time of birth."""
        asked = protocol.STATX_IN.read(request.body)
        attr = self._stat(request, asked.getattr_flags, asked.fh)
        self._the.inodes.told(attr.ino, attr.version)
        return answers.statx_out(attr, self._the.owners, self._the.vfs.attr_seconds(attr))

    def _stat(self, request: Request, flags: int, number: int) -> Attr:
        if flags & protocol.GETATTR_FH:
            return self._the.vfs.handle_attr(number)
        return self._the.vfs.getattr(request.nodeid, self._the.who(request))

    def setattr(self, request: Request) -> Answer:
        """chmod(2), chown(2), truncate(2), utimensat(2)."""
        asked = protocol.SETATTR_IN.read(request.body)
        valid, owners = asked.valid, self._the.owners

        def time(which: Fattr, now: Fattr, seconds: int, nanoseconds: int) -> int | None:
            if not valid & which or valid & now:
                return None
            return answers.since_epoch(seconds, nanoseconds)

        changes = Changes(
            mode=asked.mode if valid & Fattr.MODE else None,
            uid=owners.uid(asked.uid) if valid & Fattr.UID else None,
            gid=owners.gid(asked.gid) if valid & Fattr.GID else None,
            size=asked.size if valid & Fattr.SIZE else None,
            atime=time(Fattr.ATIME, Fattr.ATIME_NOW, asked.atime, asked.atimensec),
            mtime=time(Fattr.MTIME, Fattr.MTIME_NOW, asked.mtime, asked.mtimensec),
            atime_now=bool(valid & Fattr.ATIME_NOW),
            mtime_now=bool(valid & Fattr.MTIME_NOW),
        )
        if changes == Changes():
            # chown(2) without owners; or a write by who must not keep set-id bits: before the first one the
            # kernel says no more than this (file_remove_privs()).
            who = self._the.who(request)
            return self._the.attr(self._the.vfs.drop_privileges(request.nodeid, who, may_be_chown=True))
        number = asked.fh if valid & Fattr.FH else None
        attr = self._the.vfs.setattr(request.nodeid, changes, self._the.who(request), number)
        if stat.S_ISDIR(attr.mode) and valid & (Fattr.MODE | Fattr.UID | Fattr.GID):
            self._the.access_changed(attr)
        return self._the.attr(attr)

    def access(self, request: Request) -> Answer:
        """access(2) and chdir(2)."""
        self._the.vfs.access(
            request.nodeid, protocol.ACCESS_IN.read(request.body).mask, self._the.who(request)
        )
        return DONE

    def statfs(self, request: Request) -> Answer:
        """statfs(2)."""
        return answers.statfs_out(self._the.vfs.statfs())

    # Extended attributes

    def getxattr(self, request: Request) -> Answer:
        """getxattr(2)."""
        asked = protocol.GETXATTR_IN.read(request.body)
        (name,) = protocol.text(request.body, 1, protocol.GETXATTR_IN.size)
        return answers.as_large_as(
            asked.size, self._the.vfs.getxattr(request.nodeid, name, self._the.who(request))
        )

    def listxattr(self, request: Request) -> Answer:
        """listxattr(2)."""
        asked = protocol.GETXATTR_IN.read(request.body)
        names = self._the.vfs.listxattr(request.nodeid, self._the.who(request))
        return answers.as_large_as(asked.size, b"".join(name + b"\0" for name in names))

    def setxattr(self, request: Request) -> Answer:
        """setxattr(2)."""
        asked = protocol.SETXATTR_IN.read(request.body)
        (name,) = protocol.text(request.body, 1, protocol.SETXATTR_IN.size)
        first = protocol.SETXATTR_IN.size + len(name) + 1
        value = bytes(request.body[first : first + asked.size])
        if len(value) != asked.size:
            raise protocol.Malformed("the value is not there")
        self._the.vfs.setxattr(request.nodeid, name, value, asked.flags, self._the.who(request))
        return DONE

    def removexattr(self, request: Request) -> Answer:
        """removexattr(2)."""
        (name,) = protocol.text(request.body, 1)
        self._the.vfs.removexattr(request.nodeid, name, self._the.who(request))
        return DONE
