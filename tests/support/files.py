"""File servers in this process, and a directory that says what the test wants."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from clients.files import ChunkClient
from servers.files.app import FileServer
from servers.files.config import FilesConfig
from servers.keys import new_realm_keys
from servers.seals import Call
from servers.web import Door
from tests.support.inprocess import InProcessWire, make_keyring
from tests.support.times import Clock
from wire.chunking import new_chunk_id
from wire.errors import fail
from wire.messages.common import ServerAddress
from wire.messages.directory import (
    Heartbeat,
    Inventory,
    InventoryAnswer,
    Register,
    Registered,
    Tasks,
)
from wire.tickets import Role

REALM = new_realm_keys()


KEYS = REALM["files"]


DIRECTORY_URL = "http://directory"


SMALL, LARGE = 1000, 200_000


class FakeDirectory:
    """The three calls of a file server, behind the real door. ``tasks`` are given out until ``forget``."""

    def __init__(self, clock: Clock) -> None:
        self.changed = threading.Condition()
        self.registered: list[Register] = []
        self.heartbeats: list[Heartbeat] = []
        self.inventories: list[Inventory] = []
        self.tasks = Tasks()
        self.servers: list[ServerAddress] = []
        self.on_page: Callable[[], object] = lambda: None
        self.unknown: list[bytes] = []
        self.older_than_seconds = 3600.0
        self.ids: dict[bytes, int] = {}
        self.forgotten: set[int] = set()
        door = Door("directory", REALM["directory"].tickets, clock)
        door.sealed("POST", "/v1/servers", self._register, Role.JOIN)
        door.sealed("POST", "/v1/servers/<int:server>/heartbeat", self._heartbeat, Role.JOIN)
        door.sealed("POST", "/v1/servers/<int:server>/inventory", self._inventory, Role.JOIN)
        self.app = door.app

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until ``condition`` holds; looked at after each call that arrives."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout=10)

    def _register(self, call: Call) -> Registered:
        message = call.message(Register)
        with self.changed:
            self.registered.append(message)
            number = self.ids.setdefault(message.identity, len(self.ids) + 1)
            self.forgotten.discard(number)
            self.changed.notify_all()
            return Registered(number, 0.02)

    def _heartbeat(self, call: Call, server: int) -> Tasks:
        with self.changed:
            if server in self.forgotten:
                raise fail(errno.ENOENT, "register again")
            self.heartbeats.append(call.message(Heartbeat))
            self.changed.notify_all()
            return msgspec.structs.replace(self.tasks, servers=self.servers)

    def _inventory(self, call: Call, server: int) -> InventoryAnswer:
        message = call.message(Inventory)
        with self.changed:
            self.inventories.append(message)
            if message.chunks:
                self.on_page()
            self.changed.notify_all()
            unknown = [chunk_id for chunk_id in message.chunks if chunk_id in self.unknown]
            return InventoryAnswer(unknown, self.older_than_seconds)


class Realm:
    """File servers in one process. They are not started: their ids are set here, as if registered."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wire = InProcessWire()
        self.clock = Clock()
        self.servers: list[FileServer] = []
        self.keyring = make_keyring({Role.FILES: KEYS.tickets[Role.FILES]})
        self.client = ChunkClient(self.wire, self.keyring, deadline_seconds=1.0)

    def config(self, number: int, **options: int) -> FilesConfig:
        url = f"http://files{number}"
        return FilesConfig(
            KEYS, self.root / str(number), f"files{number}", url, DIRECTORY_URL, clock=self.clock, **options
        )

    def add(self, **options: int) -> FileServer:
        number = len(self.servers) + 1
        server = FileServer(self.config(number, **options), self.wire)
        server.agent.id = number
        self.wire.apps[f"http://files{number}"] = server.app
        self.servers.append(server)
        for other in self.servers:
            other.addresses.learn(self.addresses(*range(1, number + 1)))
        return server

    def addresses(self, *numbers: int) -> list[ServerAddress]:
        return [ServerAddress(number, f"http://files{number}") for number in numbers]

    def kill(self, number: int) -> None:
        del self.wire.apps[f"http://files{number}"]


def watch(realm: Realm) -> list[tuple[str, str]]:
    """The host and request id of each request from now on."""
    seen: list[tuple[str, str]] = []
    # Before what may lose the request.
    realm.wire.before.insert(0, lambda url, headers: seen.append((url.split("/")[2], headers["DFS-Request"])))
    return seen


def chunk(size: int) -> tuple[bytes, bytes]:
    data = os.urandom(size)
    return new_chunk_id(data), data


def path_of(server_root: Path, chunk_id: bytes) -> Path:
    return server_root / "chunks" / chunk_id.hex()[:2] / chunk_id.hex()


def everything_below(root: Path) -> set[Path]:
    """All files but the database's and the lock."""
    return {path for path in root.rglob("*") if path.is_file() and path.parent != root}


# The scrub


def spoil(server: FileServer, root: Path, chunk_id: bytes) -> None:
    path = path_of(root, chunk_id)
    if path.exists():
        path.write_bytes(bytes(path.stat().st_size))
        return
    with server.store._database.read() as connection:
        connection.exec_driver_sql("UPDATE chunks SET data = zeroblob(size) WHERE id = ?", (chunk_id,))
        connection.commit()
