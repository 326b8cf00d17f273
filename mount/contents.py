"""The content of open files: reading, writing, cutting, and what close(2) and fsync(2) promise."""

import errno
import logging
import time
from collections.abc import Callable

from cache.copies import CopyStore, NeedsManifest
from mount.committing import Committer
from mount.nodes import Handle, Node, PendingAttrs
from mount.proxy import Proxy
from mount.reading import Reader
from mount.tree import Tree
from wire.errors import fail
from wire.limits import CHUNK_BYTES, FILE_BYTES_MAX
from wire.messages.directory import (
    Attr,
)

log = logging.getLogger(__name__)


class Contents(Tree):
    """A tree whose open files can be read and written."""

    def __init__(self, proxy: Proxy, copies: CopyStore, on_saved_late: Callable[[Node], None]) -> None:
        """``on_saved_late`` is told of nodes that nobody had open any more and that are committed at last."""
        super().__init__(proxy, copies)
        self._reader = Reader(proxy)
        self._committer = Committer(
            proxy, self._reader, lambda node: self._names.learn(node.attr), on_saved_late
        )

    def inode_of(self, number: int) -> int:
        """The inode of an open file."""
        return self._handle(number).node.ino

    def handle_attr(self, number: int) -> Attr:
        """The attributes of an open file, also when it has no name any more."""
        node = self._handle(number).node
        if node.is_ours:
            return node.shown_attr()
        return self._shown(self._names.attr(node.ino, node.caller))

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

    def write(self, number: int, offset: int, data: bytes | memoryview) -> int:
        """Writes into the local copy; at the end, as it is under the lock, for an appending handle."""
        handle = self._writer(number)
        node = handle.node
        while True:
            with node.guard:
                _check_failure(node)
                at = node.copy.size if handle.appends else offset
                if at + len(data) > FILE_BYTES_MAX:
                    raise fail(errno.EFBIG)
                borders = _partly_covered(at, len(data), node.copy.size)
                if all(self._is_here(node, index) for index in borders):
                    try:
                        node.copy.write(at, data)
                    finally:  # of a write that failed a part may be in place
                        node.note_write(at, len(data))
                    self._upload_what_is_full(handle, at, len(data))
                    return len(data)
            for index in borders:
                self._reader.ensure(node, index * CHUNK_BYTES, CHUNK_BYTES, handle.caller)

    @staticmethod
    def _is_here(node: Node, index: int) -> bool:
        try:
            return not node.copy.missing(index * CHUNK_BYTES, CHUNK_BYTES)
        except NeedsManifest:
            return False

    def _upload_what_is_full(self, handle: Handle, offset: int, size: int) -> None:
        """Under guard: a sequential writer's finished chunks go out while he goes on."""
        end = offset + size
        if offset == handle.next_write:
            for index in range(offset // CHUNK_BYTES, end // CHUNK_BYTES):
                self._committer.upload_early(handle.node, index)
        handle.next_write = end

    def _check_writable(self, node: Node) -> None:
        _check_failure(node)
        if node.lock_lost:
            self._committer.regain(node)

    def flush(self, number: int) -> int:
        """What close(2) and fsync(2) promise: everything written is durable, or an error says that not.

        Returns the version that has it, 0 for a handle that cannot have written.
        """
        handle = self._handle(number)
        if not handle.is_writer:
            return 0
        self._write_back(handle.node)
        return handle.node.copy.version

    def _write_back(self, node: Node) -> None:
        _check_failure(node)
        try:
            self._committer.commit(node)
        except OSError as error:
            node.failure = error
            raise

    def punch(self, number: int, offset: int, size: int) -> None:
        """Makes a hole: the range, as far as the file goes, reads as zeros."""
        handle = self._writer(number)
        node = handle.node
        while True:
            with node.guard:
                _check_failure(node)
                length = min(size, node.copy.size - offset)
                if length <= 0:
                    return
                borders = _partly_covered(offset, length, node.copy.size)
                if all(self._is_here(node, index) for index in borders):
                    node.copy.punch(offset, length)
                    node.note_write(offset, length)
                    return
            for index in borders:
                self._reader.ensure(node, index * CHUNK_BYTES, CHUNK_BYTES, handle.caller)

    def _truncate(self, node: Node, size: int) -> None:
        """Cuts or extends the local copy. The chunk that is cut through must be here to be cut."""
        border = size // CHUNK_BYTES
        cuts = bool(size % CHUNK_BYTES)
        while True:
            with node.guard:
                old = node.copy.size
                if not cuts or size >= old or self._is_here(node, border):
                    _check_failure(node)
                    node.pending = PendingAttrs(node.pending.mode, node.pending.atime)
                    if size == old:
                        node.pending.mtime = time.time_ns()
                    else:
                        node.copy.truncate(size)
                        node.note_write(min(size, old), abs(size - old))
                    return
            self._reader.ensure(node, border * CHUNK_BYTES, 1, node.caller)


def _check_failure(node: Node) -> None:
    """What could not be written back once is said again and again, until the file is closed."""
    if node.failure is not None:
        raise OSError(node.failure.errno, node.failure.strerror)


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
