"""Locks that programs take for themselves: whoever asks for one is told what a local file would tell him.

Of fcntl(2) those of open descriptions: of the others a process has one set for a file, and the two mounts are
two files to it.

Only root locks here, and in such an example does all the rest: who may not write any more to what he has open
does not write to it, if programs lock it.
"""

import fcntl
import os
import struct

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.support.oracle.descriptors import Descriptors
from tests.support.oracle.draws import picks

FLOCK = struct.Struct("hhqqi")
"""``struct flock`` of 64 bits: type, whence, start, length, process."""

kinds = st.sampled_from([fcntl.F_RDLCK, fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK])
starts = st.sampled_from([0, 0, 1, 10, 100])
spans = st.sampled_from([0, 1, 10, 1000])


class Locks(Descriptors):
    """Of open files; nobody waits for one."""

    @precondition(lambda self: self.is_alone and self.opened)
    @rule(pick=picks, what=st.sampled_from([fcntl.LOCK_SH, fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN]))
    def flock(self, pick: int, what: int) -> None:
        if one := self._pick(pick):
            self._with(one, 0, lambda fd: fcntl.flock(fd, what | fcntl.LOCK_NB))

    @precondition(lambda self: self.is_alone and self.opened)
    @rule(pick=picks, kind=kinds, start=starts, span=spans)
    def lock_range(self, pick: int, kind: int, start: int, span: int) -> None:
        if one := self._pick(pick):
            wanted = FLOCK.pack(kind, os.SEEK_SET, start, span, 0)
            self._with(one, 0, lambda fd: fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted))

    @precondition(lambda self: self.is_alone and self.opened)
    @rule(pick=picks, kind=st.sampled_from([fcntl.F_RDLCK, fcntl.F_WRLCK]), start=starts, span=spans)
    def who_has_range(self, pick: int, kind: int, start: int, span: int) -> None:
        if one := self._pick(pick):
            wanted = FLOCK.pack(kind, os.SEEK_SET, start, span, 0)
            self._with(one, 0, lambda fd: fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted))
