"""An authentication server in this process, with services that believe its tickets."""

from pathlib import Path

import pytest

from clients.auth import AuthClient, fetch_realm, keyring_of, login, signup
from clients.session import Channel, Keyring, Wire, call_plain
from clients.trust import Trust
from servers.auth.app import make_server
from servers.auth.config import AuthConfig
from servers.database import sqlite_url
from servers.keys import new_realm_keys
from servers.seals import Call
from servers.web import Door, Server
from tests.support.inprocess import InProcessWire
from tests.support.times import Clock
from wire import codec
from wire.errors import WrongCredentials
from wire.messages.auth import (
    Credentials,
    SealedCredentials,
    Session,
    UserInfo,
)
from wire.passwords import credentials_context
from wire.sealing import seal_to_server
from wire.tickets import Role

AUTH = "http://auth"


LOCK = "http://lock"


PASSWORD = "correct horse"


NONCE = b"n" * 16


class House:
    """An authentication server and a lock service that only tells whom it sees."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.keys = new_realm_keys()
        self.config = AuthConfig(
            self.keys["auth"],
            sqlite_url(folder / "auth" / "auth.db"),
            directory_url="http://directory",
            lock_url=LOCK,
            kdf_memory_kib=8192,
            kdf_iterations=1,
            clock=self.clock,
        )
        self.wire = InProcessWire()
        self.trust = Trust(folder / "state")
        self.server = self.start()
        door = Door("lock", self.keys["lock"].tickets, self.clock)
        door.sealed("GET", "/v1/me", self._who, Role.LOCK)
        self.wire.apps[LOCK] = door.app

    @staticmethod
    def _who(call: Call) -> UserInfo:
        ticket = call.ticket
        return UserInfo(ticket.user, ticket.uid, ticket.gids, ticket.admin, ticket.trusted)

    def start(self) -> Server:
        server = make_server(self.config)
        server.start()
        self.wire.apps[AUTH] = server.app
        return server

    def restart(self) -> None:
        self.server.close()
        self.server = self.start()

    def signup(self, user: str, password: str = PASSWORD, wire: Wire | None = None) -> None:
        signup(AUTH, user, password, wire or self.wire, self.trust)

    def login(self, user: str, password: str = PASSWORD, wire: Wire | None = None) -> Session:
        return login(AUTH, user, password, "test", wire or self.wire, self.trust)

    def client(self, session: Session, wire: Wire | None = None) -> AuthClient:
        wire = wire or self.wire
        return AuthClient(AUTH, keyring_of(AUTH, session, wire), wire)

    def who(self, keyring: Keyring) -> UserInfo:
        return Channel(self.wire, LOCK, Role.LOCK, keyring, 1.0).call("GET", "/v1/me", None, UserInfo)

    def send(self, path: str, credentials: Credentials) -> bytes:
        """As the client does, without the client."""
        realm = fetch_realm(AUTH, self.wire, self.trust)
        sealed = seal_to_server(realm.public_key, codec.encode(credentials), credentials_context(path))
        return call_plain(self.wire, "POST", AUTH + path, codec.encode(SealedCredentials(sealed)))

    def guess_wrong(self, user: str, times: int) -> None:
        for _ in range(times):
            with pytest.raises(WrongCredentials):
                self.login(user, "wrong guess")
