"""What all operations of a mount share, and how attributes are told to the kernel."""

import stat

from mount.bindings.callers import caller
from mount.bindings.native import answers
from mount.bindings.native.inodes import NAME_SECONDS, Inodes
from mount.bindings.native.listings import LASTING_SECONDS, Listings
from mount.bindings.native.notifications import Notifications
from mount.bindings.native.passthrough import Passthrough
from mount.bindings.native.requests import Request
from mount.nodes import Handle
from mount.owners import Owners
from mount.vfs import Vfs
from wire.messages.common import Caller
from wire.messages.directory import Attr


class Context:
    """The parts of a mount; thread-safe.

    The kernel may believe a name for ``NAME_SECONDS``. What it is told is never a belief of ours, or the two
    times would add up; attributes are told for as long as they are believed here. ``passes``: the kernel may
    serve open files itself.
    """

    def __init__(
        self,
        vfs: Vfs,
        descriptor: int,
        owners: Owners,
        *,
        trusted: bool,
        passes: bool,
    ) -> None:
        self.vfs = vfs
        self.notifications = Notifications(descriptor)
        self.owners = owners
        self.inodes = Inodes()
        self.listings = Listings()
        self.passthrough = Passthrough(vfs, descriptor, self.release, is_possible=passes)
        self._trusted = trusted

    def who(self, request: Request) -> Caller | None:
        """For whom a request is made."""
        return caller(request.uid, request.gid, request.pid) if self._trusted else None

    def may_keep_listing(self, ino: int) -> bool:
        """Whether the kernel may keep the listing of a directory, and list it out of its cache."""
        return self.vfs.attr_seconds(ino) >= LASTING_SECONDS

    def release(self, handle: Handle) -> None:
        """Ends an open file."""
        try:
            self.vfs.release(handle.number)
        finally:
            self.inodes.closed(handle.node)

    def entry(self, parent: int, name: bytes, attr: Attr, pid: int = 0) -> bytes:
        """fuse_entry_out of a name that the kernel is told of. One name of several is not believed for a
        moment: an open brings the inode only, and would walk another of its names. ``pid``: who asks."""
        is_only_name = attr.nlink == 1 or stat.S_ISDIR(attr.mode)
        name_seconds = NAME_SECONDS if is_only_name else 0.0
        self.inodes.looked_up(attr.ino, parent, name, attr.version, seconds=name_seconds, pid=pid)
        return answers.entry_out(attr, self.owners, name_seconds, self.vfs.attr_seconds(attr.ino))

    def attr(self, attr: Attr) -> bytes:
        """fuse_attr_out."""
        self.inodes.told(attr.ino, attr.version)
        return answers.attr_out(attr, self.owners, self.vfs.attr_seconds(attr.ino))
