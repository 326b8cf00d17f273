"""The write locks of this mount: taken, renewed, given back.

One thread renews all of them, three times a lease (clients.lock_lease); one gives back, in batches; one
keeps a small stock of inode numbers that nobody else knows and that are locked already, so that creating
a file needs no round trip to the lock server. None of these threads ever waits for a lock.

``_guard`` protects the tables here and is never held during a call to a service. A lock that is being
given back is not asked for again before the server has answered: it would answer with the very lock
that is about to end.
"""

import errno
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from clients.lock import LockClient
from mount import interruption
from mount.leaving import Leaving
from mount.program_locks import ProgramLocks
from wire.errors import Busy, fail
from wire.limits import OPS_MAX
from wire.messages.lock import Held, LockAnswer

log = logging.getLogger(__name__)

STOCK = 64
"""Inode numbers reserved and locked at a time."""

STOCK_SECONDS = 86400.0
"""How long a number stays in the stock; the directory forgets after a week for whom it was reserved."""

POLL_SECONDS = 5.0
"""One held-back request: a grant to a waiter that has died meanwhile costs the next one this and a lease."""

BUSY_SERVER_PAUSE_SECONDS = 0.25

FRESH_RELEASE_SECONDS = 0.05


@dataclass(frozen=True)
class WriteLock:
    """A lock that this session holds, as far as it knows."""

    ino: int
    token: int
    grant: bytes
    is_fresh: bool = False
    """Of an inode that this session has made: hardly anybody can be waiting for it yet."""
    is_shared: bool = False
    """Programs lock the inode for themselves, here or elsewhere."""
    since: float = field(default_factory=time.monotonic, compare=False)


class WriteLocks:
    """``reserve(n)`` gets fresh inode numbers from the directory; ``on_lost(ino)`` is told of locks that
    the lock server does not know as ours any more, ``on_shared(ino)`` of those that others wait for because
    programs lock the inode for themselves (from the renewal thread: they must not block). ``program_locks``
    are renewed by the same calls; ``leaving`` is for who is interrupted while he waits."""

    def __init__(
        self,
        client: LockClient,
        reserve: Callable[[int], list[int]],
        on_lost: Callable[[int], None],
        on_shared: Callable[[int], None],
        program_locks: ProgramLocks,
        leaving: Leaving,
    ) -> None:
        self._client = client
        self._reserve = reserve
        self._on_lost = on_lost
        self._on_shared = on_shared
        self._program_locks = program_locks
        self._leaving = leaving
        self._guard = threading.Condition()
        self._held: dict[int, WriteLock] = {}
        self._wanted: frozenset[int] = frozenset()
        self._stock: deque[WriteLock] = deque()
        self._asking: Counter[int] = Counter()
        self._to_release: dict[int, WriteLock] = {}
        self._releasing: set[int] = set()
        self._stop = threading.Event()
        self._refill = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"locks-{target.__name__.strip('_')}", daemon=True)
            for target in (self._renew_loop, self._release_loop, self._refill_loop)
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def take_over(self, inos: Sequence[int]) -> None:
        """Before the start: the locks that an earlier process of this session holds. What cannot be had any
        more, or asked for, is no error: who needs it will find that he has lost it. What else that process
        held is given back after the first renewal."""
        for first in range(0, len(inos), OPS_MAX):
            batch = list(inos[first : first + OPS_MAX])
            try:
                self._ask(batch, 0.0, self._hold)
            except OSError as error:
                log.info("%d locks of the worker before are left to expire: %s", len(batch), error)

    def held(self, ino: int) -> WriteLock | None:
        """The lock of ``ino``, if it is held."""
        with self._guard:
            return self._held.get(ino)

    def close(self) -> None:
        """Gives everything back, as far as the lock server can be reached."""
        self._stop.set()
        self._refill.set()
        self._client.lease.end()
        with self._guard:
            for lock in (*self._held.values(), *self._stock):
                self._to_release[lock.ino] = lock
            self._held.clear()
            self._stock.clear()
            self._guard.notify_all()
        for thread in self._threads:
            thread.join()

    def acquire(self, ino: int, wait_seconds: float, *, is_interruptible: bool = False) -> WriteLock:
        """The write lock of ``ino``, waiting in the queue for so long. Raises Busy, naming the holder, and
        InterruptedError if that ``is_interruptible``: a grant that was faster is returned all the same."""
        last_moment = time.monotonic() + wait_seconds
        if lock := self._take_back(ino):
            return lock
        while True:
            now = time.monotonic()
            poll_seconds = min(max(0.0, last_moment - now), POLL_SECONDS)
            with (
                self._leaving.when_interrupted(lambda: self._leave(ino))
                if is_interruptible
                else nullcontext()
            ):
                locks, answer = self._ask([ino], poll_seconds, self._hold)
            if locks:
                return locks[0]
            if is_interruptible and interruption.is_interrupted():
                self._leave(ino)  # again, now that no request can take the place once more
                raise fail(errno.EINTR)
            if time.monotonic() >= last_moment:
                if wait_seconds:
                    self._leave(ino)
                raise Busy(f"{answer.holder or 'somebody'} has the write lock")
            if time.monotonic() - now < poll_seconds / 2:  # the server holds back too many already
                self._stop.wait(BUSY_SERVER_PAUSE_SECONDS)

    def _hold(self, locks: list[WriteLock]) -> None:
        """Under guard. Who waited when the lock was ours before has had it meanwhile, or has gone."""
        self._held.update((lock.ino, lock) for lock in locks)
        self._wanted -= {lock.ino for lock in locks}

    def _ask(
        self, inos: list[int], wait_seconds: float, keep: Callable[[list[WriteLock]], None]
    ) -> tuple[list[WriteLock], LockAnswer]:
        """The locks that were granted, and the first answer. ``keep`` notes the locks, under guard: before
        they are asked for no more, or a renewal would take them for unheard."""
        locks: list[WriteLock] = []
        with self._guard:
            self._asking.update(inos)
        try:
            answers = self._client.acquire(inos, wait_seconds).answers
            locks += [WriteLock(a.ino, a.token, a.grant, is_shared=a.is_shared) for a in answers if a.grant]
        finally:
            with self._guard:
                keep(locks)
                self._asking.subtract(inos)
                self._asking = +self._asking
        return locks, answers[0]

    def _take_back(self, ino: int) -> WriteLock | None:
        """The lock if it was to be given back and nobody waits for it; waits while it is on its way."""
        with self._guard:
            lock = self._to_release.get(ino)
            if lock is not None and lock.grant and ino not in self._wanted:
                del self._to_release[ino]
                self._held[ino] = lock
                return lock
            self._guard.wait_for(lambda: ino not in self._to_release and ino not in self._releasing)
            return None

    def _leave(self, ino: int) -> None:
        """The server answers a request that waits for it."""
        try:
            self._client.release([], [ino])
        except OSError as error:
            log.info("the place in the queue of inode %d is left to expire: %s", ino, error)

    def release(self, ino: int, *, is_void: bool = False) -> None:
        """Gives the lock back, in the background. One that has turned out to be void is not taken back by who
        asks for it meanwhile."""
        with self._guard:
            lock = self._held.pop(ino, None)
            if lock is not None:
                self._to_release[ino] = replace(lock, grant=b"", is_fresh=False) if is_void else lock
                self._guard.notify_all()

    def is_wanted(self, ino: int) -> bool:
        """Whether another session waits for this lock (as of the last renewal)."""
        return ino in self._wanted

    # The stock

    def take_fresh(self) -> WriteLock:
        """A fresh inode number that is locked for this session."""
        with self._guard:
            lock = self._stock.popleft() if self._stock else None
            if len(self._stock) < STOCK // 2:
                self._refill.set()
            if lock is not None:
                self._held[lock.ino] = lock
                return lock
        # Two are enough here: the thread brings the rest meanwhile.
        self._fetch_fresh(2)
        with self._guard:
            if not self._stock:
                raise fail(errno.EAGAIN, "no inode numbers could be locked")
            lock = self._stock.popleft()
            self._held[lock.ino] = lock
            return lock

    def give_back_fresh(self, lock: WriteLock) -> None:
        """Puts an unused one back."""
        with self._guard:
            self._held.pop(lock.ino, None)
            self._stock.append(lock)

    def _fetch_fresh(self, count: int) -> None:
        self._ask(
            self._reserve(count),
            0.0,
            lambda locks: self._stock.extend(replace(lock, is_fresh=True) for lock in locks),
        )

    def _refill_loop(self) -> None:
        while True:
            self._refill.wait()
            self._refill.clear()
            if self._stop.is_set():
                return
            try:
                self._fetch_fresh(STOCK)
            except OSError as error:
                log.info("no inode numbers could be reserved: %s", error)

    # Renewal and release

    def _renew_loop(self) -> None:
        """The next renewal is due by when this one was sent, for the lease may run from then on."""
        sent_at, failures = time.monotonic(), 0
        while self._client.lease.wait_until_due(sent_at):
            sent_at = time.monotonic()
            self._give_up_old_stock()
            try:
                self._renew()
                failures = 0
            except OSError as error:
                level = logging.DEBUG if failures else logging.INFO
                log.log(level, "the locks could not be renewed: %s", error)
                failures += 1
            except Exception:
                log.exception("the locks could not be renewed")

    def _renew(self) -> None:
        with self._guard:
            known = {**self._held, **{lock.ino: lock for lock in self._stock}}
            asked = set(self._asking)
        if not known and not self._to_release and not self._program_locks.has_any():
            self._wanted = frozenset()
            return
        renewed = self._client.renew()
        self._wanted = frozenset(renewed.wanted)
        self._program_locks.renewed(renewed.ranged)
        held = {(lock.ino, lock.token) for lock in renewed.held}
        self._forget([lock for lock in known.values() if (lock.ino, lock.token) not in held])
        self._give_back_unheard(renewed.held, asked)
        for ino in renewed.shared:
            self._on_shared(ino)

    def _give_up_old_stock(self) -> None:
        with self._guard:
            while self._stock and time.monotonic() - self._stock[0].since > STOCK_SECONDS:
                lock = self._stock.popleft()
                self._to_release[lock.ino] = lock
                self._refill.set()
            self._guard.notify_all()

    def _give_back_unheard(self, held: list[Held], asked: set[int]) -> None:
        """A grant whose answer never came would be renewed for ever."""
        with self._guard:
            ours = asked | set(self._asking) | self._releasing
            ours |= self._held.keys() | self._to_release.keys() | {lock.ino for lock in self._stock}
            for lock in held:
                if lock.ino not in ours:
                    log.info("the lock of inode %d was granted unheard; it is given back", lock.ino)
                    self._to_release[lock.ino] = WriteLock(lock.ino, lock.token, b"")
            self._guard.notify_all()

    def _forget(self, lost: list[WriteLock]) -> None:
        for lock in lost:
            with self._guard:
                was_held = self._held.get(lock.ino) == lock
                if was_held:
                    del self._held[lock.ino]
                elif lock in self._stock:
                    self._stock.remove(lock)
            if was_held:
                log.info("the write lock of inode %d was lost", lock.ino)
                self._on_lost(lock.ino)

    def _is_urgent(self) -> bool:
        """Under guard: locks of new files are given back together; a thousand files need few calls."""
        everything_is_fresh = all(lock.is_fresh for lock in self._to_release.values())
        return self._stop.is_set() or not everything_is_fresh or len(self._to_release) >= STOCK

    def _release_loop(self) -> None:
        while True:
            with self._guard:
                self._guard.wait_for(lambda: self._to_release or self._stop.is_set())
                self._guard.wait_for(self._is_urgent, FRESH_RELEASE_SECONDS)
                batch = [self._to_release.popitem()[1] for _ in range(min(STOCK, len(self._to_release)))]
                self._releasing = {lock.ino for lock in batch}
            if not batch:
                if self._stop.is_set():
                    return
                continue  # an open has taken them back meanwhile
            try:
                self._client.release([Held(lock.ino, lock.token) for lock in batch])
            except OSError as error:
                log.info("%d locks are left to expire: %s", len(batch), error)
            except Exception:
                log.exception("%d locks are left to expire", len(batch))
            with self._guard:
                self._releasing = set()
                self._guard.notify_all()
