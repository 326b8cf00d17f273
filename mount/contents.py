"""The content of open files: reading, writing, cutting, and what close(2) and fsync(2) promise."""

import errno
import logging
import stat
from collections.abc import Callable

from cache.copies import CopyStore
from mount.committing import Committer
from mount.names import UNCERTAIN
from mount.nodes import Handle, Node
from mount.proxy import Proxy
from mount.reading import Reader
from mount.tree import Changes, Tree
from wire.acl import ACCESS
from wire.errors import fail
from wire.limits import CHUNK_BYTES, FILE_BYTES_MAX
from wire.messages.common import Caller
from wire.messages.directory import Attr, SetAttr
from wire.names import check_name
from wire.permissions import CAPABILITIES, SET_IDS, is_owner

log = logging.getLogger(__name__)


def _partly_covered(offset: int, size: int, file_size: int) -> list[int]:
    """The chunks that a write of this range changes in part only, and that have content to be kept."""
    end = offset + size
    borders = []
    first, last = offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES
    if offset % CHUNK_BYTES and first * CHUNK_BYTES < file_size:
        borders.append(first)
    ends_inside = end % CHUNK_BYTES and end < file_size
    if ends_inside and last not in borders:
        borders.append(last)
    return borders


def _cut_through(offset: int, size: int, file_size: int) -> list[int]:
    """The chunk that a file is cut through at ``offset``; growing changes none."""
    return [offset // CHUNK_BYTES] if offset % CHUNK_BYTES and offset < file_size else []


class Contents(Tree):
    """A tree whose open files can be read and written."""

    def __init__(self, proxy: Proxy, copies: CopyStore) -> None:
        super().__init__(proxy, copies)
        self._reader = Reader(proxy)
        self._committer = Committer(proxy, self._reader)

    def inode_of(self, number: int) -> int:
        """The inode of an open file."""
        return self._handle(number).node.ino

    def handle_attr(self, number: int) -> Attr:
        """The attributes of an open file, also when no way leads to it any more: then the last ones that were
        known."""
        node = self._handle(number).node
        if node.is_ours:
            return self._our_attr(node, node.caller)
        try:
            return self._shown(self._names.attr(node.ino, node.caller))
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return node.shown_attr()

    def _handle(self, number: int) -> Handle:
        try:
            return self._table.handle(number)
        except KeyError:
            raise fail(errno.EBADF) from None

    def read_into(self, number: int, offset: int, buffer: memoryview) -> int:
        """Reads into ``buffer``; returns how many bytes, fewer only at the end of the file."""
        handle = self._handle(number)
        if not handle.readable:
            raise fail(errno.EBADF)
        return self._reader.read_into(handle, offset, buffer)

    def _writer(self, number: int) -> Handle:
        """A handle that may be written through now. Raises EBADF, or what stands in the way."""
        handle = self._handle(number)
        if not handle.writable:
            raise fail(errno.EBADF)
        self._check_writable(handle.node)
        return handle

    def write(
        self, number: int, offset: int, data: bytes | memoryview, *, appends: bool | None = None
    ) -> int:
        """Writes into the local copy; at the end, as it is under the lock, if it ``appends``. None: as the
        handle was opened."""
        handle = self._writer(number)
        to_end = handle.appends if appends is None else appends
        at = self._put(handle, None if to_end else offset, data)
        self._upload_what_is_full(handle, at, len(data))
        return len(data)

    def _put(self, handle: Handle, offset: int | None, data: bytes | memoryview) -> int:
        """Writes at ``offset``, or at the end; returns where that was."""

        def place(size: int) -> tuple[int, int]:
            at = self._calls.place(size) if offset is None else offset
            if at + len(data) > FILE_BYTES_MAX:
                raise fail(errno.EFBIG)
            return at, len(data)

        copy = handle.node.copy
        return self._alter(handle.node, handle.caller, place, lambda at, _: copy.write(at, data))

    def punch(self, number: int, offset: int, size: int) -> None:
        """Makes a hole: the range, as far as the file goes, reads as zeros."""
        handle = self._writer(number)
        self._alter(
            handle.node,
            handle.caller,
            lambda file_size: (offset, min(size, file_size - offset)),
            handle.node.copy.punch,
        )

    def _truncate(self, node: Node, size: int) -> None:
        """Cuts or extends the local copy. A file that has the size already is only touched."""
        with node.guard:
            node.check()
            node.copy.look()
            if size == node.copy.size:
                node.touch()
        self._alter(
            node,
            node.caller,
            lambda old: (min(size, old), abs(size - old)),
            lambda _, __: node.copy.truncate(size),
            cut_chunks=_cut_through,
        )

    def _alter(
        self,
        node: Node,
        who: Caller | None,
        place: Callable[[int], tuple[int, int]],
        do: Callable[[int, int], None],
        cut_chunks: Callable[[int, int, int], list[int]] = _partly_covered,
    ) -> int:
        """Lets ``do(offset, size)`` change the local copy where ``place``, told the size, says; returns
        the offset. Chunks that change in part (``cut_chunks``) must be here, and are fetched for ``who``."""
        while True:
            with node.guard:
                node.check()
                node.copy.look()
                offset, size = place(node.copy.size)
                if size <= 0:
                    return offset
                borders = cut_chunks(offset, size, node.copy.size)
                if all(node.copy.has(index * CHUNK_BYTES, CHUNK_BYTES) for index in borders):
                    try:
                        do(offset, size)
                    finally:  # of a change that failed a part may be in place
                        node.note_write(offset, size)
                    return offset
            for index in borders:
                self._reader.ensure(node, index * CHUNK_BYTES, CHUNK_BYTES, who)

    def _upload_what_is_full(self, handle: Handle, offset: int, size: int) -> None:
        """A sequential writer's finished chunks go out while he goes on."""
        end = offset + size
        if offset == handle.next_write:
            with handle.node.guard:
                for index in range(offset // CHUNK_BYTES, end // CHUNK_BYTES):
                    self._committer.uploads.begin_early(handle.node, index)
        handle.next_write = end

    def _set_attributes(self, ino: int, changes: Changes, who: Caller | None) -> Attr:
        """As above, with the next commit if that can be. Else after a commit that would overrule it."""
        node = self._table.peek(ino)
        if node is not None and self._set_with_commit(node, changes, who):
            return node.shown_attr()
        if node is not None and (changes.has_times or node.pending):
            self._commit_before(ino)
        return super()._set_attributes(ino, changes, who)

    def drop_privileges(self, ino: int, who: Caller | None, *, may_be_chown: bool = False) -> Attr:
        """What a write by an ordinary user does to set-id bits and capabilities, now. Who writes through a
        descriptor that another user has opened does it by that one's right.

        ``may_be_chown``: it may not be a write at all. Then EPERM is raised if ``who`` does not own the file,
        and nobody here has it open for writing.
        """
        attr, node = self.getattr(ino, who), self._table.peek(ino)
        mode = attr.mode if node is None else node.attr.mode
        if stat.S_ISDIR(mode) or not (mode & SET_IDS or attr.has_xattrs):
            return attr
        if not is_owner(self._who(who), attr):
            if node is not None and node.writers:
                who = node.caller
            elif may_be_chown:
                if not mode & SET_IDS:
                    return attr
                raise fail(errno.EPERM)
        self._change(SetAttr(ino, drop_privileges=True), who)
        return self.getattr(ino, who)

    def _commit_before(self, ino: int) -> None:
        """For what must come after all that was written: a commit sets times, and takes privileges away."""
        node = self._table.peek(ino)
        if node is not None and node.is_ours:
            self._committer.flush(node)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int, who: Caller | None) -> Attr:
        """As Tree. A mode that goes with a commit was set before, and must not undo the one of an ACL."""
        node = self._table.peek(ino)
        if name == ACCESS and node is not None and node.sends_mode:
            self._committer.commit(node)
        if name == CAPABILITIES:
            self._commit_before(ino)
        return super().setxattr(ino, name, value, flags, who)

    def link(self, ino: int, parent: int, name: bytes, who: Caller | None) -> Attr:
        """As Tree. A file that was made without a name shows all that was written to it from the moment it
        has one."""
        check_name(name)
        node = self._table.peek(ino)
        if node is None or node.attr.nlink:
            return super().link(ino, parent, name, who)
        node.rescan()
        self._commit_before(ino)
        node.copy.set_origin(parent, name)
        try:
            return super().link(ino, parent, name, who)
        except OSError as error:
            if error.errno in UNCERTAIN:
                node.may_have_name()
            raise

    def _check_writable(self, node: Node) -> None:
        node.check()
        if node.lock_lost and not node.is_shared:  # else the next commit does so
            self._committer.regain(node)

    def flush(self, number: int) -> int:
        """What close(2) promises: everything written is durable, or an error says that not.

        Returns the version that has it, 0 for a handle that cannot have written.
        """
        handle = self._handle(number)
        if not handle.is_writer:
            return 0
        self._committer.flush(handle.node)
        return handle.node.copy.version
