"""Locks that programs take for themselves: flock(2), and fcntl(2) with F_SETLK, F_SETLKW and F_GETLK.

From the first such lock on, what keeps the programs of several mounts apart is their own locks: the file is
*shared*, which means that no mount keeps its write lock from open to close, but only for the moment of a
commit. Whoever gets a lock sees what others have committed before, and whoever gives up an exclusive one has
committed: then the next one reads what he has written.
"""

import errno
import logging

from mount.nodes import Handle, Node
from mount.opening import Opening
from mount.program_notes import Owner
from wire.messages.lock import Range, RangeAnswer

log = logging.getLogger(__name__)


class Locking(Opening):
    """Open files that programs can lock."""

    def give_way(self, ino: int) -> None:
        """Another mount's program has locked a file that is open here, and must commit: from here on it is
        shared here too. Raises what stands in the way of a commit."""
        node = self._table.peek(ino)
        if node is not None:
            self._begin_sharing(node)

    def node_of(self, number: int) -> Node:
        """What a handle is open of."""
        return self._handle(number).node

    def lock(self, number: int, wanted: Range, *, waits: bool) -> RangeAnswer:
        """Takes a lock for its owner, or says what is in conflict; with ``waits`` once there is nothing.

        Raises EDEADLK, ENOLCK, InterruptedError, what stands in the way of a commit (of what was dirty before
        the first lock, or under an exclusive one that is being given up), and what keeps the newest version
        from being seen; then the lock is not taken.
        """
        handle = self._handle(number)
        self._begin_sharing(handle.node)
        if not wanted.is_exclusive:
            self._commit_before_freeing(handle.node, wanted)
        had_some = self._proxy.program_locks.has_some(handle.node.ino, wanted)
        answer = self._proxy.program_locks.take(handle.node.ino, wanted, number, waits=waits)
        if answer.conflict is None:
            try:
                self._see_newest(handle)
            except BaseException:
                if not had_some:  # else the program believes that it has what it had: it has that and more
                    self._proxy.program_locks.free(handle.node.ino, wanted)
                raise
        return answer

    def unlock(self, number: int, gone: Range) -> None:
        """Lets go of what the owner has of these bytes. Raises what stands in the way of the commit; the lock
        is given up all the same."""
        self._free(self._handle(number).node, gone)

    def unlock_owner(self, number: int, owner: int) -> None:
        """close(2) of any descriptor of the file ends all fcntl(2) locks that the process has on it."""
        node = self._handle(number).node
        self._free(node, Owner(node.ino, False, owner).everything())

    def unlock_handle(self, number: int) -> None:
        """Nobody has the open file any more: what was locked through it is not."""
        node = self._handle(number).node
        if not node.is_shared:
            return
        for owner in self._proxy.program_locks.owners_through(node.ino, number):
            try:
                self._free(node, owner.everything())
            except OSError as error:
                log.info("inode %d: its lock is given up before it is committed: %s", node.ino, error)

    def conflict(self, number: int, wanted: Range) -> RangeAnswer:
        """What stands in the way of a lock now."""
        return self._proxy.program_locks.ask(self._handle(number).node.ino, wanted)

    def has_exclusive(self, number: int, within: Range) -> bool:
        """Whether the owner has an exclusive lock of some of these bytes."""
        return self._proxy.program_locks.is_exclusive(self._handle(number).node.ino, within)

    def may_be_mapped(self, number: int) -> bool:
        """Whether there may be a map of this handle that is written to."""
        return self._handle(number).may_map_for_writing

    def release(self, number: int) -> None:
        """Closes a handle, as ``Opening.release``."""
        self.unlock_handle(number)
        super().release(number)

    def _begin_sharing(self, node: Node) -> None:
        """Again, as long as there is a lock to be given back: who came first may not have succeeded."""
        self._note_shared(node)  # who is about to become a writer sees it, and keeps no lock
        if node.writers and node.lock is not None:
            with node.gate:
                self._committer.give_way_to_programs(node)

    def _free(self, node: Node, gone: Range) -> None:
        try:
            self._commit_before_freeing(node, gone)
        finally:
            self._proxy.program_locks.free(node.ino, gone)

    def _commit_before_freeing(self, node: Node, gone: Range) -> None:
        if self._proxy.program_locks.is_exclusive(node.ino, gone):
            node.rescan()
            if node.copy.dirty or node.pending:
                self._committer.flush(node)

    def _see_newest(self, handle: Handle) -> None:
        """What was committed before the lock was granted: the directory has said so, or says it now."""
        node = handle.node
        try:
            attr = self._names.attr(node.ino, handle.caller, fresh=not self._names.is_exact)
        except OSError as error:
            if error.errno != errno.ESTALE:  # then nobody else can open it, and make a version
                raise
            log.info("inode %d has no way to it any more: %s", node.ino, error)
            return
        self._follower.follow(node, attr, handle.caller)

    def _on_program_lock_lost(self, ino: int) -> None:
        """Who has an exclusive lock no more may have read what is not true, and must not write over it."""
        node = self._table.peek(ino)
        if node is not None and not node.is_ours:
            with node.guard:
                node.outrun()
