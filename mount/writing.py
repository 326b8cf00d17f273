"""Who may write a file: the lock, a turn among programs here, the directory's leave; and giving them back."""

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cache.copies import CopyStore
from mount.later_commits import LaterCommits
from mount.locks import WriteLock
from mount.nodes import Node
from mount.proxy import Proxy
from mount.ranges import Ranges
from wire.errors import Busy, Conflict, fail
from wire.messages.common import Caller
from wire.messages.directory import Attr, OpenWrite

log = logging.getLogger(__name__)

LET_GO_SECONDS = 1.0
"""Even a mount that does not wait for locks, and an open with O_NONBLOCK (truncate(1) has it), gives a holder
this long: closing releases in the background."""

WAITERS_MAX = 40
"""Opens that wait for locks at the same time; a binding must have more threads than that."""

GATE_SECONDS = 0.2
"""Even who must not wait does so for a commit or a release that is under way here."""


class Writing(Ranges):
    """Ranges of files whose writers come and go. ``lock_wait_seconds`` is how long opening for writing waits
    for another mount's writer."""

    def __init__(self, proxy: Proxy, copies: CopyStore, lock_wait_seconds: float) -> None:
        super().__init__(proxy, copies)
        self._later = LaterCommits(self._committer, self._on_saved_late)
        self._lock_wait_seconds = lock_wait_seconds
        self._waiters = threading.BoundedSemaphore(WAITERS_MAX)
        proxy.on_lock_lost = self._on_lock_lost

    def _begin_writing(self, node: Node, flags: int, who: Caller | None) -> None:
        reads = flags & os.O_ACCMODE != os.O_WRONLY
        no_wait = bool(flags & os.O_NONBLOCK)
        wait_seconds = LET_GO_SECONDS if no_wait else max(self._lock_wait_seconds, LET_GO_SECONDS)
        try:
            with self._entered(node, wait_seconds) as left_seconds:
                if node.failure is not None and node.writers == 0:
                    node.failure = None
                self._lock_for_writing(node, left_seconds, reads, who)
                node.writers += 1
                if node.lock is not None and node.lock.is_shared:
                    self._note_shared(node)
                if node.is_shared:
                    self._give_way_again(node)
        except Busy as error:
            if no_wait:
                raise fail(errno.EWOULDBLOCK, error.detail) from error
            raise

    def _lock_for_writing(self, node: Node, wait_seconds: float, reads: bool, who: Caller | None) -> None:
        """Under gate: takes the lock unless it is ours, and the directory's leave for this caller."""
        if node.lock is not None and node.lock_lost:
            self._committer.regain(node)
        node.rescan()
        if node.caller != who and (node.copy.dirty or node.pending):
            self._committer.commit(node)  # in the name of who wrote it
        lock = node.lock or self._wait_for_lock(node.ino, wait_seconds)
        try:
            attr = self._open_write(node, lock, reads, who)
        except Conflict:  # it was lost while it waited to be given back, and taken back from there
            if node.lock is not None:
                raise
            lock = self._wait_for_lock(node.ino, wait_seconds)
            attr = self._open_write(node, lock, reads, who)
        if node.lock is None:
            self._follow(node, attr, who)
        with node.guard:
            if node.lock is None:
                # A commit that is still to be sent again was made under the lock that is ours once more.
                if not node.copy.dirty:
                    node.move_to(attr)
                node.lock, node.lock_lost = lock, False
            node.caller = who

    def _give_way_again(self, node: Node) -> None:
        """Under gate, for one more writer of a shared file; if it fails, he is none."""
        try:
            self._committer.give_way_to_programs(node)
        except BaseException:
            node.writers -= 1
            raise

    def _note_shared(self, node: Node) -> None:
        """Programs lock this file for themselves, so its write lock is held for commits only."""
        if not node.is_shared:
            node.is_shared = True
            self._table.note_shared(node)

    def _open_write(self, node: Node, lock: WriteLock, reads: bool, who: Caller | None) -> Attr:
        try:
            attr, _ = self._change(OpenWrite(node.ino, lock.grant, reads), who)
        except BaseException as error:
            if node.lock is None:
                self._proxy.write_locks.release(node.ino, is_void=isinstance(error, Conflict))
            raise
        assert attr is not None, "opening is answered with attributes"
        return attr

    def _follow(self, node: Node, attr: Attr, who: Caller | None) -> None:
        """Under the lock that was just taken."""
        try:
            self._follower.follow(node, attr, who)
        except BaseException:
            self._proxy.write_locks.release(node.ino)
            raise

    def _wait_for_lock(self, ino: int, wait_seconds: float) -> WriteLock:
        """The write lock. Those who wait never take the threads that their holders need to let go. Raises
        InterruptedError."""
        try:
            return self._proxy.write_locks.acquire(ino, 0.0)
        except Busy:
            if not wait_seconds:
                raise
        with self._waiting() as may_wait:
            return self._proxy.write_locks.acquire(
                ino, wait_seconds if may_wait else 0.0, is_interruptible=True
            )

    @contextmanager
    def _waiting(self) -> Iterator[bool]:
        may_wait = self._waiters.acquire(blocking=False)
        try:
            yield may_wait
        finally:
            if may_wait:
                self._waiters.release()

    @contextmanager
    def _entered(self, node: Node, wait_seconds: float) -> Iterator[float]:
        """The node's gate, and what is left of the time: who waits for the lock holds the gate meanwhile,
        and who comes after him waits no longer than he himself may. A lock that others wait for is not
        prolonged by new writers here. Raises Busy and InterruptedError."""

        def may_write() -> bool:
            return node.writers == 0 or node.is_shared or not self._proxy.write_locks.is_wanted(node.ino)

        last_moment = time.monotonic() + wait_seconds
        if not node.gate.enter(GATE_SECONDS, may_write):
            with self._waiting() as may_wait:
                has_entered = may_wait and node.gate.enter(wait_seconds, may_write)
            if not has_entered:
                raise Busy(
                    "another program of this mount is waiting for this file"
                    if may_write()
                    else "another mount waits for this file and it is still open here"
                )
        try:
            yield max(0.0, last_moment - time.monotonic())
        finally:
            node.gate.leave()

    def _stop_writing(self, node: Node) -> bool:
        """One writer less. True if the node must stay pinned because it could not be written back."""
        with node.gate:
            node.writers -= 1
            if node.writers:
                return False
            try:
                self._committer.commit(node)
            except Conflict:
                pass  # said and kept as a conflict copy
            except OSError as error:
                log.warning("inode %d could not be written back, it is tried again: %s", node.ino, error)
                self._later.add(node)
                return True
            except Exception:
                log.exception("inode %d could not be written back, it is tried again", node.ino)
                self._later.add(node)
                return True
            self._let_go(node)
            return False

    def _let_go(self, node: Node) -> None:
        """Under gate: gives the write lock back, unless there is a writer again."""
        if node.writers == 0:
            with node.guard:
                node.lock = None
            self._proxy.write_locks.release(node.ino)

    def _unpin(self, node: Node) -> None:
        # Looked at afterwards: who takes its last name away meanwhile has found it open, or finds it closed.
        if self._table.unpin(node) and node.attr.nlink == 0:
            self._copies.drop(node.ino, force=True)
            self._let_go_of(node.ino)

    def _on_saved_late(self, node: Node) -> None:
        with node.gate:
            self._let_go(node)
        self._unpin(node)

    def _on_lock_lost(self, ino: int) -> None:
        node = self._table.peek(ino)
        if node is not None:
            node.lock_lost = True
