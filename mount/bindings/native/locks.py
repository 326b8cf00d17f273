"""Requests that are about locks of programs: flock(2), and fcntl(2)."""

import errno
import fcntl
from collections.abc import Callable

from mount.bindings.native import protocol
from mount.bindings.native.context import Context
from mount.bindings.native.protocol import LkIn, Opcode
from mount.bindings.native.requests import DONE, Answer, Later, Methods, Request
from wire.errors import fail
from wire.messages.lock import Range, RangeAnswer

_SIGN = 1 << 63


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
        kind = fcntl.F_WRLCK if found.is_exclusive else fcntl.F_RDLCK
        return protocol.LK_OUT.pack(found.first, found.last, kind, found.pid if answer.is_own else 0)

    def setlk(self, request: Request) -> Answer:
        """F_SETLK, and flock(2) with LOCK_NB or LOCK_UN."""
        asked = protocol.LK_IN.read(request.body)
        if asked.type == fcntl.F_UNLCK:
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
        answer = the.vfs.lock(asked.fh, wanted_range(asked), waits=waits)
        if answer.conflict is None:
            the.inodes.validated(the.vfs.node_of(asked.fh), the.notifications.drop)
        return answer


def wanted_range(asked: LkIn) -> Range:
    """What a request is about. The kernel's number of the owner has 64 bits; on the wire they have a sign."""
    if asked.start > asked.end or asked.end > protocol.OFFSET_MAX:
        raise fail(errno.EINVAL)
    is_flock = bool(asked.lk_flags & protocol.LK_FLOCK)
    return Range(
        is_flock, signed(asked.owner), asked.start, asked.end, asked.type == fcntl.F_WRLCK, asked.pid
    )


def signed(owner: int) -> int:
    """The same 64 bits, as a number with a sign."""
    return (owner ^ _SIGN) - _SIGN
