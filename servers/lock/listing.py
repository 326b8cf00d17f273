"""What people are shown of the locks: who has what, and who waits."""

from collections.abc import Sequence

from sqlalchemy import Connection

from servers.lock.range_queue import Place
from servers.lock.range_store import RangeRow, RangeStore
from servers.lock.store import LockRow, Store, WaiterRow
from wire.messages.lock import LockInfo, Locks, RangeInfo, Waiter

LOCKS_LISTED_MAX = 4000
"""Locks and places in one answer; each has at most 700 bytes."""

RANGES_LISTED_MAX = 2000
"""Ranges and places for them in one answer; they have as much at most."""


def list_locks(
    connection: Connection, store: Store, range_store: RangeStore, places: Sequence[Place], now: float
) -> Locks:
    """As many as an answer may have."""
    locks, more_locks = _locks(connection, store, now)
    ranges, more_ranges = _ranges(connection, range_store, places)
    return Locks(locks, more_locks or more_ranges, ranges)


def _locks(connection: Connection, store: Store, now: float) -> tuple[list[LockInfo], bool]:
    rows = store.first_locks(connection, LOCKS_LISTED_MAX + 1)
    queues = store.first_queues(connection, LOCKS_LISTED_MAX + 1)
    room = LOCKS_LISTED_MAX
    shown: list[LockInfo] = []
    for row in rows:
        queue = queues[row.ino]
        if room <= len(queue):
            shown += [_lock_info(row, queue[: room - 1], now)] if room else []
            return shown, True
        shown.append(_lock_info(row, queue, now))
        room -= 1 + len(queue)
    return shown, False


def _ranges(
    connection: Connection, store: RangeStore, places: Sequence[Place]
) -> tuple[list[RangeInfo], bool]:
    held = store.first_ranges(connection, RANGES_LISTED_MAX + 1)
    found = [*map(_held_info, held), *map(_waiting_info, places)]
    found.sort(key=lambda info: info.ino)  # stable: the order within an inode is as above
    return found[:RANGES_LISTED_MAX], len(found) > RANGES_LISTED_MAX


def _lock_info(row: LockRow, queue: Sequence[WaiterRow], now: float) -> LockInfo:
    waiters = [Waiter(waiter.user, waiter.client, waiter.session, waiter.since) for waiter in queue]
    left = max(0.0, row.expires - now)
    return LockInfo(row.ino, row.token, row.user, row.client, row.session, row.since, left, waiters)


def _held_info(row: RangeRow) -> RangeInfo:
    return RangeInfo(row.ino, row.user, row.client, row.claim.session, row.claim.range, row.since, False)


def _waiting_info(place: Place) -> RangeInfo:
    return RangeInfo(place.ino, place.user, place.client, place.session, place.claim.range, place.since, True)
