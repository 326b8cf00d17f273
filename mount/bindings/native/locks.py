"""Requests that are about locks of programs: flock(2), and fcntl(2)."""

import errno
import fcntl
from collections.abc import Callable

from mount.bindings.native import protocol
from mount.bindings.native.context import Context
from mount.bindings.native.notifications import ALL
from mount.bindings.native.protocol import LkIn, Opcode
from mount.bindings.native.requests import DONE, Answer, Later, Methods, Request
from mount.bindings.ranges import LAST_BYTE, kind_of, range_of
from wire.errors import fail
from wire.messages.lock import Range, RangeAnswer

COLLECT_SECONDS = 10.0
"""How long to wait for a turn; each takes no longer than the writes that come of it."""


class Locks:
    """One method an opcode, as ``methods`` says."""

    def __init__(self, the: Context) -> None:
        self._the = the
        self.methods: Methods = {
            Opcode.GETLK: self.getlk,
            Opcode.SETLK: self.setlk,
            Opcode.SETLKW: self.setlkw,
        }

    def getlk(self, request: Request) -> Answer:
        """F_GETLK. Of another machine's program no number is told: it would be one of a program here."""
        asked = protocol.LK_IN.read(request.body)
        answer = self._the.vfs.conflict(asked.fh, wanted_range(asked))
        found = answer.conflict
        if found is None:
            return protocol.LK_OUT.pack(0, 0, fcntl.F_UNLCK, 0)
        pid = found.pid if answer.is_own else 0
        return protocol.LK_OUT.pack(found.first, found.last, kind_of(found), pid)

    def setlk(self, request: Request) -> Answer:
        """F_SETLK, and flock(2) with LOCK_NB or LOCK_UN."""
        asked = protocol.LK_IN.read(request.body)
        if asked.type == fcntl.F_UNLCK:
            self._collect_mapped(asked)
            self._the.vfs.unlock(asked.fh, wanted_range(asked))
            return DONE
        if self._take(asked, waits=False).conflict is not None:
            raise fail(errno.EAGAIN)
        return DONE

    def setlkw(self, request: Request) -> Answer:
        """F_SETLKW, and flock(2). Who waits, and that may be for days, does so in a thread of his own."""
        asked = protocol.LK_IN.read(request.body)
        if asked.type == fcntl.F_UNLCK:
            return self.setlk(request)
        if self._take(asked, waits=False).conflict is None:
            return DONE
        return Later(self._waiting(asked))

    def _waiting(self, asked: LkIn) -> Callable[[], Answer]:
        def wait() -> Answer:
            self._take(asked, waits=True)
            return DONE

        return wait

    def _take(self, asked: LkIn, *, waits: bool) -> RangeAnswer:
        the = self._the
        if asked.type != fcntl.F_WRLCK:
            self._collect_mapped(asked)
        answer = the.vfs.lock(asked.fh, wanted_range(asked), waits=waits)
        if answer.conflict is None:
            the.inodes.validated(the.vfs.node_of(asked.fh), the.notifications.drop)
        return answer

    def _collect_mapped(self, asked: LkIn) -> None:
        """What was written through a map of pages is only there, until the kernel is made to forget them; it
        would be written over what others have written meanwhile."""
        the = self._the
        if the.vfs.has_exclusive(asked.fh, wanted_range(asked)) and the.vfs.may_be_mapped(asked.fh):
            the.notifications.drop(the.vfs.inode_of(asked.fh), ALL, COLLECT_SECONDS)


def wanted_range(asked: LkIn) -> Range:
    """What a request is about."""
    if asked.start > asked.end or asked.end > LAST_BYTE:
        raise fail(errno.EINVAL)
    is_flock = bool(asked.lk_flags & protocol.LK_FLOCK)
    return range_of(asked.owner, asked.start, asked.end, asked.type, asked.pid, is_flock=is_flock)
