"""The lock server, for one session."""

from collections.abc import Sequence

from clients.session import Channel
from wire.limits import LOCK_LEASE_SECONDS
from wire.messages.common import Empty
from wire.messages.lock import Acquire, Acquired, Break, Held, Locks, Release, Renew, Renewed

RENEW_SECONDS = LOCK_LEASE_SECONDS / 4


class LockClient:
    """Thread-safe. Every method raises what the server raises, and Unavailable when it does not answer."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def acquire(self, inos: Sequence[int], wait_seconds: float = 0.0) -> Acquired:
        """The write locks of ``inos``, each for itself. With ``wait_seconds`` (at most
        LOCK_POLL_SECONDS_MAX) the session is queued for those that are taken, and the answer may take so
        long; ask again to keep the place, or leave it by ``release``."""
        return self._channel.mutate(
            "/v1/locks/acquire",
            lambda acked: Acquire(acked, list(inos), wait_seconds),
            Acquired,
            wait_seconds=wait_seconds,
        )

    def release(self, held: Sequence[Held], leave: Sequence[int] = ()) -> None:
        """Lets go of ``held`` and leaves the queues of ``leave``; what it has not got is passed over."""
        self._channel.mutate(
            "/v1/locks/release", lambda acked: Release(acked, list(held), list(leave)), Empty
        )

    def renew(self) -> Renewed:
        """One more lease for every lock of the session; says which those are, and which others wait for.
        Gives up in time for another attempt within the lease."""
        return self._channel.mutate("/v1/locks/renew", Renew, Renewed, deadline_seconds=RENEW_SECONDS)

    def locks(self) -> Locks:
        """All locks of all sessions, with their queues."""
        return self._channel.call("GET", "/v1/locks", None, Locks)

    def break_lock(self, ino: int) -> None:
        """Ends whoever's lock of ``ino``. Raises EPERM for all but admins, ENOENT if it is free."""
        self._channel.mutate("/v1/locks/break", lambda acked: Break(acked, ino), Empty)
