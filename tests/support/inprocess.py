"""Services without sockets: a Wire that calls Flask apps in this process, and one that loses messages."""

import itertools
import random
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from flask import Flask

from clients.http import HttpWire
from clients.session import Answer, Keyring, Wire
from servers.keys import ServiceKeys
from wire.errors import NeverReached, ReplyLost
from wire.headers import SEALED
from wire.messages.auth import Credential, Session
from wire.sealing import new_key
from wire.tickets import Role, Ticket, seal_ticket

_sessions = itertools.count(1000)


class InProcessWire:
    """Delivers to the Flask app that is registered for ``scheme://host:port``. ``before`` and ``after`` are
    called around each request with its URL and headers; what they raise takes its place, or its reply's.
    What is no Flask app, and listens, is reached through ``real``."""

    def __init__(self) -> None:
        self.apps: dict[str, Flask] = {}
        self.real: dict[str, str] = {}
        """Origins to where they are."""
        self._http = HttpWire()
        self.before: list[Callable[[str, Mapping[str, str]], object]] = []
        self.after: list[Callable[[str, Mapping[str, str]], object]] = []

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
    ) -> Answer:
        """As clients.session.Wire."""
        for hook in self.before:
            hook(url, headers)
        parts = urlsplit(url)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin in self.real:
            answer = self._http.send(method, self.real[origin] + path, headers, body, silence_seconds)
        elif origin in self.apps:
            response = (
                self.apps[origin].test_client().open(path, method=method, headers=dict(headers), data=body)
            )
            is_sealed = response.headers.get("Content-Type") == SEALED
            answer = Answer(response.status_code, is_sealed, response.data)
        else:
            raise NeverReached(f"nobody listens at {url}")
        for hook in self.after:
            hook(url, headers)
        return answer

    def listens(self, host: str, port: int) -> None:
        """The port of ``host`` is this machine's."""
        self.real[f"http://{host}:{port}"] = f"http://127.0.0.1:{port}"

    def close(self) -> None:
        """Closes the connections to what listens."""
        self._http.close()


class LossyWire:
    """Loses some requests before they arrive and some replies afterwards, and doubles some requests."""

    def __init__(self, inner: Wire, seed: int, loss: float = 0.2) -> None:
        self.seed = seed
        self.lost_requests = 0
        self.lost_replies = 0
        self._inner = inner
        self._random = random.Random(seed)
        self._loss = loss

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
    ) -> Answer:
        """As clients.session.Wire."""
        if self._random.random() < self._loss:
            self.lost_requests += 1
            raise NeverReached("lost on the way there")
        answer = self._inner.send(method, url, headers, body, silence_seconds)
        if self._random.random() < self._loss:
            self.lost_replies += 1
            raise ReplyLost("lost on the way back")
        if self._random.random() < self._loss / 4:
            return self._inner.send(method, url, headers, body, silence_seconds)
        return answer


def make_keyring(
    ticket_keys: Mapping[Role, bytes],
    *,
    user: str = "alice",
    uid: int = 10001,
    gids: tuple[int, ...] = (10001,),
    admin: bool = False,
    trusted: bool = False,
    client: str = "test",
    expires: float = 4e9,
    session: int = 0,
) -> Keyring:
    """A session that no authentication server made: tickets under ``ticket_keys``, as it would make them."""
    number = session or next(_sessions)
    credentials = []
    for role, ticket_key in ticket_keys.items():
        key = new_key()
        ticket = Ticket(role, number, user, uid, list(gids), admin, trusted, client, key, expires)
        credentials.append(Credential(role, key, seal_ticket(ticket_key, ticket)))
    return Keyring(Session(number, user, uid, list(gids), admin, trusted, 3600.0, credentials))


def all_ticket_keys(keys: Mapping[str, ServiceKeys]) -> dict[Role, bytes]:
    """Every role's ticket key, from the keys of a whole realm."""
    return {role: key for service in keys.values() for role, key in service.tickets.items()}
