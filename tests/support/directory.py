"""A directory server in this process, with users, and with what lock and file servers would say to it."""

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clients.directory import DirectoryClient
from clients.feed import FeedClient
from clients.session import Channel, Keyring, Wire
from clients.storage import StorageClient
from servers.database import sqlite_url
from servers.directory.app import DirectoryServer, make_server
from servers.directory.config import DirectoryConfig
from servers.keys import new_realm_keys
from tests.support.inprocess import InProcessWire, make_keyring
from tests.support.times import Clock
from wire.chunking import new_chunk_id
from wire.limits import LEASE_SECONDS
from wire.messages.directory import ROOT_INO, Attr, ChunkChange, Commit, Create, Op, Register, Reserve
from wire.tickets import Grant, Receipt, Role, seal_grant, seal_receipt

URL = "http://directory"
ALICE, BOB, TEAM = 10001, 10002, 20000


class User:
    """A session at the directory server."""

    def __init__(self, realm: "DirectoryRealm", keyring: Keyring, wire: Wire) -> None:
        self._realm = realm
        self.session = keyring.session.session
        channel = Channel(wire, URL, Role.DIRECTORY, keyring, deadline_seconds=60)
        self.client = DirectoryClient(channel)
        self.feed = FeedClient(channel, wire, keyring)

    def do(self, op: Op) -> Attr:
        """One operation; the attributes of the inode it is about."""
        attr = self.client.mutate([op])[0].attr
        assert attr is not None
        return attr

    def mkdir(self, name: bytes, parent: int = ROOT_INO, mode: int = 0o755) -> Attr:
        """A directory."""
        return self.do(Create(parent, name, 0o040000 | mode))

    def create(self, name: bytes, parent: int = ROOT_INO, mode: int = 0o644) -> Attr:
        """An empty file."""
        return self.do(Create(parent, name, 0o100000 | mode))

    def open_new(self, name: bytes, token: int = 1, parent: int = ROOT_INO) -> tuple[Attr, bytes]:
        """A file that is created open for writing, and the grant for it."""
        ino = self.client.mutate([Reserve(1)])[0].inos[0]
        grant = self.grant(ino, token)
        return self.do(Create(parent, name, 0o100644, ino=ino, grant=grant)), grant

    def grant(self, ino: int, token: int) -> bytes:
        """What the lock server would give this session."""
        return seal_grant(self._realm.keys["directory"].grant, Grant(ino, token, self.session))

    def attr(self, ino: int) -> Attr | None:
        """As the directory answers it now."""
        return self.client.attrs([ino])[0]

    def names(self, ino: int = ROOT_INO) -> list[bytes]:
        """All names in a directory (of at most 2000)."""
        return [entry.name for entry in self.client.list_page(ino).entries]


class DirectoryRealm:
    """The server; users come to it by ``user``. Its feed listens from ``listen`` on."""

    def __init__(self, folder: Path, lease_seconds: float = LEASE_SECONDS) -> None:
        self.keys = new_realm_keys()
        self.clock = Clock()
        self.wire = InProcessWire()
        self.config = DirectoryConfig(
            keys=self.keys["directory"],
            database=sqlite_url(folder / "directory.db"),
            lease_seconds=lease_seconds,
            clock_ns=self.clock.ns,
        )
        self.server: DirectoryServer
        self.start()

    def start(self) -> None:
        """The server process begins; maintenance does not run."""
        self.server = make_server(self.config)
        self.wire.apps[URL] = self.server.app

    def restart(self) -> None:
        """The server process ends, and another begins on the same database."""
        self.server.close()
        self.start()

    def listen(self) -> None:
        """The feed begins; ``close`` is needed then."""
        self.server.feed.start()
        self.wire.listens("directory", self.server.feed.at().port)

    def close(self) -> None:
        """Ends the server and the connections to its feed."""
        self.server.close()
        self.wire.close()

    def user(self, uid: int, *gids: int, trusted: bool = False, wire: Wire | None = None) -> User:
        """A session of this user."""
        keys = {Role.DIRECTORY: self.keys["directory"].tickets[Role.DIRECTORY]}
        keyring = make_keyring(keys, user=f"u{uid}", uid=uid, gids=gids or (uid,), trusted=trusted)
        return User(self, keyring, wire or self.wire)

    def add_file_server(self) -> int:
        """A file server registers; its id."""
        keyring = make_keyring({Role.JOIN: self.keys["directory"].tickets[Role.JOIN]})
        client = StorageClient(self.wire, URL, keyring)
        identity = os.urandom(16)
        return client.register(Register(identity, "f", f"http://f{identity.hex()}", 2**40, 2**40)).id

    def stored(self, index: int, server: int, size: int = 100, age_seconds: float = 0) -> ChunkChange:
        """A new chunk that the file server has stored so long ago."""
        chunk = new_chunk_id(next(_contents))
        receipt = Receipt(chunk, size, [server], self.clock.now - age_seconds)
        sealed = seal_receipt(self.keys["directory"].tickets[Role.JOIN], receipt)
        return ChunkChange(index, chunk, size, sealed)


_contents = (number.to_bytes(8, "big") for number in itertools.count())


@contextmanager
def fails(number: int) -> Iterator[None]:
    """An OSError with this errno."""
    with pytest.raises(OSError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number], caught.value


def look(user: User, ino: int) -> Attr:
    """The attributes of an inode that there is."""
    attr = user.attr(ino)
    assert attr is not None
    return attr


def commit(
    file: Attr, grant: bytes, size: int, chunks: list[ChunkChange], keep: int = 0, **more: int
) -> Commit:
    """A commit to the version that ``file`` shows."""
    commit_id = os.urandom(16)
    return Commit(file.ino, grant, file.version, commit_id, size, keep, chunks, **more)


def placed(user: User, ino: int, version: int = 0) -> dict[int, bytes]:
    """The chunks of a version, by their index."""
    return {chunk.index: chunk.id for chunk in user.client.manifest(ino, version).chunks}
