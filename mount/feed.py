"""The feed: what the directory says unasked, and what keeps the lease alive.

One thread, of its own: it serves no request of the kernel's, and takes no lock that is held while a service
is asked. So it answers the directory whatever this mount's own changes are waiting for, and two mounts that
wait for each other's word both get it.

What is told is carried out in this order: what is believed here goes; then what the kernel believes; then the
directory hears that it is done (with the next poll). Whoever asks in between asks the directory.
"""

import logging
import threading
from collections.abc import Collection
from typing import Protocol

from clients.feed import FeedClient
from clients.session import backoff_seconds
from mount.lease import Lease
from mount.names import Names
from wire.messages.directory import Poll, Told

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.05
"""Before the first attempt after a failed one; it doubles."""

END_SECONDS = 2.0
"""How long an end waits for the directory's last answer."""


class Believer(Protocol):
    """Who believes what this mount has told it: the kernel, behind a binding. Called by the feed's thread,
    and by one whose change was not answered; must not wait for anything that a service, or another request,
    has to do.
    """

    def revoke(self, inos: Collection[int]) -> None:
        """Nothing that was told of these inodes holds any more, names in them included. Raises OSError if
        that could not be done."""

    def revoke_all(self) -> bool:
        """Nothing that this process has told holds any more. False if that could not be done: then it ends
        with the lease."""


class NobodyElse:
    """For a mount that tells nobody what may be believed for a while."""

    def revoke(self, inos: Collection[int]) -> None:
        """See Believer."""

    def revoke_all(self) -> bool:
        """See Believer."""
        return True


class Feed:
    """``start`` when the kernel can be told, ``close`` at the end. Until the first answer has come, and
    whenever the directory is silent for too long, nothing is believed."""

    def __init__(self, client: FeedClient, names: Names, lease: Lease) -> None:
        self._client = client
        self._names = names
        self._lease = lease
        self._believer: Believer = NobodyElse()
        names.feed = lambda: self._number
        names.on_given_up = self._give_up
        self._guard = threading.Lock()
        self._number = 0  # 0: a new one is to be begun
        self._seen = 0
        self._clean_from = 0.0  # by the lease's clock: what was believed before this feed is over then
        self._takes_over = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def start(self, believer: Believer, *, takes_over: bool) -> None:
        """``takes_over``: an earlier worker may have told ``believer`` what it believes until the lease that
        was then is over."""
        self._believer = believer
        self._takes_over = takes_over
        self._thread.start()

    def close(self) -> None:
        """Nothing is believed any more, and the directory need not wait for this mount."""
        self._stopping.set()
        self._lease.end()
        self._believer.revoke_all()  # a mount that was detached lazily lives on for who is in it
        if not self._thread.is_alive():
            return
        try:
            self._client.leave(END_SECONDS)
        except OSError as error:
            log.info("the directory will wait until the lease is over: %s", error)
        self._thread.join(END_SECONDS)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                lease_seconds = self._client.find().lease_seconds
                while not self._stopping.is_set():
                    lease_seconds = self._poll(lease_seconds)
                    failures = 0
            except OSError as error:
                log.log(logging.DEBUG if failures else logging.INFO, "the feed is silent: %s", error)
                self._stopping.wait(backoff_seconds(PAUSE_SECONDS, failures))
                failures += 1
            except Exception:
                log.exception("what the directory has told could not be carried out")
                self._doubt_everything()

    def _poll(self, lease_seconds: float) -> float:
        """One question and what follows from its answer; how long the lease lasts."""
        asked_at = self._lease.now()
        unclean_seconds = self._clean_from - asked_at
        wait_seconds = min(lease_seconds / 4, unclean_seconds) if unclean_seconds > 0 else lease_seconds / 4
        number = self._number
        told = self._client.poll(Poll(number, self._seen, unclean_seconds <= 0, wait_seconds))
        if self._stopping.is_set() or (told.is_new and not self._begin(number, told)):
            return told.lease_seconds
        if told.inos:
            self._carry_out(told.inos)
        with self._guard:
            if self._number == told.feed:
                self._seen = told.last
                self._lease.extend(asked_at, told.lease_seconds)
        return told.lease_seconds

    def _begin(self, asked_at_feed: int, told: Told) -> bool:
        """Nothing that was believed before holds, and nothing is asked of this feed yet. False if the feed
        that was asked at was given up meanwhile."""
        with self._guard:
            if self._number != asked_at_feed:
                return False
            self._lease.begin()
            self._names.drop_all()
            self._number, self._seen = told.feed, told.last - len(told.inos)
        if self._takes_over:
            self._clean_from = self._lease.now() + told.lease_seconds
        if not self._believer.revoke_all():
            self._clean_from = max(self._clean_from, self._lease.until)
        self._takes_over = False
        log.info("the directory promises to tell what changes")
        return True

    def _give_up(self, feed: int) -> None:
        """A change that was begun at ``feed`` may be made later, and at that feed nobody would tell this
        mount of it. So it begins a new one: a change that was made before that is seen by who asks
        afterwards, and of one that is made later it is told. Nothing is believed until then."""
        with self._guard:
            if feed and feed == self._number:
                self._number = 0
                self._lease.end()
        self._believer.revoke_all()

    def _carry_out(self, inos: Collection[int]) -> None:
        self._names.doubt(inos)
        try:
            self._believer.revoke(inos)
        except OSError as error:
            # Nothing is said to the directory until the kernel believes nothing any more by itself.
            log.info("the kernel could not be told what has changed: %s", error)
            self._doubt_everything()

    def _doubt_everything(self) -> None:
        believed_until = self._lease.until
        self._lease.end()
        self._names.drop_all()
        self._stopping.wait(max(PAUSE_SECONDS, believed_until - self._lease.now()))
