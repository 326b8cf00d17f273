"""Requests that are about names."""

import errno

from mount.bindings.native import answers, protocol
from mount.bindings.native.context import Context
from mount.bindings.native.protocol import Opcode
from mount.bindings.native.requests import DONE, Answer, Methods, Request
from wire.errors import fail

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
"""<linux/fs.h>"""

FORGOTTEN_AT_ONCE = 1000
"""A request may name 65 000. Between these others look things up, and what was gathered is let go of."""


class Names:
    """One method an opcode, as ``methods`` says."""

    def __init__(self, the: Context) -> None:
        self._the = the
        self.methods: Methods = {
            Opcode.LOOKUP: self.lookup,
            Opcode.FORGET: self.forget,
            Opcode.BATCH_FORGET: self.batch_forget,
            Opcode.READLINK: self.readlink,
            Opcode.SYMLINK: self.symlink,
            Opcode.MKNOD: self.mknod,
            Opcode.MKDIR: self.mkdir,
            Opcode.LINK: self.link,
            Opcode.UNLINK: self.unlink,
            Opcode.RMDIR: self.rmdir,
            Opcode.RENAME: self.rename,
            Opcode.RENAME2: self.rename2,
        }

    def lookup(self, request: Request) -> Answer:
        """A name in a directory."""
        (name,) = protocol.text(request.body, 1)
        try:
            attr = self._the.vfs.lookup(request.nodeid, name, self._the.who(request))
        except FileNotFoundError:
            no_entry = self._the.no_entry(request.nodeid, name)
            if not no_entry:
                raise
            return no_entry
        return self._the.entry(request.nodeid, name, attr, request.pid)

    def forget(self, request: Request) -> None:
        """The kernel forgets an inode. Not answered, as the next."""
        self._the.forget([(request.nodeid, protocol.FORGET_IN.read(request.body).nlookup)])

    def batch_forget(self, request: Request) -> None:
        """Many at once."""
        first, one = protocol.BATCH_FORGET_IN.size, protocol.FORGET_ONE
        count = protocol.BATCH_FORGET_IN.read(request.body).count_
        if count > (len(request.body) - first) // one.size:
            raise protocol.Malformed(f"{count} to forget are not there")
        for done in range(0, count, FORGOTTEN_AT_ONCE):
            numbers = range(done, min(done + FORGOTTEN_AT_ONCE, count))
            self._the.forget(one.read(request.body, first + i * one.size) for i in numbers)

    def readlink(self, request: Request) -> Answer:
        """Where a symlink points."""
        return self._the.vfs.readlink(request.nodeid, self._the.who(request))

    def symlink(self, request: Request) -> Answer:
        """A new symlink."""
        name, target = protocol.text(request.body, 2)
        attr = self._the.vfs.symlink(request.nodeid, name, target, self._the.who(request))
        return self._the.entry(request.nodeid, name, attr)

    def mknod(self, request: Request) -> Answer:
        """A new file, not to be opened."""
        asked = protocol.MKNOD_IN.read(request.body)
        (name,) = protocol.text(request.body, 1, protocol.MKNOD_IN.size)
        rdev = answers.decode_device(asked.rdev)
        attr = self._the.vfs.mknod(
            request.nodeid, name, asked.mode, rdev, self._the.who(request), asked.umask
        )
        return self._the.entry(request.nodeid, name, attr)

    def mkdir(self, request: Request) -> Answer:
        """A new directory."""
        asked = protocol.MKDIR_IN.read(request.body)
        (name,) = protocol.text(request.body, 1, protocol.MKDIR_IN.size)
        attr = self._the.vfs.mkdir(request.nodeid, name, asked.mode, self._the.who(request), asked.umask)
        return self._the.entry(request.nodeid, name, attr)

    def link(self, request: Request) -> Answer:
        """Another name."""
        asked = protocol.LINK_IN.read(request.body)
        (name,) = protocol.text(request.body, 1, protocol.LINK_IN.size)
        attr = self._the.vfs.link(asked.oldnodeid, request.nodeid, name, self._the.who(request))
        return self._the.known_entry(request.nodeid, name, attr)

    def unlink(self, request: Request) -> Answer:
        """A name less."""
        (name,) = protocol.text(request.body, 1)
        self._the.vfs.unlink(request.nodeid, name, self._the.who(request))
        self._the.inodes.removed(request.nodeid, name)
        return DONE

    def rmdir(self, request: Request) -> Answer:
        """A directory less."""
        (name,) = protocol.text(request.body, 1)
        self._the.vfs.rmdir(request.nodeid, name, self._the.who(request))
        self._the.inodes.removed(request.nodeid, name)
        return DONE

    def rename(self, request: Request) -> Answer:
        """rename(2)."""
        asked = protocol.RENAME_IN.read(request.body)
        return self._rename(request, asked.newdir, protocol.RENAME_IN.size, 0)

    def rename2(self, request: Request) -> Answer:
        """renameat2(2)."""
        asked = protocol.RENAME2_IN.read(request.body)
        return self._rename(request, asked.newdir, protocol.RENAME2_IN.size, asked.flags)

    def _rename(self, request: Request, folder: int, names_at: int, flags: int) -> Answer:
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise fail(errno.EINVAL)
        old, new = protocol.text(request.body, 2, names_at)
        self._the.vfs.rename(request.nodeid, old, folder, new, flags, self._the.who(request))
        exchanged = bool(flags & RENAME_EXCHANGE)
        self._the.inodes.renamed((request.nodeid, old), (folder, new), exchanged=exchanged)
        return DONE
