"""Messages of the lock server. All are sealed under the lock role.

Those with ``acked`` are mutations: their request id is ``session.counter`` and every counter below
``acked`` has been answered and will not be asked again.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from wire.limits import LOCK_POLL_SECONDS_MAX, OPS_MAX
from wire.messages.common import Count, Inos, Positive


class Acquire(msgspec.Struct, frozen=True):
    """``POST /v1/locks/acquire``: the write locks of ``inos``, each for itself.

    What is free is granted at once. With ``wait_seconds`` > 0 the session is put into the queue of
    what is not, and the answer is held back until everything asked for is granted or the time is
    over; asking again keeps the place. With 0 nothing is queued.
    """

    acked: Count
    inos: Inos
    wait_seconds: Annotated[float, Meta(ge=0, le=LOCK_POLL_SECONDS_MAX)] = 0.0


class LockAnswer(msgspec.Struct, frozen=True):
    """Either ``token`` and ``grant``, or who has it."""

    ino: Positive
    token: Count = 0
    grant: bytes = b""
    holder: str = ""
    """``user@client`` of who has the lock."""


class Acquired(msgspec.Struct, frozen=True):
    """One answer an inode, in the order of the request."""

    answers: list[LockAnswer]


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
    """``POST /v1/locks/renew``: every lock of the session for one more lease."""

    acked: Count


class Renewed(msgspec.Struct, frozen=True):
    """``held`` is what the session has now: what it misses there, it has lost. Others wait for ``wanted``."""

    held: list[Held]
    wanted: list[int]


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


class Locks(msgspec.Struct, frozen=True):
    """``GET /v1/locks``. Other users' locks are shown too: who waits must be able to see for whom."""

    locks: list[LockInfo]
    more: bool = False
    """There are more than one answer may have; the last queue may be cut too."""


class Break(msgspec.Struct, frozen=True):
    """``POST /v1/locks/break`` (admins only): ends the lock of ``ino``; ENOENT if there is none."""

    acked: Count
    ino: Positive
