"""What the directory has promised to whom, and how changes wait until all who must know do.

A promise is (session, inode): nothing of the inode changes before the session was told. It is given with
every answer about the inode to a session with a living feed, and broken once: told, and gone. Everything here
is in memory and under one lock, which nobody holds while he waits.

Invariants, with L the lease:
- Who believes something that is not so any more has a message about it that is not acknowledged, or is a
  ghost (below), or his lease is over. A feed's lease ends L after its last poll was received; the session
  itself counts from when it sent that poll, so it stops believing earlier.
- A change is acknowledged when all messages about its inodes are, that any session has, and no ghost is left.
- A ghost is a session that may believe anything: one from before this process began, or whose feed was ended
  because it did not keep up. It is one until its lease is over, or it says that it believes nothing of that.
- What is recorded as promised may be more than what a session believes, never less.
- Who makes a change is not told of it, he hears the answer. If he has given it up he has begun a new feed,
  and is told like others: so a change is his own only if it was begun at the feed that he is at.

A read and a change meet like this: a read asks for ``began`` before it looks at the database and promises
when the answer is made; a change is in the database before it is told here. If the change was told first, it
is in ``Recent`` and nothing earlier is promised; if the promise was given first, the change breaks it.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from servers.directory.believers import Believers, Recent
from servers.directory.feeds import Feed
from servers.directory.waiting import Awaited, Waiting
from wire.errors import BadMessage, Unavailable
from wire.limits import FEED_MESSAGES_MAX
from wire.messages.directory import Poll, Told

log = logging.getLogger(__name__)

WAITING_MAX = 64
"""Changes that wait at the same time: of 96 threads that answer requests (dfs.serve) some are left for
readers, also when 64 writers wait for a mount that has died."""


@dataclass(frozen=True)
class Bounds:
    """How much is kept."""

    promises_max: int = 1_000_000
    """Beyond, the oldest are broken."""
    messages_max: int = FEED_MESSAGES_MAX
    """Not acknowledged by a session; with half of them it is promised nothing more, beyond its feed ends."""
    recent_max: int = 10_000
    """Changes that are remembered for the reads that are under way."""


class Author(NamedTuple):
    """Who makes a change: a session, and the number of the feed that it was at when it began to."""

    session: int
    feed: int


class Change:
    """One change of the directory, from before it is made until it is told. ``author`` has made it."""

    def __init__(self, author: Author, began: int) -> None:
        self.author = author
        self.began = began
        self.open = Awaited(author.session, float("inf"))
        self.waiting = Waiting()
        self.unpromised: list[int] = []
        """Of what the answer shows."""


class Promises:
    """Thread-safe. ``before`` are sessions that an earlier process may have promised something, and for how
    many seconds from now on they may believe it."""

    def __init__(
        self,
        lease_seconds: float,
        bounds: Bounds,
        before: Mapping[int, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lease_seconds = lease_seconds
        self.told_count = 0
        """Messages so far."""
        self._bounds = bounds
        self._clock = clock
        self._lock = threading.Lock()
        self._believers = Believers()
        self._recent = Recent(bounds.recent_max)
        self._feeds: dict[int, Feed] = {}
        self._slots: list[Feed | None] = []
        self._behind: set[Feed] = set()  # those with messages that are not acknowledged
        self._open: set[Awaited] = set()  # changes that are not told yet
        self._waits = 0
        now = clock()
        self._ghosts = {
            session: Awaited(session, now + seconds) for session, seconds in (before or {}).items()
        }

    # Feeds

    def join(self, session: int) -> Told:
        """A new feed. If the session has one that lives, its promises and messages go over to it: another
        process of the mount may not know of them, but its kernel believes them."""
        with self._lock:
            now = self._clock()
            feed = self._alive(session, now) or self._add_feed(session)
            feed.number = secrets.randbits(62) + 1  # in no other process the same: a late poll says nothing
            feed.expires = now + self.lease_seconds
            feed.rouse()
            return feed.told(self.lease_seconds, True)

    def hear(self, session: int, poll: Poll) -> bool:
        """Takes the poll's word; False if this feed is not (any more). Raises BadMessage if it has seen what
        it was not told."""
        with self._lock:
            now = self._clock()
            feed = self._alive(session, now)
            if feed is None or feed.number != poll.feed:
                return False
            if poll.seen > feed.last:
                raise BadMessage(f"message {poll.seen} was not sent yet")
            feed.acknowledge(poll.seen)
            if not feed.messages:
                self._behind.discard(feed)
            elif feed.messages[0][1] + self.lease_seconds < now:
                # It polls, and does not do what it is told. Nobody is to wait for it for ever.
                self._cut_off(feed, "does not acknowledge its messages")
                return False
            feed.expires = now + self.lease_seconds
            if poll.is_clean and (ghost := self._ghosts.pop(session, None)):
                ghost.release()
            return True

    def tell(self, session: int, number: int, wake: Callable[[], None] | None) -> Told | None:
        """What there is to be told, or None if there is nothing: then ``wake`` is called when there may be.
        Without ``wake``, and to a feed that is not any more, an answer without messages.

        Such an answer is safe: its session believes for a lease from when it sent the poll, and so long a
        feed is awaited, or its ghost.
        """
        with self._lock:
            feed = self._feeds.get(session)
            if feed is None or feed.number != number:
                return Told(number, self.lease_seconds)
            if feed.messages or wake is None:
                return feed.told(self.lease_seconds, False)
            feed.rouse()  # the connection of an earlier poll was lost
            feed.wake = wake
            return None

    def leave(self, session: int, number: int) -> None:
        """The feed of this number ends: its session believes nothing any more, of no time."""
        with self._lock:
            feed = self._feeds.get(session)
            if feed is not None and feed.number == number:
                self._end(feed)
                if ghost := self._ghosts.pop(session, None):
                    ghost.release()

    def expire(self) -> None:
        """Ends what its lease is over of."""
        with self._lock:
            now = self._clock()
            for session in list(self._feeds):
                self._alive(session, now)
            for ghost in [ghost for ghost in self._ghosts.values() if ghost.expires <= now]:
                del self._ghosts[ghost.session]
                ghost.release()

    def is_gone(self, session: int) -> bool:
        """Whether it has no feed and believes nothing."""
        with self._lock:
            return session not in self._feeds and session not in self._ghosts

    def rouse(self) -> None:
        """All polls that are held back look again."""
        with self._lock:
            for feed in self._feeds.values():
                feed.rouse()

    def counts(self) -> tuple[int, int]:
        """Feeds and promises."""
        with self._lock:
            return len(self._feeds), self._believers.pairs

    # Reads

    def begin(self) -> int:
        """To be called before a read looks at the database; the answer's ``began``."""
        return self._recent.sequence

    def give(self, session: int, began: int, shown: Mapping[int, int]) -> list[int]:
        """Promises the inodes ``shown`` (to their ``change`` in the answer); returns those that are not
        promised. Nothing for a session without a living feed: it knows."""
        with self._lock:
            now = self._clock()
            feed = self._alive(session, now)
            return [] if feed is None else self._give(feed, began, shown, now)

    def _give(self, feed: Feed, began: int, shown: Mapping[int, int], now: float) -> list[int]:
        if self._recent.floor > began or len(feed.messages) > self._bounds.messages_max // 2:
            return list(shown)
        unpromised = []
        for ino, change in shown.items():
            if self._recent.is_current(ino, change):
                self._believers.add(ino, feed.bit)
            else:
                unpromised.append(ino)
        while self._believers.pairs > self._bounds.promises_max:
            ino, bits = self._believers.pop()
            for other in list(self._feeds_of(bits)):
                self._queue(other, [ino], now)
        return unpromised

    # Changes

    @contextmanager
    def changing(self, author: Author) -> Iterator[Change]:
        """Around a change, until it was told: so long ``wait_for_all`` waits for it."""
        change = Change(author, self.begin())
        with self._lock:
            self._open.add(change.open)
        try:
            yield change
        finally:
            with self._lock:
                self._open.discard(change.open)
                change.open.release()

    def tell_change(self, change: Change, stamped: Mapping[int, int], shown: Mapping[int, int]) -> None:
        """The inodes ``stamped`` have changed (to their ``change``), durably. All who were promised something
        of them are told, but for the author, who is promised what is ``shown`` to him."""
        with self._lock:
            now = self._clock()
            for ino, at in stamped.items():
                self._recent.note(ino, at)
            own = self._alive(change.author.session, now)
            if own is not None and own.number != change.author.feed:
                own, change.unpromised = None, list(shown)
            messages: dict[Feed, list[int]] = {}
            for ino in stamped:
                for feed in self._feeds_of(self._believers.take(ino, own.bit if own else 0)):
                    messages.setdefault(feed, []).append(ino)
            for feed, inos in messages.items():
                if self._alive(feed.session, now):
                    self._queue(feed, inos, now)
            if own is not None:
                change.unpromised = self._give(own, change.began, shown, now)
            change.waiting.await_all(self._who_must_know(change.author, stamped) if stamped else {})

    def wait(self, waiting: Waiting) -> None:
        """Until all that it waits for has come, or their leases are over. Raises Unavailable if too many
        wait: the change is made and its reply remembered, so who asks again waits again."""
        if waiting.event.is_set():
            return
        with self._lock:
            if self._waits >= WAITING_MAX:
                raise Unavailable("too many changes wait until others know of them")
            self._waits += 1
        try:
            while not waiting.event.wait(self._seconds_left(waiting)):
                self.expire()
        finally:
            with self._lock:
                self._waits -= 1

    def wait_for_all(self, author: Author) -> None:
        """Until all is known to all that was changed before this call; for a reply that is given again.
        Raises Unavailable as ``wait``."""
        with self._lock:
            told = Waiting().await_all(dict.fromkeys(self._open, 0))
        self.wait(told)
        with self._lock:
            known = Waiting().await_all(self._who_must_know(author, None))
        self.wait(known)

    # With the lock held

    def _who_must_know(self, author: Author, inos: Iterable[int] | None) -> dict[Awaited, int]:
        """Those but the author that have messages about one of ``inos`` (None: any), up to which, and the
        ghosts."""
        found: dict[Awaited, int] = {}
        for feed in self._behind:
            if (feed.session, feed.number) != author:
                number = feed.last if inos is None else max(feed.latest.get(ino, 0) for ino in inos)
                if number:
                    found[feed] = number
        found.update((ghost, 0) for ghost in self._ghosts.values() if ghost.session != author.session)
        return found

    def _seconds_left(self, waiting: Waiting) -> float | None:
        with self._lock:
            until = min((awaited.expires for awaited in waiting.left), default=0.0)
            return None if until == float("inf") else max(0.0, until - self._clock())

    def _alive(self, session: int, now: float) -> Feed | None:
        """The session's feed. If its lease is over, it ends here: all is forgotten."""
        feed = self._feeds.get(session)
        if feed is not None and feed.expires <= now:
            log.info("session %d has not polled its feed for a lease: it is told nothing more", session)
            self._end(feed)
            return None
        return feed

    def _add_feed(self, session: int) -> Feed:
        try:
            slot = self._slots.index(None)
        except ValueError:
            slot = len(self._slots)
            self._slots.append(None)
        feed = self._feeds[session] = self._slots[slot] = Feed(session, 0.0, slot)
        return feed

    def _feeds_of(self, bits: int) -> Iterator[Feed]:
        """Those whose slots these are; bits of feeds that have ended may be another's, or nobody's."""
        while bits:
            slot = bits.bit_length() - 1
            bits ^= 1 << slot
            feed = self._slots[slot]
            if feed is not None:
                yield feed

    def _queue(self, feed: Feed, inos: Iterable[int], now: float) -> None:
        for ino in inos:
            feed.queue(ino, now)
            self.told_count += 1
        self._behind.add(feed)
        feed.rouse()
        if len(feed.messages) > self._bounds.messages_max:
            self._cut_off(feed, "has too many messages that it has not acknowledged")

    def _cut_off(self, feed: Feed, why: str) -> None:
        """It may believe anything until its lease is over: a ghost stays of it, and takes over its waits."""
        log.info("session %d %s: its feed ends", feed.session, why)
        ghost = self._ghosts.setdefault(feed.session, Awaited(feed.session, 0.0))
        ghost.expires = max(ghost.expires, feed.expires)
        feed.hand_over(ghost)
        self._end(feed)

    def _end(self, feed: Feed) -> None:
        del self._feeds[feed.session]
        self._slots[feed.slot] = None
        self._behind.discard(feed)
        feed.release()
        feed.rouse()
