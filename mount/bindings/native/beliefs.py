"""What the kernel believes under a lease, and how it is made to believe it no more.

It is told attributes and names for as long as they are believed here, so all that ends with the lease, also
if this process is stopped. Before that, the feed revokes:

Attributes of an inode by INVAL_INODE, without pages: it waits for nothing. An answer on its way is not
believed afterwards, because the kernel knows that it has asked before (``attr_version``). If it does not know
the inode yet, its first answer may be on its way, and is believed: then all names go, so that it asks again.

Names by INC_EPOCH (Linux 6.16, FUSE 7.44): all at once, without a lock, those on their way included. Notified
one by one (INVAL_ENTRY) the kernel would wait for its lock of the directory, which may be held by a call that
waits for another mount's word, while that one waits for ours.

* An older kernel is told no names to believe. Nor is it in the answers to READDIRPLUS, because it takes those
  for ones of the epoch in which they arrive.
* A name on which something else is mounted must not go: what is mounted there would be unmounted. So as long
  as there is such a mount no names are told, and those that were told before are waited for.
"""

import logging
import threading
import time
from collections.abc import Collection
from pathlib import Path

from mount.bindings.native.inodes import Inodes
from mount.bindings.native.notifications import Notifications

log = logging.getLogger(__name__)

MOUNTS = Path("/proc/self/mountinfo")
"""proc_pid_mountinfo(5)."""

REVOKED_MAX = 100_000
"""Inodes that are told to the kernel one by one; that many take less than a second."""


class Beliefs:
    """A ``mount.feed.Believer``. ``names_may_go``: the kernel knows INC_EPOCH."""

    def __init__(
        self,
        notifications: Notifications,
        inodes: Inodes,
        mountpoint: Path,
        *,
        names_may_go: bool,
        mounts: Path = MOUNTS,
    ) -> None:
        self._notifications = notifications
        self._inodes = inodes
        self._mountpoint = str(mountpoint)
        self._names_may_go = names_may_go
        self._mounts = mounts
        self._guard = threading.Lock()
        self._tells_names = names_may_go
        self._believed_until = 0.0  # monotonic: no name is believed for longer

    def name_seconds(self, seconds: float) -> float:
        """For how long the kernel may be told to believe a name that is true for ``seconds``."""
        with self._guard:
            if not self._tells_names or seconds <= 0.0:
                return 0.0
            self._believed_until = max(self._believed_until, time.monotonic() + seconds)
            return seconds

    def revoke(self, inos: Collection[int], *, names: bool) -> None:
        """See Believer."""
        for ino in inos:
            names = not self._notifications.drop_attributes(ino) or names
        if names:
            self.revoke_names()

    def revoke_all(self) -> bool:
        """See Believer."""
        inos = self._inodes.known()
        if len(inos) > REVOKED_MAX:
            return False
        try:
            self.revoke(inos, names=True)
        except OSError as error:
            log.info("the kernel could not be made to believe nothing: %s", error)
            return False
        return True

    def revoke_names(self) -> None:
        """The kernel believes no name any more. Raises OSError."""
        if not self._names_may_go:
            return
        with self._guard:
            self._tells_names = not has_mounts_on(self._mounts.read_bytes(), self._mountpoint)
            wait_seconds = 0.0 if self._tells_names else self._believed_until - time.monotonic()
        if self._tells_names:
            self._notifications.next_epoch()
        elif wait_seconds > 0.0:
            log.info("names are believed no more in %.1f s: something is mounted below", wait_seconds)
            time.sleep(wait_seconds)


def has_mounts_on(mounts: bytes, mountpoint: str) -> bool:
    """Whether anything is mounted on a name in the file system at ``mountpoint``, seen from here."""
    rows = [row.split(b" ", 5) for row in mounts.splitlines()]
    devices = {row[0]: row[2] for row in rows}
    ours = next((row[2] for row in reversed(rows) if _unescaped(row[4]) == mountpoint.encode()), None)
    return any(devices.get(row[1]) == ours for row in rows) if ours is not None else False


def _unescaped(place: bytes) -> bytes:
    """As the kernel's seq_path() has not written it: blanks and backslashes are octal there."""
    return place.decode("unicode_escape").encode("latin-1")
