"""The routes of the authentication server.

Sign-up and login come before there is any session: their bodies are sealed to the server's public key,
and the answer to a login can be opened with the password only.
"""

import logging
from collections.abc import Callable

import msgspec
from flask import request

from servers.auth import store
from servers.auth.config import AuthConfig
from servers.auth.service import AuthService
from servers.database import Database
from servers.replies import Replies
from servers.seals import Call
from servers.web import Door, Reply, Server
from wire import codec
from wire.errors import TooLarge
from wire.messages.auth import ChangePassword, ChangeUser, Credentials, OpenSession, SealedCredentials
from wire.messages.common import Empty
from wire.passwords import credentials_context
from wire.sealing import unseal_at_server
from wire.tickets import Role

log = logging.getLogger(__name__)

CREDENTIALS_BYTES_MAX = 16384


class AuthServer:
    """The authentication server: a Flask app over its database. It has no threads of its own."""

    def __init__(self, config: AuthConfig) -> None:
        self._private_key = config.keys.private_key
        tables = store.tables()
        replies = Replies(tables, config.clock)
        self._database = Database(config.database, tables)
        self._service = AuthService(config, self._database, replies)
        self._door = Door("auth", config.keys.tickets, config.clock)
        self.app = self._door.app
        self._add_routes()

    def start(self) -> None:
        """Nothing runs in the background."""

    def close(self) -> None:
        """Closes the database."""
        self._database.close()

    def _add_routes(self) -> None:
        service, door = self._service, self._door
        door.plain("GET", "/v1/realm", self._realm, "application/json")
        self._plain_with_credentials("/v1/signup", service.sign_up)
        self._plain_with_credentials("/v1/login", service.log_in)
        door.sealed("POST", "/v1/sessions", self._open_session, Role.AUTH)
        door.sealed("POST", "/v1/sessions/renew", self._renew, Role.AUTH, allow_expired=True)
        door.sealed("DELETE", "/v1/sessions/current", lambda call: service.log_out(call.ticket), Role.AUTH)
        door.sealed("PUT", "/v1/password", self._change_password, Role.AUTH)
        door.sealed("GET", "/v1/users", lambda call: service.users(call.ticket), Role.AUTH)
        door.sealed("PUT", "/v1/users/<int:uid>", self._change_user, Role.AUTH)

    def _plain_with_credentials(self, path: str, run: Callable[[Credentials], msgspec.Struct]) -> None:
        def view() -> bytes:
            return codec.encode(run(self._credentials(path)))

        self._door.plain("POST", path, view, "application/msgpack")

    def _credentials(self, path: str) -> Credentials:
        """The credentials in the request's body. Raises BadMessage, BadSeal or TooLarge."""
        try:
            if (request.content_length or 0) > CREDENTIALS_BYTES_MAX:
                raise TooLarge(f"sealed credentials have at most {CREDENTIALS_BYTES_MAX} bytes")
            sealed = codec.decode(request.get_data(cache=False), SealedCredentials).sealed
            return codec.decode(
                unseal_at_server(self._private_key, sealed, credentials_context(path)), Credentials
            )
        except OSError as error:
            log.warning("refused POST %s: %s", path, error.strerror)
            raise

    def _realm(self) -> bytes:
        return msgspec.json.encode(self._service.realm())

    def _open_session(self, call: Call) -> Reply:
        return self._service.open_session(call.ticket, call.message(OpenSession))

    def _renew(self, call: Call) -> Reply:
        call.message(Empty)
        return self._service.renew(call.ticket)

    def _change_password(self, call: Call) -> Reply:
        return self._service.change_password(call.ticket, call.counter(), call.message(ChangePassword))

    def _change_user(self, call: Call, uid: int) -> Reply:
        return self._service.change_user(call.ticket, call.counter(), uid, call.message(ChangeUser))


def make_server(config: AuthConfig) -> Server:
    """The authentication server."""
    return AuthServer(config)
