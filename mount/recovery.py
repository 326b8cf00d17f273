"""After a mount that was killed: what its cache folder holds that was never committed.

For each dirty copy the directory is asked first whether the commit that was under way has arrived.
What a close or fsync had begun is committed now, if its base is still the current version. All else
(content of programs that never got that far, or that lost to another writer) becomes a conflict copy, unless
its file never had a name.

What a service stood in the way of is tried again in the background, and before the mount opens the
file: until it is settled the dirty content is shown to nobody.
"""

import itertools
import logging
import os
import threading
from collections import Counter
from contextlib import closing

from cache.copies import CopyStore, LocalCopy, Pending
from clients.attempts import Attempts
from mount import turns
from mount.committing import Committer
from mount.conflicts import NO_NAME, save_conflict_copy
from mount.locks import WriteLock
from mount.nodes import Node
from mount.proxy import Proxy
from mount.reading import Reader
from wire.chunking import fits
from wire.errors import Busy, Conflict, Unavailable
from wire.limits import LOCK_LEASE_SECONDS
from wire.messages.directory import Attr

log = logging.getLogger(__name__)

RETRY_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)

LATE_SECONDS = 5.0
"""How long after the end of a dead mount's lease its locks are still waited for."""

NOTHING_WRITTEN = "it was open for writing, and nothing was written"
NEVER_NAMED = "it was made without a name, and nobody has it open any more"


class Recovery:
    """The dirty copies that a mount finds in its cache folder, until each is settled. To be made before
    anything is opened; ``run`` at the mount's start, then ``start``, and ``close`` at its end.

    Invariant: an inode in ``_left`` has no node in the mount, because who opens it calls ``settle`` first.
    So recovery and the mount never work on the same copy.
    """

    def __init__(self, proxy: Proxy, copies: CopyStore) -> None:
        self._proxy = proxy
        self._copies = copies
        # What programs still have open is not over: the worker goes on with it (mount.takeover).
        self._found = {ino: Attempts() for ino in {*copies.dirty_inos()} - proxy.slate.open_inos()}
        self._left = set(self._found)
        self._failures: Counter[int] = Counter()
        self._stop = threading.Event()
        self._retries = threading.Thread(target=self._retry_loop, name="recovery", daemon=True)

    def start(self) -> None:
        """Starts the thread of later attempts."""
        self._retries.start()

    def close(self) -> None:
        """Ends it, after the attempt that is under way. What is left stays for the next mount."""
        self._stop.set()
        self._retries.join()

    def left(self) -> list[int]:
        """The inodes whose dirty copies are not settled."""
        return sorted(self._left)

    def run(self) -> None:
        """Tries all that are left, those first that have failed least often, until a service does not
        answer: the next one would wait a whole deadline for it too."""
        for ino in sorted(self._left, key=self._failures.__getitem__):
            if self._stop.is_set():
                return
            try:
                self.settle(ino)
            except Unavailable as error:
                self._note(ino, error)
                return
            except Exception as error:  # one copy that is damaged must not keep the others, or the mount
                self._note(ino, error)

    def settle(self, ino: int) -> bool:
        """Settles the dirty copy of ``ino``, if there is one that is left. Raises what stands in the way;
        those who wait for the same copy share it. Returns whether there was one when the mount began: what
        was known of the inode before this call may be of an older version."""
        attempts = self._found.get(ino)
        if attempts is None:
            return False
        if ino in self._left:
            turns.about_to_wait()  # for who settles it already, or for services
        with attempts.turn():
            if ino in self._left:
                with closing(self._copies.open(ino)) as copy:
                    outcome = _recover(self._proxy, copy)
                level = logging.INFO if outcome in (NOTHING_WRITTEN, NEVER_NAMED) else logging.WARNING
                log.log(level, "inode %d: %s", ino, outcome)
                self._left.remove(ino)
        return True

    def _note(self, ino: int, error: Exception) -> None:
        self._failures[ino] += 1
        log.log(
            logging.WARNING if self._failures[ino] == 1 else logging.INFO,
            "inode %d is dirty from an earlier mount and cannot be settled now (%d are left): %r",
            *(ino, len(self._left), error),
        )

    def _retry_loop(self) -> None:
        for attempt in itertools.count():
            pause = RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
            if not self._left or self._stop.wait(pause):
                return
            self.run()


def _recover(proxy: Proxy, copy: LocalCopy) -> str:
    """What became of it, for the log."""
    attr = proxy.directory.attrs([copy.ino])[0]
    if attr is not None and _never_had_name(copy, attr):
        copy.discard()
        return NEVER_NAMED
    node = Node(copy, attr or _removed(copy))
    pending = copy.pending()
    if pending is not None:
        found = proxy.directory.find_commit(copy.ino, pending.commit_id)
        if found.version:
            copy.committed(found.version)
            if not copy.dirty:
                return "its last commit had arrived"
        elif attr is not None and _is_whole(copy, pending) and _commit(proxy, node, pending):
            return "its last commit was sent again"
    if not copy.dirty and pending is None:
        return NOTHING_WRITTEN
    if not copy.dirty:
        return "it lost to another writer, and was kept as a conflict copy"
    name = save_conflict_copy(proxy, Reader(proxy), node)
    copy.discard()
    return f"content that was never committed is kept as {os.fsdecode(name)!r}"


def _is_whole(copy: LocalCopy, pending: Pending) -> bool:
    """Whether the file has what was to be committed: nothing was written since, and (after a loss of power)
    nothing is missing."""
    return not pending.later_changes and all(
        fits(known[0], copy.chunk_bytes(index)) if known else not copy.chunk_bytes(index)
        for index, known in pending.chunk_ids.items()
    )


def _commit(proxy: Proxy, node: Node, pending: Pending) -> bool:
    """Commits under a lock of our own, if nobody has written meanwhile. Until the new commit is written down
    the old one is on disk: what a failure or a kill leaves is still known to have been begun."""
    reader = Reader(proxy)
    committer = Committer(proxy, reader)
    try:
        lock = _lock_of_the_dead(proxy, node.ino)
    except Busy:
        return False
    try:
        attr = proxy.directory.attrs([node.ino])[0]
        if attr is None or attr.version != node.copy.version:
            return False
        committer.uploads.upload_ahead(node, pending.chunk_ids)
        node.copy.begin_anew()
        node.lock = lock
        committer.commit(node)
    except (Conflict, PermissionError):  # the leave to write was the dead mount's, or another user's
        return False
    finally:
        proxy.write_locks.release(node.ino)
    return True


def _lock_of_the_dead(proxy: Proxy, ino: int) -> WriteLock:
    """It is free when the dead mount's own lease is over. How long that is, the refusal says; a lock server
    that was started again may keep a lock longer than that. Raises Busy: it is somebody else's."""
    try:
        return proxy.write_locks.acquire(ino, 0.0)
    except Busy:
        longest = max(proxy.lock.lease.seconds, LOCK_LEASE_SECONDS)
        return proxy.write_locks.acquire(ino, longest + LATE_SECONDS)


def _never_had_name(copy: LocalCopy, attr: Attr) -> bool:
    """Whether it went with the programs that had it open, as a file of O_TMPFILE does."""
    origin = copy.origin()
    return attr.nlink == 0 and origin is not None and origin[1] == NO_NAME


def _removed(copy: LocalCopy) -> Attr:
    """For an inode that is gone: a conflict copy needs a mode."""
    return Attr(copy.ino, 0o100600, 0, 0, 0, 0, copy.size, 0, 0, 0, copy.version, 0, False)
