"""Writing back: dirty content becomes a version, or a conflict copy, and is never dropped in silence.

The order is always: chunks to the file servers, the commit's id to the client's disk, the commit to
the directory, only then the lock is given back. A commit whose outcome is unknown is sent again as
it was; the directory knows its id and answers what it answered the first time.
"""

import errno
import logging
import os

import msgspec

from cache.copies import Dirty
from mount.conflicts import save_conflict_copy
from mount.locks import WriteLock
from mount.nodes import Node
from mount.pending import PendingAttrs
from mount.proxy import Proxy
from mount.reading import Reader
from mount.uploads import Uploads
from wire.errors import Busy, ChunksMissing, Conflict, fail
from wire.limits import CHUNK_BYTES, MANIFEST_CHUNKS_MAX
from wire.messages.directory import Attr, ChunkChange, Commit
from wire.permissions import is_owner

log = logging.getLogger(__name__)

COMMIT_ATTEMPTS = 4
REGAIN_SECONDS = 5.0
"""How long a lost lock is asked for again before the content becomes a conflict copy."""

SHARED_WAIT_SECONDS = 30.0
"""How long the commit of a file that programs lock for themselves waits for another mount's writer."""


class Committer:
    """Write-back of a mount's nodes."""

    def __init__(self, proxy: Proxy, reader: Reader) -> None:
        self._proxy = proxy
        self._reader = reader
        self.uploads = Uploads(proxy)

    def commit(self, node: Node) -> None:
        """Makes what is dirty now a version. Raises what stood in the way; it stays dirty then, on disk,
        except after Conflict: then it has become a conflict copy."""
        with node.committing:
            self._commit_and_let_go(node)

    def flush(self, node: Node) -> None:
        """``commit`` for a program that is told. What stood in the way is said to all others too: who has
        waited for this attempt makes none of his own."""
        node.check()
        with node.committing:
            node.check()
            try:
                self._commit_and_let_go(node)
            except OSError as error:
                node.failure = error
                raise

    def give_way_to_programs(self, node: Node) -> None:
        """Of a shared node: commits it and gives the write lock back. Raises as ``commit``."""
        node.rescan()
        if node.lock is not None or node.copy.dirty or node.pending:
            self.commit(node)

    def _commit_and_let_go(self, node: Node) -> None:
        try:
            self._commit(node)
        finally:
            if node.is_shared and node.unsent is None:
                with node.guard:
                    was_held, node.lock = node.lock is not None, None
                if was_held:
                    self._proxy.write_locks.release(node.ino)

    def _commit(self, node: Node) -> None:
        if node.lock is None or node.lock_lost:
            node.rescan()
            if node.copy.dirty or node.pending:
                self._take_lock(node)
        covered = False
        while not covered:
            is_of_now = node.unsent is None  # else it was begun before what was written since
            if is_of_now:
                node.unsent = self._prepare(node)
            unsent = node.unsent
            if unsent is not None:
                self._send(node)
            covered = unsent is None or (is_of_now and len(unsent.chunks) < MANIFEST_CHUNKS_MAX)
            covered = covered and not node.pending  # set while the commit was on its way

    def _take_lock(self, node: Node) -> None:
        """For a commit: of a shared node it is only taken, and the directory finds out whether the base is
        still the newest version; else see ``_regain``."""
        if not node.is_shared or node.lock_lost or node.unsent is not None:
            self._regain(node)
            return
        lock = self._proxy.write_locks.acquire(node.ino, SHARED_WAIT_SECONDS)
        with node.guard:
            node.lock = lock

    def _prepare(self, node: Node) -> Commit | None:
        """Uploads what is dirty and writes down, durably, the commit that is about to be sent."""
        self.uploads.wait_for_early(node)
        with node.guard:
            node.rescan()
            if not node.copy.dirty and not node.pending:
                return None
            snapshot = node.copy.snapshot_dirty()
            node.sent = pending = node.pending
            node.pending = PendingAttrs()
            written, changed = node.written_at or None, max(node.written_at, node.set_at) or None
        try:
            changes = self.uploads.upload_all(node, snapshot)
            commit = self._write_down(node, snapshot, changes, pending)
            return msgspec.structs.replace(commit, written=written, changed=changed)
        except BaseException:
            with node.guard:
                node.pending = pending.overruled(node.pending)
                node.commit_ended()
            raise

    def _write_down(
        self, node: Node, snapshot: Dirty, changes: list[ChunkChange], pending: PendingAttrs
    ) -> Commit:
        assert node.lock is not None, "what is committed is locked"
        if not is_owner(self._proxy.identity(node.caller), node.attr):
            pending = PendingAttrs(pending.mode)  # his times are those that writing sets
        commit = Commit(
            ino=node.ino,
            grant=node.lock.grant,
            base=snapshot.base,
            commit_id=os.urandom(16),
            size=snapshot.size,
            keep_size=snapshot.keep_size,
            chunks=[change for change in changes if change.index * CHUNK_BYTES < snapshot.size],
            mode=pending.mode,
            atime=pending.atime,
            mtime=pending.mtime,
        )
        chunk_ids = {c.index: (c.id, c.size) if c.id else None for c in changes}
        node.copy.begin_commit(snapshot, commit.commit_id, chunk_ids)
        return commit

    def _send(self, node: Node) -> None:
        """Sends ``node.unsent`` until it is answered. What cannot succeed as it is, is prepared anew."""
        for _ in range(COMMIT_ATTEMPTS):
            unsent = node.unsent
            if unsent is None:
                return
            try:
                attr = self._proxy.names.change([unsent], node.caller)[0].attr
            except ChunksMissing as error:
                log.info("inode %d: %d chunks are uploaded again", node.ino, len(error.chunks))
                self._withdraw(node, unsent)
                node.unsent = self._prepare(node)
            except Conflict as error:
                log.info("inode %d: %s", node.ino, error.detail)
                self._regain(node)
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EACCES, errno.EINVAL):  # it never will succeed as it is
                    self._withdraw(node, unsent)
                    if error.errno == errno.EPERM:
                        node.forget_attributes()
                if error.errno == errno.EACCES:  # the lock was lost, and with it what was given at the open
                    self._give_way(node, None, "the lock was lost, and the leave to write was taken away")
                raise
            else:
                assert attr is not None, "a commit is answered with attributes"
                with node.guard:  # what was set explicitly is shown until the directory's word has it
                    self._settle(node, attr.version)
                    self._take_attr(node, attr)
                return
        raise fail(errno.EIO, "the directory refused the commit again and again")

    @staticmethod
    def _withdraw(node: Node, commit: Commit) -> None:
        """The directory did not take this commit and never will."""
        with node.guard:
            node.unsent = None
            node.uploaded.clear()
            node.copy.abort_commit()
            sent = PendingAttrs(commit.mode, commit.atime, commit.mtime)
            node.pending = sent.overruled(node.pending)
            node.commit_ended()

    @staticmethod
    def _settle(node: Node, version: int) -> None:
        with node.guard:
            node.unsent = None
            node.copy.committed(version)
            node.commit_ended()
            if not node.copy.dirty:
                node.written_at = 0
                node.uploaded.clear()
            if not node.pending:
                node.set_at = 0

    def _take_attr(self, node: Node, attr: Attr) -> None:
        with node.guard:
            if attr.change >= node.attr.change:
                node.attr = attr

    # Lost locks

    def regain(self, node: Node) -> None:
        """Takes a lost write lock again, see ``commit`` for what it raises."""
        with node.committing:
            self._regain(node)

    def _regain(self, node: Node) -> None:
        """If somebody else has committed meanwhile, what is dirty here becomes a conflict copy, and
        Conflict is raised; without dirty content the node moves to the newer version."""
        if node.unsent is not None:
            found = self._proxy.directory.find_commit(node.ino, node.unsent.commit_id)
            if found.version:
                self._settle(node, found.version)
        lock, attr, busy = self._lock_again(node)
        was_past_us = node.copy.is_past_us
        with node.guard:
            if self._goes_on(node, lock, attr):
                return
            node.rescan(home=True)
        if node.copy.dirty:
            self._give_way(node, attr)
        if attr is not None:
            node.move_to(attr)
        with node.guard:
            node.unsent = None
            node.copy.abort_commit()
            if node.is_shared and not was_past_us:  # what was set is set of the newer version
                return
            node.forget_attributes()
            if busy is None:
                raise node.outrun()
        raise busy

    def _lock_again(self, node: Node) -> tuple[WriteLock | None, Attr | None, Busy | None]:
        """The lock and what the directory says then, or who has it."""
        lock = attr = None
        try:
            wait_seconds = SHARED_WAIT_SECONDS if node.is_shared else REGAIN_SECONDS
            lock = self._proxy.write_locks.acquire(node.ino, wait_seconds)
            # Not OpenWrite: the leave to write was given when the file was opened.
            attr = self._proxy.directory.attrs([node.ino], node.caller)[0]
        except Busy as error:
            if node.is_shared:
                raise
            log.info("inode %d: %s", node.ino, error.detail)
            return lock, attr, error
        return lock, attr, None

    @staticmethod
    def _goes_on(node: Node, lock: WriteLock | None, attr: Attr | None) -> bool:
        """Under guard: takes what ``_lock_again`` got. Whether nobody else has written meanwhile."""
        node.lock, node.lock_lost = lock, lock is None
        if lock is None or attr is None or attr.version != node.copy.version:
            return False
        node.attr = attr
        if node.unsent is not None:
            node.unsent = msgspec.structs.replace(node.unsent, grant=lock.grant)
        return True

    def _give_way(
        self, node: Node, attr: Attr | None, why: str = "somebody else has written meanwhile"
    ) -> None:
        """The loser of a conflict: its content is kept beside the winner's, and its handles say so."""
        with node.guard:  # from here on nothing is written that the copy would not have
            node.failure = Conflict(why)
            node.rescan(home=True)
        name = save_conflict_copy(self._proxy, self._reader, node)
        error = Conflict(f"{why}; this content is in {os.fsdecode(name)!r}")
        with node.guard:
            node.discard()
            node.failure = error
            node.on_outrun(node)
            if attr is not None:
                node.move_to(attr)
        log.warning("inode %d: %s", node.ino, error.detail)
        raise error
