"""Speaking to the authentication server: sign-up, login, sessions, users.

No credentials leave this machine before the realm's key was compared with the one that was there first
(clients.trust). A session is renewed with its own ticket, never through a keyring that would renew it.
"""

import errno
import itertools
import os
import secrets
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from clients.session import Channel, Keyring, Wire, backoff_seconds, call_plain
from clients.trust import Trust, normal_url
from wire import codec
from wire.errors import BadMessage, BadSeal, TicketRefused, Unavailable, fail
from wire.limits import CLIENT_BYTES_MAX
from wire.messages.auth import (
    ChangePassword,
    ChangeUser,
    Credentials,
    LoggedIn,
    OpenSession,
    Realm,
    SealedCredentials,
    Session,
    UserInfo,
    Users,
)
from wire.messages.common import Empty
from wire.passwords import credentials_context, derive, token_context
from wire.sealing import KEY_BYTES, seal_to_server, unseal
from wire.tickets import Role

T = TypeVar("T", bound=msgspec.Struct)

DEADLINE_SECONDS = 30.0


def fetch_realm(
    realm_url: str, wire: Wire, trust: Trust, deadline_seconds: float = DEADLINE_SECONDS
) -> Realm:
    """What the realm says of itself. Its key is pinned if it is the first one seen at this URL.

    Raises EKEYREJECTED if it is another one, EPROTO if no realm answers there, or Unavailable.
    """
    url = normal_url(realm_url)
    data = _exchange(wire, "GET", f"{url}/v1/realm", b"", deadline_seconds)
    try:
        realm = msgspec.json.decode(data, type=Realm)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise fail(errno.EPROTO, f"{url} is not a realm: {error}") from error
    if len(realm.public_key) != KEY_BYTES:
        raise fail(errno.EPROTO, f"{url} is not a realm: its public key has no {KEY_BYTES} bytes")
    trust.check_key(url, realm.public_key)
    return realm


def signup(
    realm_url: str,
    user: str,
    password: str,
    wire: Wire,
    trust: Trust,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> None:
    """Makes a user, who may then log in. Raises EEXIST if the name is taken, EINVAL if the name or the
    password cannot be one."""
    credentials = _credentials(user, password, "")
    _prove(realm_url, "/v1/signup", credentials, wire, trust, deadline_seconds)


def login(
    realm_url: str,
    user: str,
    password: str,
    client: str,
    wire: Wire,
    trust: Trust,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> Session:
    """A new session; ``client`` says where, for people. Raises WrongCredentials or SlowDown."""
    credentials = _credentials(user, password, client)
    data = _prove(realm_url, "/v1/login", credentials, wire, trust, deadline_seconds)
    try:
        answer = codec.decode(data, LoggedIn)
        _proof, key = derive(password, answer.derivation)
        return codec.decode(unseal(key, answer.token, token_context(credentials.nonce)), Session)
    except (BadMessage, BadSeal) as error:
        raise BadSeal(f"the answer of {realm_url} to the login cannot be opened with the password") from error


def _credentials(user: str, password: str, client: str) -> Credentials:
    try:
        password.encode()
    except UnicodeEncodeError as error:
        raise fail(errno.EINVAL, "the password is not valid text") from error
    return Credentials(user, password, _short(client), os.urandom(16))


def _prove(
    realm_url: str, path: str, credentials: Credentials, wire: Wire, trust: Trust, deadline_seconds: float
) -> bytes:
    """Sends credentials, sealed to the key of the realm that is trusted, and returns the answer."""
    realm = fetch_realm(realm_url, wire, trust, deadline_seconds)
    try:
        sealed = seal_to_server(realm.public_key, codec.encode(credentials), credentials_context(path))
    except ValueError as error:
        raise fail(errno.EPROTO, f"the public key of {realm_url} is not valid") from error
    body = codec.encode(SealedCredentials(sealed))
    return _exchange(wire, "POST", normal_url(realm_url) + path, body, deadline_seconds)


def _exchange(wire: Wire, method: str, url: str, body: bytes, deadline_seconds: float) -> bytes:
    """Sends the same request until it is answered: the server knows a repeated one by its nonce."""
    last_moment = time.monotonic() + deadline_seconds
    for attempt in itertools.count():
        try:
            return call_plain(wire, method, url, body, deadline_seconds)
        except Unavailable:
            pause = backoff_seconds(0.05, attempt)
            if time.monotonic() + pause >= last_moment:
                raise
            time.sleep(pause)
    raise AssertionError("unreachable")


def renew(realm_url: str, old: Session, wire: Wire) -> Session:
    """``old`` with new keys and tickets; its own may have expired. Raises TicketRefused if it has ended."""
    channel = Channel(wire, normal_url(realm_url), Role.AUTH, Keyring(old))
    return channel.call("POST", "/v1/sessions/renew", Empty(), Session)


def keyring_of(
    realm_url: str,
    session: Session,
    wire: Wire,
    on_renewed: Callable[[Session], None] | None = None,
    received: float | None = None,
) -> Keyring:
    """A keyring that renews its session; ``on_renewed`` may save the new one. ``received`` as for Keyring."""

    def renew_and_tell(old: Session) -> Session:
        new = renew(realm_url, old, wire)
        if on_renewed:
            on_renewed(new)
        return new

    return Keyring(session, renew_and_tell, received)


class AuthClient:
    """The authentication server, as one session speaks to it. Thread-safe.

    Changes bear a random number instead of a count: a saved session is used by several processes, and
    each would begin to count at one.
    """

    def __init__(self, realm_url: str, keyring: Keyring, wire: Wire) -> None:
        self._url = normal_url(realm_url)
        self._keyring = keyring
        self._wire = wire
        self._channel = Channel(wire, self._url, Role.AUTH, keyring)

    def open_session(self, client: str, trusted: bool = False) -> Keyring:
        """A session of its own for a program or a mount, which renews itself. It ends with this one.
        Raises EPERM if it is to be trusted and no admin has granted that."""
        message = OpenSession(_short(client), trusted)
        session = self._channel.call("POST", "/v1/sessions", message, Session)
        return keyring_of(self._url, session, self._wire)

    def logout(self) -> None:
        """Ends the session and those opened from it; it is no error if it has ended already."""
        try:
            self._channel.call("DELETE", "/v1/sessions/current", None, Empty)
        except TicketRefused:
            pass

    def change_password(self, old: str, new: str) -> None:
        """Ends every other session of the user. Raises WrongCredentials, SlowDown or EINVAL."""
        self._put("/v1/password", ChangePassword(old, new), Empty)

    def users(self) -> list[UserInfo]:
        """All users, by uid. Raises EPERM unless the session's user is an admin."""
        return self._channel.call("GET", "/v1/users", None, Users).users

    def change_user(self, uid: int, change: ChangeUser) -> UserInfo:
        """The user afterwards. Raises ENOENT, or EPERM unless the session's user is an admin."""
        return self._put(f"/v1/users/{uid}", change, UserInfo)

    def _put(self, path: str, message: msgspec.Struct, reply: type[T]) -> T:
        number = secrets.randbits(62)
        request_id = f"{self._keyring.session.session:x}.{number}"
        return self._channel.call("PUT", path, message, reply, request_id=request_id)


def _short(client: str) -> str:
    """As much of a description as a session bears; what is not valid text is shown as ``?``."""
    return client.encode(errors="replace").decode()[:CLIENT_BYTES_MAX]
