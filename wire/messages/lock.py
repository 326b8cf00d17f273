"""Messages of the lock server. All are sealed under the lock role.

Those with ``acked`` are mutations: their request id is ``session.counter`` and every counter below
``acked`` has been answered and will not be asked again.

``lease_seconds``: what the session has is its own for so long after a grant or renewal. Every answer that
begins or prolongs a lease says it, because the service may be started again with another one.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from wire.limits import LOCK_LEASE_SECONDS, LOCK_POLL_SECONDS_MAX, OPS_MAX, RANGES_MAX
from wire.messages.common import Count, Inos, Positive

Seconds = Annotated[float, Meta(ge=0, le=LOCK_POLL_SECONDS_MAX)]
Owner = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Offset = Count


class Acquire(msgspec.Struct, frozen=True):
    """``POST /v1/locks/acquire``: the write locks of ``inos``, each for itself.

    What is free is granted at once. With ``wait_seconds`` > 0 the session is put into the queue of
    what is not, and the answer is held back until everything asked for is granted or the time is
    over; asking again keeps the place. With 0 nothing is queued.
    """

    acked: Count
    inos: Inos
    wait_seconds: Seconds = 0.0


class LockAnswer(msgspec.Struct, frozen=True):
    """Either ``token`` and ``grant``, or who has it."""

    ino: Positive
    token: Count = 0
    grant: bytes = b""
    holder: str = ""
    """``user@client`` of who has the lock."""
    is_shared: bool = False
    """Programs lock this inode for themselves: some session has a range of it now."""


class Acquired(msgspec.Struct, frozen=True):
    """One answer an inode, in the order of the request."""

    answers: list[LockAnswer]
    lease_seconds: float = LOCK_LEASE_SECONDS


class Held(msgspec.Struct, frozen=True):
    """A lock as its holder names it."""

    ino: Positive
    token: Positive


class Release(msgspec.Struct, frozen=True):
    """``POST /v1/locks/release``: what is not held under that token is passed over. ``leave`` are inodes
    whose queue the session leaves."""

    acked: Count
    locks: Annotated[list[Held], Meta(max_length=OPS_MAX)]
    leave: Inos = []


class Renew(msgspec.Struct, frozen=True):
    """``POST /v1/locks/renew``: every lock and range of the session for one more lease."""

    acked: Count


class Renewed(msgspec.Struct, frozen=True):
    """``held`` is what the session has now: what it misses there, it has lost. Others wait for ``wanted``; of
    those ``shared`` are locked by programs for themselves (some session has a range). In ``ranged`` it has
    ranges."""

    held: list[Held]
    wanted: list[int]
    shared: list[int]
    ranged: list[int]
    lease_seconds: float = LOCK_LEASE_SECONDS


# Ranges: the locks of programs


class Range(msgspec.Struct, frozen=True, array_like=True):
    """A lock of a program: the bytes from ``first`` to ``last``, both included, as fcntl(2) has it; of the
    whole file from flock(2) (``is_flock``: neither kind knows of the other). Within a session ``owner`` says
    whose it is; its ranges of one inode do not overlap. ``pid`` is of the owner's machine, for people."""

    is_flock: bool
    owner: Owner
    first: Offset
    last: Offset
    is_exclusive: bool
    pid: Count

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise ValueError("a range ends before it begins")


class SetRange(msgspec.Struct, frozen=True):
    """``POST /v1/locks/ranges/set``: the owner has this range of ``ino`` from now on, in place of what he had
    of these bytes; with ``is_free`` he has nothing there any more. That never waits, and fails only with
    ENOLCK, if what is left falls into too many pieces.

    In conflict are ranges that overlap, of two owners, if one of them is exclusive. Exclusive ranges of two
    sessions are in conflict also where they do not overlap: a file's content is one session's to change.

    With ``wait_seconds`` > 0 the answer is held back until it is granted or the time is over; asking again
    keeps the place in the queue. Nobody gets what other sessions wait for in front of him, unless they wait
    for himself. Raises EDEADLK if an fcntl(2) owner would wait for himself, ENOLCK if there are too many.

    An owner who asks for an exclusive flock(2) range gives up his shared one first, and gets it back by no
    refusal: as flock(2) says. An fcntl(2) owner keeps what he has while he waits and when he is refused.
    """

    acked: Count
    ino: Positive
    range: Range
    is_free: bool = False
    wait_seconds: Seconds = 0.0


class LeaveRange(msgspec.Struct, frozen=True):
    """``POST /v1/locks/ranges/leave``: the owner waits for nothing more of ``ino``; what was held back is
    answered."""

    acked: Count
    ino: Positive
    is_flock: bool
    owner: Owner


class AskRange(msgspec.Struct, frozen=True):
    """``POST /v1/locks/ranges/ask``: what F_GETLK of fcntl(2) asks. Changes nothing."""

    ino: Positive
    range: Range


class RangeAnswer(msgspec.Struct, frozen=True):
    """Granted (or free to be), unless there is somebody's ``conflict``: a range that he has, or one that he
    waits for in front of the asker."""

    conflict: Range | None = None
    is_own: bool = False
    """The conflict is with the session itself: its pid is one of the asker's machine."""
    holder: str = ""
    """``user@client`` of whose it is."""
    lease_seconds: float = LOCK_LEASE_SECONDS


class Restate(msgspec.Struct, frozen=True):
    """``POST /v1/locks/ranges/restate``: all that the session has of ``ino`` is ``ranges``, as far as it had
    them or nobody else has anything in conflict with them. Nothing of ``ino`` is granted to earlier requests
    of the session after that. Raises EINVAL if two of one owner overlap."""

    acked: Count
    ino: Positive
    ranges: Annotated[list[Range], Meta(max_length=RANGES_MAX)]


class Restated(msgspec.Struct, frozen=True):
    """Which ``ranges`` it has not, because others have something in conflict with them."""

    lost: list[Range]
    lease_seconds: float = LOCK_LEASE_SECONDS


# For people


class Waiter(msgspec.Struct, frozen=True):
    """Somebody in a queue. ``since`` in seconds since the epoch."""

    user: str
    client: str
    session: int
    since: float


class LockInfo(msgspec.Struct, frozen=True):
    """A lock and its queue, for people."""

    ino: int
    token: int
    user: str
    client: str
    session: int
    since: float
    expires_in_seconds: float
    queue: list[Waiter]


class RangeInfo(msgspec.Struct, frozen=True):
    """A range of a program that has it, or waits for it. ``since`` in seconds since the epoch."""

    ino: int
    user: str
    client: str
    session: int
    range: Range
    since: float
    is_waiting: bool


class Locks(msgspec.Struct, frozen=True):
    """``GET /v1/locks``. Other users' locks are shown too: who waits must be able to see for whom."""

    locks: list[LockInfo]
    more: bool = False
    """There are more than one answer may have; the last queue may be cut too."""
    ranges: list[RangeInfo] = []
    """By inode; those of one inode that wait come after those that are held, in their order."""


class Break(msgspec.Struct, frozen=True):
    """``POST /v1/locks/break`` (admins only): ends the lock and all ranges of ``ino``; ENOENT if there are
    none."""

    acked: Count
    ino: Positive
