"""The directory's feed, for one session: what is promised no more (see wire.messages.directory.Poll)."""

from urllib.parse import urlsplit

from clients.session import Channel, Keyring, Wire
from wire.errors import Unavailable
from wire.messages.common import Empty
from wire.messages.directory import FeedAt, LeaveFeed, Poll, Told
from wire.tickets import Role


class FeedClient:
    """For one thread. ``directory`` is the channel to the directory's ordinary port: it knows where the feed
    is. Polls are sealed like all else, and need no TLS."""

    def __init__(self, directory: Channel, wire: Wire, keyring: Keyring) -> None:
        self._directory = directory
        self._wire = wire
        self._keyring = keyring
        self._feed: Channel | None = None
        self._number = 0

    def find(self, deadline_seconds: float = 1.0) -> FeedAt:
        """Asks where the feed is; to be called first, and again when it does not answer there."""
        found = self._directory.call("POST", "/v1/feeds", Empty(), FeedAt, deadline_seconds=deadline_seconds)
        host = urlsplit(self._directory.base_url).hostname or ""
        url = f"http://{f'[{host}]' if ':' in host else host}:{found.port}"
        if self._feed is None or self._feed.base_url != url:
            self._feed = Channel(self._wire, url, Role.DIRECTORY, self._keyring)
        return found

    def poll(self, message: Poll, deadline_seconds: float = 1.0) -> Told:
        """The answer may be held back for ``message.wait_seconds``. Raises Unavailable after
        ``deadline_seconds`` more of silence. It may be sent twice: a lease runs from the moment of this
        call."""
        told = self._channel().call(
            "POST",
            "/v1/feed",
            message,
            Told,
            wait_seconds=message.wait_seconds,
            deadline_seconds=deadline_seconds,
        )
        self._number = told.feed
        return told

    def leave(self, deadline_seconds: float = 1.0) -> None:
        """The feed of the last poll ends, and all promises to the session: it believes nothing any more."""
        message = LeaveFeed(self._number)
        self._channel().call("POST", "/v1/feed/leave", message, Empty, deadline_seconds=deadline_seconds)

    def _channel(self) -> Channel:
        if self._feed is None:
            raise Unavailable("the feed was not found yet")
        return self._feed
