"""How long the lock server's leases are, as it says itself, and when the next renewal is due.

The server is asked nothing for it: every answer that begins or prolongs a lease says how long it is, so who
has a lock knows. Before the first answer it is taken to be LOCK_LEASE_SECONDS.

The server may be started again with another lease, and an answer that it had given before may be heard after
newer ones: it remembers its replies, and a request is sent again. Two rules follow.
* A shorter lease counts from any answer, at once: else what was granted with it is lost.
* A longer one than was told before counts only from the answer to a renewal, and not if a shorter one was
  told since that renewal was sent: that answer may be of before, and the shorter lease of a lock that was
  granted since.
"""

import math
import threading
import time

from wire.limits import LOCK_LEASE_SECONDS

RENEW_SECONDS_MIN = 0.05
"""However short the lease, renewals are sent no more often."""


class LockLease:
    """Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._seconds = math.inf
        """Nothing was told yet."""
        self._shortest = math.inf
        """Since the last renewal was sent."""
        self._has_ended = False

    @property
    def seconds(self) -> float:
        """How long what is granted or renewed now holds."""
        return self._seconds if self._seconds < math.inf else LOCK_LEASE_SECONDS

    @property
    def renew_seconds(self) -> float:
        """How long after one renewal the next is sent: a third of the lease. Of a long lease it is less: a
        renewal also tells what others wait for, and a server that is started with a shorter lease keeps what
        it finds for LOCK_LEASE_SECONDS."""
        return max(RENEW_SECONDS_MIN, min(self.seconds, LOCK_LEASE_SECONDS) / 3)

    @property
    def attempt_seconds(self) -> float:
        """After which a renewal is given up: before the next is due, so that two fit into a lease."""
        return self.renew_seconds * 3 / 4

    def renewal_is_sent(self) -> None:
        """To be called before."""
        with self._changed:
            self._shortest = math.inf

    def hear(self, seconds: float, *, from_renewal: bool = False) -> None:
        """An answer has told it."""
        with self._changed:
            self._shortest = min(self._shortest, seconds)
            self._seconds = self._shortest if from_renewal else min(self._seconds, seconds)
            self._changed.notify_all()

    def wait_until_due(self, since: float) -> bool:
        """Waits for the time of the renewal after the one that was sent at ``since``, in seconds of
        time.monotonic, by the lease as it is told meanwhile. False after ``end``."""
        with self._changed:
            while not self._has_ended:
                left = since + self.renew_seconds - time.monotonic()
                if left <= 0:
                    return True
                self._changed.wait(left)
            return False

    def end(self) -> None:
        """No more renewals are due."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()
