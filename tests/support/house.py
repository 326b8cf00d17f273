"""The four services in this process, every route of theirs, and requests as no client would send them."""

import base64
import itertools
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from clients.auth import login, signup
from clients.trust import Trust
from servers.auth.app import make_server as make_auth
from servers.auth.config import AuthConfig
from servers.database import sqlite_url
from servers.directory.app import make_server as make_directory
from servers.directory.config import DirectoryConfig
from servers.files.app import FileServer
from servers.files.config import FilesConfig
from servers.keys import new_realm_keys
from servers.lock.app import make_server as make_lock
from servers.lock.config import LockConfig
from servers.web import Server
from tests.support.inprocess import InProcessWire, make_keyring
from tests.support.times import Clock
from wire import codec
from wire.chunking import new_chunk_id
from wire.errors import Problem
from wire.headers import SEALED
from wire.messages import auth, directory, files, lock
from wire.messages.auth import Credential
from wire.messages.common import Empty
from wire.messages.directory import ROOT_INO
from wire.sealing import new_key, reply_context, request_context, seal, unseal
from wire.tickets import Role, Ticket, seal_ticket

PASSWORD = "correct horse"
DATA = b"the chunk"
CHUNK = new_chunk_id(DATA)


@dataclass(frozen=True)
class Route:
    """A sealed route, and messages that it takes. A mutation bears a counter."""

    service: str
    method: str
    rule: str
    role: Role
    messages: list[msgspec.Struct] = field(default_factory=list)
    is_mutation: bool = False

    @property
    def name(self) -> str:
        """As it is in a service's table of routes."""
        return f"{self.method} {self.rule}"

    @property
    def path(self) -> str:
        """The rule, with the user, the file server or the chunk that there is."""
        path = self.rule.replace("<int:uid>", "10001").replace("<int:server>", "1")
        return path.replace("<chunk>", CHUNK.hex())


FILE = 2
RANGE = lock.Range(False, 1, 0, 9, True, 100)
"""The inode that the house has."""
GRANT = b"no grant"
OPS: list[directory.Op] = [
    directory.Reserve(1),
    directory.Create(ROOT_INO, b"new", 0o100644),
    directory.CreateNameless(ROOT_INO, 3, GRANT, 0o644),
    directory.Link(FILE, ROOT_INO, b"other"),
    directory.Unlink(ROOT_INO, b"file"),
    directory.Rmdir(ROOT_INO, b"folder"),
    directory.Rename(ROOT_INO, b"file", ROOT_INO, b"moved"),
    directory.SetAttr(FILE, 0o600, atime=1, mtime=2),
    directory.SetXattr(FILE, b"user.x", b"value"),
    directory.RemoveXattr(FILE, b"user.old"),
    directory.OpenWrite(FILE, GRANT),
    directory.Commit(FILE, GRANT, 0, b"c" * 16, 9, 0, [directory.ChunkChange(0, CHUNK, 9, b"no receipt")]),
    directory.Hold([FILE]),
    directory.Drop([FILE]),
]

ROUTES = [
    Route("auth", "POST", "/v1/sessions", Role.AUTH, [auth.OpenSession("here", False)]),
    Route("auth", "POST", "/v1/sessions/renew", Role.AUTH, [Empty()]),
    Route("auth", "DELETE", "/v1/sessions/current", Role.AUTH),
    Route("auth", "PUT", "/v1/password", Role.AUTH, [auth.ChangePassword(PASSWORD, "another one")], True),
    Route("auth", "GET", "/v1/users", Role.AUTH),
    Route("auth", "PUT", "/v1/users/<int:uid>", Role.AUTH, [auth.ChangeUser([10001, 7])], True),
    Route(
        "directory",
        "POST",
        "/v1/mutations",
        Role.DIRECTORY,
        [directory.Mutations(1, [op]) for op in OPS],
        True,
    ),
    *(
        Route("directory", "POST", rule, Role.DIRECTORY, [message])
        for rule, message in {
            "/v1/resolve": directory.Resolve(ROOT_INO, [b"file"]),
            "/v1/attrs": directory.GetAttrs([FILE]),
            "/v1/list": directory.List(ROOT_INO),
            "/v1/manifest": directory.GetManifest(FILE),
            "/v1/target": directory.GetTarget(FILE),
            "/v1/xattrs": directory.GetXattrs(FILE),
            "/v1/paths": directory.GetPaths([FILE]),
            "/v1/commits": directory.FindCommit(FILE, b"c" * 16),
            "/v1/placement": directory.GetPlacement(2),
            "/v1/feeds": Empty(),
        }.items()
    ),
    Route("directory", "GET", "/v1/servers", Role.DIRECTORY),
    Route("directory", "GET", "/v1/servers/known", Role.DIRECTORY),
    Route("directory", "GET", "/v1/statfs", Role.DIRECTORY),
    Route(
        "directory",
        "POST",
        "/v1/servers",
        Role.JOIN,
        [directory.Register(b"i" * 16, "second", "http://second", 10, 5, 1)],
        True,
    ),
    Route(
        "directory",
        "POST",
        "/v1/servers/<int:server>/heartbeat",
        Role.JOIN,
        [directory.Heartbeat(7, 3, [CHUNK], [CHUNK], [])],
        True,
    ),
    Route(
        "directory",
        "POST",
        "/v1/servers/<int:server>/inventory",
        Role.JOIN,
        [directory.Inventory([CHUNK], True, True)],
        True,
    ),
    Route("lock", "POST", "/v1/locks/acquire", Role.LOCK, [lock.Acquire(1, [5], 0.0)], True),
    Route("lock", "POST", "/v1/locks/release", Role.LOCK, [lock.Release(1, [lock.Held(FILE, 1)], [7])], True),
    Route("lock", "POST", "/v1/locks/renew", Role.LOCK, [lock.Renew(1)], True),
    Route("lock", "POST", "/v1/locks/ranges/set", Role.LOCK, [lock.SetRange(1, FILE, RANGE)], True),
    Route("lock", "POST", "/v1/locks/ranges/leave", Role.LOCK, [lock.LeaveRange(1, FILE, False, 1)], True),
    Route("lock", "POST", "/v1/locks/ranges/ask", Role.LOCK, [lock.AskRange(FILE, RANGE)]),
    Route("lock", "POST", "/v1/locks/ranges/restate", Role.LOCK, [lock.Restate(1, FILE, [RANGE])], True),
    Route("lock", "POST", "/v1/locks/break", Role.LOCK, [lock.Break(1, FILE)], True),
    Route("lock", "GET", "/v1/locks", Role.LOCK),
    Route("files", "PUT", "/v1/chunks/<chunk>", Role.FILES, [files.PutChunk(DATA)]),
    Route("files", "POST", "/v1/chunks/<chunk>/doubt", Role.FILES, [Empty()]),
    Route("files", "GET", "/v1/chunks/<chunk>", Role.FILES),
]


@dataclass(frozen=True)
class Reply:
    """An answer; ``body`` is what was in the seal."""

    status: int
    is_sealed: bool
    body: bytes

    @property
    def problem(self) -> Problem:
        """The problem that it is."""
        if self.is_sealed:
            return codec.decode(self.body, Problem)
        return msgspec.json.decode(self.body, type=Problem)


class House:
    """The four services with a user, a file, a chunk and a lock, and clocks that stand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.keys = new_realm_keys()
        self._counters = itertools.count(1)
        wire = InProcessWire()
        clock = Clock()

        def database(name: str) -> str:
            return sqlite_url(folder / f"{name}.sqlite")

        auth_config = AuthConfig(
            self.keys["auth"],
            database("auth"),
            "http://directory",
            "http://lock",
            kdf_memory_kib=8192,
            kdf_iterations=1,
            clock=clock,
        )
        files_config = FilesConfig(
            self.keys["files"], folder / "files", "f", "http://files", "http://directory", clock=clock
        )
        directory_config = DirectoryConfig(self.keys["directory"], database("directory"), clock_ns=clock.ns)
        file_server = FileServer(files_config, wire)
        directory_server = make_directory(directory_config)
        directory_server.feed.start()
        self.servers: dict[str, Server] = {
            "auth": make_auth(auth_config),
            "directory": directory_server,
            "lock": make_lock(LockConfig(self.keys["lock"], database("lock"), clock=clock)),
            "files": file_server,
        }
        wire.apps = {f"http://{name}": server.app for name, server in self.servers.items()}
        file_server.agent.register()
        trust = Trust(folder / "state")
        signup("http://auth", "alice", PASSWORD, wire, trust)
        self.session = login("http://auth", "alice", PASSWORD, "test", wire, trust)
        join = make_keyring({Role.JOIN: self.keys["files"].tickets[Role.JOIN]}, session=self.session.session)
        self.credentials = {one.role: one for one in [*self.session.credentials, join.credential(Role.JOIN)]}
        self._furnish()

    def _furnish(self) -> None:
        for op in (
            directory.Create(ROOT_INO, b"file", 0o100644),
            directory.Create(ROOT_INO, b"folder", 0o040755),
            directory.SetXattr(FILE, b"user.old", b"value"),
        ):
            assert self.send(route("POST /v1/mutations"), directory.Mutations(0, [op])).status == 200
        assert self.send(route("POST /v1/locks/acquire"), lock.Acquire(0, [FILE])).status == 200
        assert self.send(route("PUT /v1/chunks/<chunk>"), files.PutChunk(DATA)).status == 200

    def close(self) -> None:
        """Ends the services."""
        for server in self.servers.values():
            server.close()

    def forged(self, role: Role, key: bytes, *, expires: float = 4e9) -> Credential:
        """A ticket for ``role`` under ``key``, as who has that key could make it."""
        session_key = new_key()
        session = self.session.session
        ticket = Ticket(role, session, "alice", 10001, [10001], True, True, "x", session_key, expires)
        return Credential(role, session_key, seal_ticket(key, ticket))

    def ticket_key(self, role: Role) -> bytes:
        """The key of a role's tickets."""
        return next(keys.tickets[role] for keys in self.keys.values() if role in keys.tickets)

    def request_id(self, route: Route) -> str:
        """A fresh one, as the route wants it."""
        number = next(self._counters)
        return f"{self.session.session:x}{'.' if route.is_mutation else '-'}{number}"

    def send(
        self, route: Route, message: msgspec.Struct | bytes | None = None, request_id: str = ""
    ) -> Reply:
        """As a right client sends it; bytes stand for an encoded message."""
        credential = self.credentials[route.role]
        body = codec.encode(message) if isinstance(message, msgspec.Struct) else message or b""
        request_id = request_id or self.request_id(route)
        sealed = seal(credential.key, body, request_context(route.method, route.path, request_id))
        return self.deliver(route, credential, sealed, request_id)

    def deliver(
        self,
        route: Route,
        credential: Credential | None,
        sealed: bytes,
        request_id: str,
        *,
        path: str = "",
        headers: dict[str, str] | None = None,
        environ: dict[str, str] | None = None,
    ) -> Reply:
        """Exactly this, whatever it is."""
        path = path or route.path
        given = {"DFS-Request": request_id, "Content-Type": SEALED}
        if credential:
            given["DFS-Ticket"] = base64.b64encode(credential.ticket).decode()
        if route.method not in ("PUT", "POST"):
            given["DFS-Seal"] = base64.b64encode(sealed).decode()
            sealed = b""
        client = self.servers[route.service].app.test_client()
        answer = client.open(
            path,
            method=route.method,
            headers=given | (headers or {}),
            data=sealed,
            environ_overrides=environ or {},
        )
        if answer.headers.get("Content-Type") != SEALED:
            return Reply(answer.status_code, False, answer.data)
        assert credential
        context = reply_context(answer.status_code, route.method, path, request_id)
        return Reply(answer.status_code, True, unseal(credential.key, answer.data, context))

    def state(self) -> dict[str, object]:
        """All that the services remember: rows and files, and which file servers live."""
        found: dict[str, object] = {}
        for path in self._folder.rglob("*"):
            if path.is_file() and not path.name.endswith(("-wal", "-shm")):
                data = path.read_bytes()
                found[path.name] = _dump(path) if data.startswith(b"SQLite format 3") else data
        found["servers"] = self.send(route("GET /v1/servers")).body
        return found


def _dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def route(name: str) -> Route:
    """The route of this name."""
    return next(one for one in ROUTES if one.name == name)
