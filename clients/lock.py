"""The lock server, for one session."""

from collections.abc import Sequence

from clients.lock_lease import LockLease
from clients.session import Channel
from wire.messages.common import Empty
from wire.messages.lock import (
    Acquire,
    Acquired,
    AskRange,
    Break,
    Held,
    LeaveRange,
    Locks,
    Range,
    RangeAnswer,
    Release,
    Renew,
    Renewed,
    Restate,
    Restated,
    SetRange,
)


class LockClient:
    """Thread-safe. Every method raises what the server raises, and Unavailable when it does not answer.
    ``lease`` is what it has said of its leases."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.lease = LockLease()

    def acquire(self, inos: Sequence[int], wait_seconds: float = 0.0) -> Acquired:
        """The write locks of ``inos``, each for itself. With ``wait_seconds`` (at most
        LOCK_POLL_SECONDS_MAX) the session is queued for those that are taken, and the answer may take so
        long; ask again to keep the place, or leave it by ``release``."""
        acquired = self._channel.mutate(
            "/v1/locks/acquire",
            lambda acked: Acquire(acked, list(inos), wait_seconds),
            Acquired,
            wait_seconds=wait_seconds,
        )
        self.lease.hear(acquired.lease_seconds)
        return acquired

    def release(self, held: Sequence[Held], leave: Sequence[int] = ()) -> None:
        """Lets go of ``held`` and leaves the queues of ``leave``; what it has not got is passed over."""
        self._channel.mutate(
            "/v1/locks/release", lambda acked: Release(acked, list(held), list(leave)), Empty
        )

    def renew(self) -> Renewed:
        """One more lease for every lock of the session; says which those are, and which others wait for.
        Gives up in time for another attempt within the lease."""
        self.lease.renewal_is_sent()
        renewed = self._channel.mutate(
            "/v1/locks/renew", Renew, Renewed, deadline_seconds=self.lease.attempt_seconds
        )
        self.lease.hear(renewed.lease_seconds, from_renewal=True)
        return renewed

    def set_range(self, ino: int, wanted: Range, wait_seconds: float = 0.0) -> RangeAnswer:
        """Takes a range for its owner. With ``wait_seconds`` (at most LOCK_POLL_SECONDS_MAX) it is queued
        for, and the answer may take so long. Raises EDEADLK and ENOLCK."""
        answer = self._channel.mutate(
            "/v1/locks/ranges/set",
            lambda acked: SetRange(acked, ino, wanted, wait_seconds=wait_seconds),
            RangeAnswer,
            wait_seconds=wait_seconds,
        )
        self.lease.hear(answer.lease_seconds)
        return answer

    def free_range(self, ino: int, freed: Range) -> None:
        """Lets go of what the owner has of these bytes. Raises ENOLCK if too many pieces are left."""
        self._channel.mutate(
            "/v1/locks/ranges/set", lambda acked: SetRange(acked, ino, freed, is_free=True), RangeAnswer
        )

    def leave_range(self, ino: int, is_flock: bool, owner: int) -> None:
        """The owner waits no more: what is held back for him is answered. If a wait was given up without its
        answer, free the range afterwards: it may have been granted before."""
        self._channel.mutate(
            "/v1/locks/ranges/leave", lambda acked: LeaveRange(acked, ino, is_flock, owner), Empty
        )

    def ask_range(self, ino: int, wanted: Range) -> RangeAnswer:
        """Whether it could be had now, and if not, what stands against it."""
        return self._channel.call("POST", "/v1/locks/ranges/ask", AskRange(ino, wanted), RangeAnswer)

    def restate_ranges(self, ino: int, ranges: Sequence[Range]) -> list[Range]:
        """Says what the session has of ``ino``; returns what of it others have meanwhile."""
        answer = self._channel.mutate(
            "/v1/locks/ranges/restate", lambda acked: Restate(acked, ino, list(ranges)), Restated
        )
        self.lease.hear(answer.lease_seconds)
        return answer.lost

    def locks(self) -> Locks:
        """All locks and ranges of all sessions, with their queues."""
        return self._channel.call("GET", "/v1/locks", None, Locks)

    def break_lock(self, ino: int) -> None:
        """Ends whoever's lock of ``ino``, and all ranges. Raises EPERM for all but admins, ENOENT if there
        are none."""
        self._channel.mutate("/v1/locks/break", lambda acked: Break(acked, ino), Empty)
