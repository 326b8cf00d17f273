"""The bytes of open files."""

import os

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from mount.ranges import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from tests.support.holes import fallocate
from tests.support.oracle.descriptors import Descriptors
from tests.support.oracle.draws import content, lengths, offsets, picks, seeds, users
from tests.support.twins import failed, outcome


class Content(Descriptors):
    """What open files hold."""

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, offset=offsets, length=lengths)
    def pread(self, pick: int, user: int, offset: int, length: int) -> None:
        if one := self._pick(pick):
            self._with(one, user, lambda fd: os.pread(fd, length, offset))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, offset=offsets, length=lengths, seed=seeds)
    def pwrite(self, pick: int, user: int, offset: int, length: int, seed: int) -> None:
        if one := self._pick(pick):
            self._with(one, user, lambda fd: os.pwrite(fd, content(length, seed), offset))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, length=lengths)
    def read(self, pick: int, length: int) -> None:
        if one := self._pick(pick):
            self._with(one, 0, lambda fd: os.read(fd, length))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, length=lengths, seed=seeds)
    def write(self, pick: int, user: int, length: int, seed: int) -> None:
        if one := self._pick(pick):
            self._with(one, user, lambda fd: os.write(fd, content(length, seed)))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, offset=offsets, whence=st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]))
    def lseek(self, pick: int, offset: int, whence: int) -> None:
        if one := self._pick(pick):
            self._with(one, 0, lambda fd: os.lseek(fd, offset, whence))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, offset=offsets, whence=st.sampled_from([os.SEEK_DATA, os.SEEK_HOLE]))
    def seek_data(self, pick: int, offset: int, whence: int) -> None:
        """Where holes are is a file system's own affair; that there is nothing but zeros in them is not."""
        if (one := self._pick(pick)) is None or one.flags & os.O_PATH:
            return
        for other in self.opened:
            for there, _ in other.maps:  # until then the kernel does not tell of it
                there.flush()
        size = os.fstat(one.here).st_size
        found = outcome(lambda: os.lseek(one.there, offset, whence))
        wanted = outcome(lambda: os.lseek(one.here, offset, whence))
        os.lseek(one.there, 0, os.SEEK_SET)
        os.lseek(one.here, 0, os.SEEK_SET)
        if whence == os.SEEK_HOLE:
            assert failed(found) == failed(wanted), f"{found} in place of {wanted}"
            assert failed(found) or offset <= int(str(found)) <= size
        elif one.flags & os.O_ACCMODE != os.O_WRONLY:
            until = size if failed(found) else int(str(found))
            assert not any(os.pread(one.here, max(until - offset, 0), offset)), f"data before {found}"

    @precondition(lambda self: self.opened)
    @rule(pick=picks, user=users, size=offsets)
    def ftruncate(self, pick: int, user: int, size: int) -> None:
        if one := self._pick(pick):
            self._with(one, user, lambda fd: os.ftruncate(fd, size))

    @precondition(lambda self: self.opened)
    @rule(
        pick=picks,
        mode=st.sampled_from(
            [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE]
        ),
        offset=offsets,
        length=lengths,
    )
    def fallocate(self, pick: int, mode: int, offset: int, length: int) -> None:
        if one := self._pick(pick):
            self._with(one, 0, lambda fd: fallocate(fd, mode, offset, length))

    @precondition(lambda self: len(self.opened) > 1)
    @rule(pick=picks, other=picks, at=offsets, to=offsets, length=lengths)
    def copy_file_range(self, pick: int, other: int, at: int, to: int, length: int) -> None:
        source, one = self._pick(pick), self._pick(other)
        if source is None or one is None or source.mount != one.mount:
            return
        sides = {one.there: source.there, one.here: source.here}
        self._with(one, 0, lambda fd: os.copy_file_range(sides[fd], fd, length, at, to))
