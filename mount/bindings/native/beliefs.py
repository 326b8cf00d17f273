"""What the kernel believes under a lease, and how it is made to believe it no more.

It is told attributes and names for as long as they are believed here, so all that ends with the lease, also
if this process is stopped. Before that, the feed revokes:

Attributes of an inode by INVAL_INODE, without pages: it waits for nothing. An answer on its way is not
believed afterwards, because the kernel knows that it has asked before (``attr_version``). If it does not know
the inode though it was told, the answer is on its way, and will be believed: then all names go, so that it
asks again.

Names by INC_EPOCH (Linux 6.16, FUSE 7.44): all at once, without a lock, those on their way included. Notified
one by one (INVAL_ENTRY) the kernel would wait for its lock of the directory, which may be held by a call that
waits for another mount's word, while that one waits for ours; and a name that it is just asking for again
would be believed nevertheless. The price: it looks up anew all names that are used. So names go only if it
may believe one in a directory that has changed.

* An older kernel is told no names to believe. Nor is it in the answers to READDIRPLUS, because it takes those
  for ones of the epoch in which they arrive.
* A name on which something else is mounted must not go: what is mounted there would be unmounted. So as long
  as there is such a mount no names are told, and those that were told before are waited for.

Whatever is told is noted as told *before* it is looked whether it is believed here; the feed first sees to
that nothing is believed here, and then looks what was told. So one of the two sees the other.
"""

import errno
import logging
import re
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from mount.bindings.native.inodes import Inodes
from mount.bindings.native.listings import Listings
from mount.bindings.native.notifications import ALL, Notifications
from wire.errors import fail

log = logging.getLogger(__name__)

MOUNTS = Path("/proc/self/mountinfo")
"""proc_pid_mountinfo(5)."""

REVOKED_MAX = 100_000
"""Inodes that are told to the kernel one by one; that many take less than a second."""

NAME_SECONDS_MAX = 10.0
"""Names are told for no longer, however long the lease is."""

FOLDERS_MAX = 10_000
"""Directories of which it is known until when names in them are believed."""


class Beliefs:
    """A ``mount.feed.Believer``. ``names_may_go``: the kernel knows INC_EPOCH."""

    def __init__(
        self,
        notifications: Notifications,
        inodes: Inodes,
        listings: Listings,
        mountpoint: Path,
        *,
        names_may_go: bool,
        mounts: Path = MOUNTS,
    ) -> None:
        self._notifications = notifications
        self._inodes = inodes
        self._listings = listings
        self._mountpoint = str(mountpoint)
        self._names_may_go = names_may_go
        self._mounts = mounts
        self._guard = threading.Lock()
        self._tells_names = names_may_go
        self._until: dict[int, float] = {}  # monotonic, by directory: its names are believed no longer
        self._until_elsewhere = time.monotonic() + NAME_SECONDS_MAX  # an earlier worker may have told some

    def tell_name(self, folder: int, seconds: Callable[[], float]) -> float:
        """For how long the kernel may be told to believe a name in a directory. ``seconds`` says for how
        long it is believed here; it is asked when it is noted that the name is told."""
        with self._guard:
            if not self._tells_names:
                return 0.0
            if len(self._until) >= FOLDERS_MAX:
                self._until_elsewhere = max(self._until.values())
                self._until.clear()
            self._until[folder] = time.monotonic() + NAME_SECONDS_MAX
        return min(seconds(), NAME_SECONDS_MAX)

    def revoke(self, inos: Collection[int]) -> None:
        """See Believer."""
        for ino in inos:
            # For who has it open, and rewinds it.
            if self._listings.knows(ino) and not self._notifications.drop(ino, ALL):
                raise fail(errno.EAGAIN, f"the listing of inode {ino} is in the kernel still")
        self.take_back(inos)

    def take_back(self, inos: Collection[int]) -> None:
        """Attributes of these inodes, and names in them, hold no more. Raises OSError if that could not be
        done."""
        known = [self._notifications.drop_attributes(ino) or not self._inodes.knows(ino) for ino in inos]
        if not all(known) or any(map(self._may_have_told_names, inos)):
            self._revoke_names()

    def revoke_all(self) -> bool:
        """See Believer."""
        inos = self._inodes.known()
        if len(inos) > REVOKED_MAX:
            return False
        try:
            for ino in inos:
                self._notifications.drop_attributes(ino)
            self._revoke_names()
        except OSError as error:
            log.info("the kernel could not be made to believe nothing: %s", error)
            return False
        return True

    def closed_to_its_user(self) -> None:
        """A directory must not be walked through any more by the one who walks here. That is for this process
        to say, so all names are asked for again; but not to the harm of who has mounted something on one."""
        if self._names_may_go and not self._has_mounts():
            self._notifications.next_epoch()

    def _may_have_told_names(self, folder: int) -> bool:
        with self._guard:
            return time.monotonic() < max(self._until.get(folder, 0.0), self._until_elsewhere)

    def _revoke_names(self) -> None:
        if not self._names_may_go:
            return
        has_mounts = self._has_mounts()
        with self._guard:
            until = max(self._until.values(), default=self._until_elsewhere)
            self._tells_names = not has_mounts
        if not has_mounts:
            self._notifications.next_epoch()
            with self._guard:  # but what was told since may still be of the epoch before
                self._until = {folder: end for folder, end in self._until.items() if end > until}
                self._until_elsewhere *= self._until_elsewhere > until
        elif (wait_seconds := until - time.monotonic()) > 0.0:
            log.info("names are believed no more in %.1f s: something is mounted below", wait_seconds)
            time.sleep(wait_seconds)

    def _has_mounts(self) -> bool:
        return has_mounts_on(self._mounts.read_bytes(), self._mountpoint)


def has_mounts_on(mounts: bytes, mountpoint: str) -> bool:
    """Whether anything is mounted on a name in the file system at ``mountpoint``, seen from here. ``mounts``
    is as proc_pid_mountinfo(5) says: number, number of the mount that it is on, device, root, place …"""
    rows = [row.split(b" ", 5) for row in mounts.splitlines()]
    devices = {number: device for number, _, device, *_ in rows}
    place = mountpoint.encode(errors="surrogateescape")
    ours = next((row[2] for row in reversed(rows) if _unescaped(row[4]) == place), None)
    return ours is not None and any(devices.get(row[1]) == ours for row in rows)


def _unescaped(place: bytes) -> bytes:
    """Blanks and backslashes are octal there."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), place)
