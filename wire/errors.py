"""The errors of DFS, and their two translations: to a problem document and back.

Everything that goes wrong is an ``OSError`` with the errno that a program should see.
Only where the code must tell cases apart is there a class of its own::

    OSError                       any errno; arrives at the client as it was raised in the service
    └── DfsError
        ├── BadMessage            EINVAL       the message does not fit its type (400)
        ├── TooLarge              EMSGSIZE     the message is over a limit (413)
        ├── BadSeal               EBADMSG      a seal does not open: forged, or another key (401)
        ├── TicketRefused         EKEYEXPIRED  no ticket, an expired one, another role's (401)
        ├── WrongCredentials      EKEYREJECTED wrong user name or password (401)
        ├── SlowDown              EAGAIN       too many guesses; carries ``retry_after_seconds`` (429)
        ├── Replayed              EALREADY     a request id that was acknowledged before (409)
        ├── Conflict              ESTALE       the base or the fencing token is not current (409)
        ├── ChunksMissing         ENODATA      these chunks must be uploaded again (409)
        ├── Busy                  EBUSY        somebody else has the lock (423)
        └── Unavailable           ETIMEDOUT    the service cannot answer now (503)
            ├── NeverReached      ETIMEDOUT    the request did not arrive (client side only)
            └── ReplyLost         ETIMEDOUT    the request may have been carried out (client side only)
"""

import errno
import os
from typing import ClassVar

import msgspec


class DfsError(OSError):
    """An error with a class of its own, which says its errno and its HTTP status. ``detail`` is one sentence
    for a person."""

    number: ClassVar[int] = errno.EIO
    status: ClassVar[int] = 500

    def __init__(self, detail: str) -> None:
        super().__init__(self.number, detail)

    @property
    def detail(self) -> str:
        """The sentence for a person."""
        return str(self.strerror)


class BadMessage(DfsError):
    """The message does not fit its type; nothing was changed."""

    number = errno.EINVAL
    status = 400


class TooLarge(DfsError):
    """The message is over a limit."""

    number = errno.EMSGSIZE
    status = 413


class BadSeal(DfsError):
    """A seal does not open: the message is forged, damaged or under another key."""

    number = errno.EBADMSG
    status = 401


class TicketRefused(DfsError):
    """No ticket, an expired one, or one for another role."""

    number = errno.EKEYEXPIRED
    status = 401


class WrongCredentials(DfsError):
    """The user name or the password is wrong (which of them is not said)."""

    number = errno.EKEYREJECTED
    status = 401


class SlowDown(DfsError):
    """Too many wrong guesses; try again after ``retry_after_seconds``."""

    number = errno.EAGAIN
    status = 429

    def __init__(self, detail: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class Replayed(DfsError):
    """The request id was acknowledged before; its reply is forgotten and it is not carried out again."""

    number = errno.EALREADY
    status = 409


class Conflict(DfsError):
    """The base version is not current any more, or the fencing token is below the mark."""

    number = errno.ESTALE
    status = 409


class ChunksMissing(DfsError):
    """A commit names chunks that the directory cannot count on; upload these again under new ids."""

    number = errno.ENODATA
    status = 409

    def __init__(self, detail: str, chunks: list[bytes]) -> None:
        super().__init__(detail)
        self.chunks = chunks


class Busy(DfsError):
    """Somebody else holds the lock; ``detail`` says who."""

    number = errno.EBUSY
    status = 423


class Unavailable(DfsError):
    """The service cannot answer now; the same request may be sent again."""

    number = errno.ETIMEDOUT
    status = 503


class NeverReached(Unavailable):
    """The request did not arrive: repeating it is always safe."""


class ReplyLost(Unavailable):
    """The request may have been carried out: only a remembered request id makes repeating it safe."""


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """A problem document (RFC 9457); ``errno`` is the errno's name, ``kind`` the class of the error tree."""

    title: str
    status: int
    errno: str
    kind: str = ""
    detail: str = ""
    request: str = ""
    chunks: list[bytes] = []
    retry_after_seconds: float = 0.0


_CLASSES: dict[str, type[DfsError]] = {
    kind.__name__: kind
    for kind in (
        BadMessage,
        TooLarge,
        BadSeal,
        TicketRefused,
        WrongCredentials,
        SlowDown,
        Replayed,
        Conflict,
        ChunksMissing,
        Busy,
        Unavailable,
    )
}

_STATUS_OF_ERRNO: dict[int, int] = {
    errno.ENOENT: 404,
    errno.ENODATA: 404,
    errno.EACCES: 403,
    errno.EPERM: 403,
    errno.EINVAL: 400,
    errno.ENAMETOOLONG: 400,
    errno.EIO: 500,
    errno.ENOSYS: 501,
    errno.EOPNOTSUPP: 501,
    errno.ENOSPC: 507,
    errno.EDQUOT: 507,
}


def fail(number: int, detail: str = "") -> OSError:
    """An ``OSError`` with this errno; without ``detail`` the text is the system's own."""
    return OSError(number, detail or os.strerror(number))


def to_problem(error: OSError, request: str = "") -> Problem:
    """The document that carries ``error`` to the client."""
    number = error.errno or errno.EIO
    kind = next((name for name, cls in _CLASSES.items() if isinstance(error, cls)), "")
    return Problem(
        title=os.strerror(number),
        status=error.status if isinstance(error, DfsError) else _STATUS_OF_ERRNO.get(number, 409),
        errno=errno.errorcode.get(number, "EIO"),
        kind=kind,
        detail=str(error.strerror or error),
        request=request,
        chunks=error.chunks if isinstance(error, ChunksMissing) else [],
        retry_after_seconds=error.retry_after_seconds if isinstance(error, SlowDown) else 0.0,
    )


def from_problem(problem: Problem) -> OSError:
    """The error that the service raised."""
    match _CLASSES.get(problem.kind):
        case None:
            return OSError(getattr(errno, problem.errno, errno.EIO), problem.detail or problem.title)
        case cls if cls is ChunksMissing:
            return ChunksMissing(problem.detail, problem.chunks)
        case cls if cls is SlowDown:
            return SlowDown(problem.detail, problem.retry_after_seconds)
        case cls:
            return cls(problem.detail)
