"""Ranges of open files: fallocate(2), SEEK_DATA and SEEK_HOLE of lseek(2), copy_file_range(2)."""

import errno
import logging
import os
from contextlib import suppress

from cache.copies import NeedsManifest
from mount import interruption
from mount.contents import Contents
from mount.nodes import Handle
from wire.errors import fail
from wire.limits import CHUNK_BYTES, FILE_BYTES_MAX

log = logging.getLogger(__name__)

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
"""<linux/falloc.h>"""

PIECE_BYTES = 1024 * 1024
"""What is copied at a time."""


class Ranges(Contents):
    """Contents whose ranges can be given up, looked for and copied."""

    def fallocate(self, number: int, mode: int, offset: int, size: int) -> None:
        """fallocate(2). Room is never kept for a file, so only growing and making zeros do anything.

        Raises EOPNOTSUPP for what moves or shares ranges, EINVAL, EFBIG, and EBADF as ``write`` does.
        """
        if offset < 0 or size <= 0:
            raise fail(errno.EINVAL)
        if mode not in (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE):
            raise fail(errno.EOPNOTSUPP)
        handle = self._writer(number)
        if offset + size > FILE_BYTES_MAX:
            raise fail(errno.EFBIG)
        with handle.node.guard:
            handle.node.touch()
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            self.punch(number, offset, size)
        if not mode & KEEP_SIZE:
            self._grow(handle, offset + size)

    def _grow(self, handle: Handle, size: int) -> None:
        """Lets the file end at ``size``, unless it ends later: what is appended meanwhile is not cut off."""
        self._alter(
            handle.node,
            handle.caller,
            lambda old: (old, size - old),
            lambda _, __: handle.node.copy.truncate(size),
            cut_chunks=lambda *_: [],
        )

    def seek(self, number: int, offset: int, whence: int) -> int:
        """The next data (``os.SEEK_DATA``) or hole (``os.SEEK_HOLE``) from ``offset`` on; the end of the file
        is a hole. What was not fetched is not fetched for this.

        Raises ENXIO from the end on, and where no data follows.
        """
        node = self._handle(number).node
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise fail(errno.EINVAL)
        while True:
            with node.guard:
                node.copy.look()
                version, size = node.copy.version, node.copy.size
                if not 0 <= offset < size:
                    raise fail(errno.ENXIO)
                try:
                    found = node.copy.seek(offset, whence)
                except NeedsManifest as need:
                    unlearned = need.index
                else:
                    break
            self._reader.learn(node, version, unlearned, self._handle(number).caller)
        if whence == os.SEEK_DATA and found == size:
            raise fail(errno.ENXIO)
        return found

    def copy_range(self, in_number: int, in_offset: int, out_number: int, out_offset: int, size: int) -> int:
        """copy_file_range(2): returns how many bytes were copied, fewer at the end of the input, and when
        something fails or the program is interrupted after the first of them. Holes stay holes.

        Raises EBADF (not readable, not writable, or appending), EINVAL (of one file, ranges that overlap)
        and EFBIG.
        """
        source, target = self._handle(in_number), self._handle(out_number)
        if not source.readable or not target.writable or target.appends:
            raise fail(errno.EBADF)
        if min(in_offset, out_offset, size) < 0:
            raise fail(errno.EINVAL)
        if out_offset >= FILE_BYTES_MAX:
            raise fail(errno.EFBIG)
        source.node.copy.look()
        size = min(size, source.node.copy.size - in_offset, FILE_BYTES_MAX - out_offset)
        if size <= 0:
            return 0
        if source.node is target.node and abs(in_offset - out_offset) < size:
            raise fail(errno.EINVAL)
        return self._copy(source, in_offset, target, out_offset, size)

    def _copy(self, source: Handle, in_offset: int, target: Handle, out_offset: int, size: int) -> int:
        buffer = memoryview(bytearray(min(size, PIECE_BYTES)))
        done = 0
        while done < size:
            place = out_offset + done
            try:
                count = self._hole(source, in_offset + done, size - done)
                if count:
                    self.fallocate(target.number, ZERO_RANGE, place, count)
                else:
                    piece = buffer[: min(size - done, CHUNK_BYTES - place % CHUNK_BYTES)]
                    count = self.read_into(source.number, in_offset + done, piece)
                    self._put(self._writer(target.number), place, piece[:count])
                    if (place + count) % CHUNK_BYTES == 0 or done + count == size:
                        self._see_to_chunk(source, target, in_offset - out_offset, place // CHUNK_BYTES)
            except OSError as error:
                if not done:
                    raise
                log.info("inode %d: copied in part: %s", target.node.ino, error)
                break
            done += count
            if not count or interruption.is_interrupted():  # somebody has cut the input meanwhile
                break
        return done

    def _see_to_chunk(self, source: Handle, target: Handle, shift: int, index: int) -> None:
        """The target's chunk ``index`` was copied to its end, from ``shift`` bytes further on in the source:
        if that chunk is stored, it is not stored once more."""
        origin = None
        if shift % CHUNK_BYTES == 0:
            with source.node.guard, suppress(NeedsManifest):
                origin = source.node.copy.chunk_at(index + shift // CHUNK_BYTES)
        node, uploads = target.node, self._committer.uploads
        with node.guard:
            is_stored = origin is not None and uploads.is_stored(node, index, origin)
            if not is_stored and (index + 1) * CHUNK_BYTES <= node.copy.size:
                uploads.begin_early(node, index)

    def _hole(self, source: Handle, offset: int, size: int) -> int:
        """How many of ``size`` bytes from ``offset`` on are in a hole that begins there."""
        try:
            end = self.seek(source.number, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            end = source.node.copy.size
        return min(size, max(0, end - offset))
