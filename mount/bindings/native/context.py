"""What all operations of a mount share, and how attributes are told to the kernel."""

import logging
import stat
import threading
from collections.abc import Iterable
from pathlib import Path

from clients.session import now_awake_or_not
from mount import turns
from mount.bindings.callers import caller
from mount.bindings.native import answers
from mount.bindings.native.beliefs import Beliefs
from mount.bindings.native.inodes import NAME_SECONDS, Inodes
from mount.bindings.native.listings import Listings
from mount.bindings.native.notifications import Notifications
from mount.bindings.native.passthrough import Passthrough
from mount.bindings.native.requests import Request
from mount.nodes import Handle
from mount.owners import Owners
from mount.vfs import Vfs
from wire.messages.common import Caller
from wire.messages.directory import Attr

log = logging.getLogger(__name__)


class Context:
    """The parts of a mount; thread-safe.

    Without a lease the kernel may believe a name for ``NAME_SECONDS``. What it is told then is never a belief
    of ours, or the two times would add up; attributes are told for as long as they are believed here.
    ``passes``: the kernel may serve open files itself; ``names_may_go``: it knows INC_EPOCH.
    """

    def __init__(
        self,
        vfs: Vfs,
        descriptor: int,
        owners: Owners,
        *,
        trusted: bool,
        passes: bool,
        mountpoint: Path,
        names_may_go: bool,
    ) -> None:
        self.vfs = vfs
        self.notifications = Notifications(descriptor)
        self.owners = owners
        self.inodes = Inodes()
        self.listings = Listings()
        self.beliefs = Beliefs(
            self.notifications, self.inodes, self.listings, mountpoint, names_may_go=names_may_go
        )
        self.passthrough = Passthrough(vfs, descriptor, self.release, is_possible=passes)
        self.is_trusted = trusted
        self._telling = _Telling()

    def who(self, request: Request) -> Caller | None:
        """For whom a request is made."""
        return caller(request.uid, request.gid, request.pid) if self.is_trusted else None

    def may_keep_listings(self) -> bool:
        """Whether the kernel may keep the listing of a directory, and list it out of its cache. There it has
        names without attributes, and asks for those one by one: under a lease that costs no round trip."""
        return self.vfs.is_exact

    def release(self, handle: Handle) -> None:
        """Ends an open file. The end of one that only reads commits nothing, so its pages are known for what
        they are before it: who opens the file anew at this moment, and finds another node, may keep them."""
        if not handle.is_writer:
            if handle.is_noted:  # else it rests, and is closed for the kernel
                self.inodes.closed(handle.node)
            self.vfs.release(handle.number)
            return
        try:
            self.vfs.release(handle.number)
        finally:
            self.inodes.closed(handle.node)

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        """The kernel takes back lookups: (inode, how many)."""
        inos, names = self.inodes.forget(forgotten)
        self.vfs.forget(inos, names)

    def entry(
        self, parent: int, name: bytes, attr: Attr, pid: int = 0, *, attr_seconds: float | None = None
    ) -> bytes:
        """fuse_entry_out of a name that the kernel is told of. ``pid``: who asks. ``attr_seconds``: for how
        long the attributes may be believed, if not for as long as they are believed here."""
        if self.vfs.is_exact:
            self.inodes.looked_up(attr.ino, parent, name, attr.version, seconds=0.0)
            self._telling.note(parent)
            name_seconds = self.beliefs.tell_name(
                parent, lambda: self.vfs.name_seconds(parent, name, attr.ino)
            )
        else:
            # One name of several is not believed for a moment: an open brings the inode only, and would walk
            # another of its names.
            is_only_name = attr.nlink == 1 or stat.S_ISDIR(attr.mode)
            name_seconds = NAME_SECONDS if is_only_name else 0.0
            self.inodes.looked_up(attr.ino, parent, name, attr.version, seconds=name_seconds, pid=pid)
        seconds = self.attr_seconds(attr) if attr_seconds is None else attr_seconds
        return answers.entry_out(attr, self.owners, name_seconds, seconds)

    def nameless_entry(self, attr: Attr) -> bytes:
        """fuse_entry_out of a file that was made without a name, and that the kernel cannot know yet."""
        self.inodes.made_nameless(attr.ino, attr.version)
        return answers.entry_out(attr, self.owners, 0.0, self.attr_seconds(attr))

    def known_entry(self, parent: int, name: bytes, attr: Attr) -> bytes:
        """As ``entry``, for LINK and CREATE of an inode that the kernel may know already: it takes attributes
        in these answers also if it was told meanwhile to forget the inode (fuse_iget() without
        ``attr_version``, in create_new_entry() of fs/fuse/dir.c). So it is to believe none of them."""
        return self.entry(parent, name, attr, attr_seconds=0.0 if self.vfs.is_exact else None)

    def listed(self, parent: int, name: bytes, attr: Attr) -> bytes:
        """As ``entry``, in a listing: see ``beliefs`` for names that came so under a lease."""
        if not self.vfs.is_exact:
            return self.entry(parent, name, attr)
        self.inodes.looked_up(attr.ino, parent, name, attr.version, seconds=0.0)
        return answers.entry_out(attr, self.owners, 0.0, self.attr_seconds(attr))

    def no_entry(self, parent: int, name: bytes) -> bytes:
        """fuse_entry_out that says for how long there is no such name; empty if that may not be said."""
        self._telling.note(parent)
        seconds = self.beliefs.tell_name(parent, lambda: self.vfs.name_seconds(parent, name, 0))
        return answers.no_entry_out(seconds) if seconds else b""

    def access_changed(self, folder: Attr) -> None:
        """A program here has changed who may walk through a directory."""
        if self.vfs.is_exact and not self.vfs.may_search(folder):
            self.beliefs.closed_to_its_user()

    def attr(self, attr: Attr) -> bytes:
        """fuse_attr_out."""
        self.inodes.told(attr.ino, attr.version)
        return answers.attr_out(attr, self.owners, self.attr_seconds(attr))

    def attr_seconds(self, attr: Attr) -> float:
        """For how long the kernel may believe attributes that it is to be told with this thread's answer."""
        self._telling.note(attr.ino)
        return self.vfs.attr_seconds(attr)

    def written(self) -> None:
        """The kernel has this thread's answer, and counts from now on. If it came late (this process was
        stopped, or had to wait), that is for longer than we may count on: then it is taken back."""
        inos, seconds = self._telling.end()
        if inos and seconds > self.vfs.slack_seconds:
            turns.about_to_wait()  # below a name on which something is mounted, until it is believed no more
            try:
                self.beliefs.take_back(inos)
            except OSError as error:
                log.info("what came late to the kernel could not be taken back: %s", error)


class _Telling(threading.local):
    """What this thread's answer tells the kernel to believe: of which inodes, and since when it is true."""

    def __init__(self) -> None:
        self._inos: list[int] = []
        self._since = 0.0

    def note(self, ino: int) -> None:
        """Before it is looked for how long it may be believed."""
        if not self._inos:
            self._since = now_awake_or_not()
        self._inos.append(ino)

    def end(self) -> tuple[list[int], float]:
        """The inodes, and how many seconds ago they were first noted."""
        inos = self._inos
        if not inos:
            return inos, 0.0
        self._inos = []
        return inos, now_awake_or_not() - self._since
