"""The client proxy: all services of a realm as one object, for one session.

It hides which server does what: where chunks go and come from, which replica answers, how tickets are
renewed. It keeps no file's state; that is the Vfs's. Usable without a mount (see examples/).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from clients.attempts import Attempts
from clients.directory import DirectoryClient
from clients.feed import FeedClient
from clients.files import ChunkClient
from clients.lock import LockClient
from clients.session import Answer, Channel, Counter, Keyring, Wire
from mount import turns
from mount.calls import Calls
from mount.feed import Feed
from mount.lease import Lease
from mount.leaving import Leaving
from mount.locks import WriteLocks
from mount.names import Names
from mount.program_locks import ProgramLocks
from mount.slate import Slate
from wire.chunking import new_chunk_id
from wire.messages.auth import Realm
from wire.messages.common import Caller, ServerAddress
from wire.messages.directory import ChunkAt, ChunkChange, Manifest, Reserve
from wire.permissions import Identity
from wire.tickets import Role

log = logging.getLogger(__name__)

_ROOT = Caller(0, [0])

TRANSFERS = 8
"""Chunks under way at the same time, in each direction."""


class Proxy:
    """``start`` before use, ``close`` afterwards. ``deadline_seconds`` counts the silence of a service. The
    ``wire`` stays the caller's to close. ``on_lock_lost(ino)`` is called from the thread of renewals, which
    must not wait. ``promised``: the directory is to tell what changes, once ``feed`` is started.

    With the ``slate`` of an earlier worker it goes on where that one was stopped: with higher request
    numbers, with its locks, and with what its calls had begun (mount.calls)."""

    def __init__(
        self,
        realm: Realm,
        keyring: Keyring,
        wire: Wire,
        deadline_seconds: float = 30.0,
        slate: Slate | None = None,
        *,
        promised: bool = False,
    ) -> None:
        wire = _Waited(wire)
        self.keyring = keyring
        self._identity = Identity(keyring.session.uid, tuple(keyring.session.gids))
        self.slate = slate or Slate()
        self.calls = Calls(self.slate)
        counter = Counter(self.slate.first_number, self.calls.requests())
        self.calls.on_end = counter.done
        directory = Channel(wire, realm.directory_url, Role.DIRECTORY, keyring, deadline_seconds, counter)
        self.directory = DirectoryClient(directory)
        counter = Counter(self.slate.first_number)
        self.lock = LockClient(Channel(wire, realm.lock_url, Role.LOCK, keyring, deadline_seconds, counter))
        lease = Lease() if promised else None
        self.names = Names(self.directory, lease)
        self.feed = None if lease is None else Feed(FeedClient(directory, wire, keyring), self.names, lease)
        """What is told is true as long as it is to be believed; without it beliefs last a second."""
        self.chunks = ChunkClient(wire, keyring, deadline_seconds)
        self._leaving = Leaving()
        self.program_locks = ProgramLocks(self.lock, self.slate, self._leaving)
        self.write_locks = WriteLocks(
            self.lock,
            self._reserve,
            lambda ino: self.on_lock_lost(ino),
            lambda ino: self.on_lock_shared(ino),
            self.program_locks,
            self._leaving,
        )
        self.on_lock_lost: Callable[[int], None] = lambda _ino: None
        self.on_lock_shared: Callable[[int], None] = lambda _ino: None
        self.on_renewal: Callable[[], None] = lambda: None
        """Called after each renewal of the tickets, which is at least once an hour."""
        self.uploads = ThreadPoolExecutor(TRANSFERS, "upload")
        self.downloads = ThreadPoolExecutor(TRANSFERS, "download")
        self._placement = _Placement(self.directory)
        self._servers: dict[int, ServerAddress] = {}
        self._stop = threading.Event()
        self._renewal = threading.Thread(target=self._renew_tickets, name="ticket-renewal", daemon=True)

    def start(self) -> None:
        """Takes over the locks of an earlier worker, and starts the renewal of tickets and locks."""
        self.write_locks.take_over(self._locked_inos())
        self._renewal.start()
        self._leaving.start()
        self.program_locks.start()
        self.write_locks.start()

    def close(self) -> None:
        """Finishes transfers, and gives all locks and promises back."""
        self.uploads.shutdown(cancel_futures=True)
        self.downloads.shutdown(cancel_futures=True)
        self.write_locks.close()
        self.program_locks.close()
        self._leaving.close()
        if self.feed is not None:
            self.feed.close()
        self._stop.set()
        self._renewal.join()

    def identity(self, caller: Caller | None) -> Identity:
        """On whose behalf the directory is asked for ``caller``; None is the session's own user."""
        return self._identity if caller is None else Identity(caller.uid, tuple(caller.gids))

    # Content

    def upload(self, data: bytes, index: int) -> ChunkChange:
        """Stores ``data`` under a new id on as many replicas as are alive; what a commit says of it."""
        chunk_id = new_chunk_id(data)
        stored = self.chunks.put(self._placement.next_set(), chunk_id, data)
        return ChunkChange(index, chunk_id, len(data), stored.receipt)

    def manifest(self, ino: int, version: int, first: int, caller: Caller | None = None) -> Manifest:
        """MANIFEST_CHUNKS_MAX places of a version's manifest, from chunk ``first`` on.

        In a trusted mount it is root who asks: who has a file open had the right to, and keeps the descriptor
        when it is taken away; and who may only write must write into what is there.
        """
        manifest = self.directory.manifest(ino, version, first, caller=None if caller is None else _ROOT)
        self.learn_servers(manifest.servers)
        return manifest

    def learn_servers(self, servers: Iterable[ServerAddress]) -> None:
        """Remembers where they are."""
        for server in servers:
            self._servers[server.id] = server

    def download(self, chunk: ChunkAt) -> bytes:
        """The verified bytes of a chunk, from whichever replica answers."""
        return self.chunks.get(self.addresses(chunk.servers), chunk.id)

    def addresses(self, server_ids: Sequence[int]) -> list[ServerAddress]:
        """Where these servers are; asked for again if one was never heard of."""
        if any(number not in self._servers for number in server_ids):
            for server in self.directory.known_servers().servers:
                self._servers[server.id] = ServerAddress(server.id, server.url)
        return [self._servers[number] for number in server_ids if number in self._servers]

    # Background

    def _locked_inos(self) -> list[int]:
        writers = {
            file.ino for _, file in self.slate.handles.items() if file.is_writer and not file.is_shared
        }
        return sorted(writers.union(call.ino for call in self.calls.left() if call.ino))

    def _reserve(self, count: int) -> list[int]:
        return self.directory.mutate([Reserve(count)])[0].inos

    def _renew_tickets(self) -> None:
        pause = max(1.0, self.keyring.seconds_until_renewal())
        while not self._stop.wait(pause):
            try:
                self.keyring.renew()
                pause = max(1.0, self.keyring.seconds_until_renewal())
                self.on_renewal()
            except OSError as error:
                log.info("the tickets or what goes with them could not be renewed: %s", error)
                pause = min(60.0, pause)


class _Waited:
    """A wire. Who sends something waits for the answer."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
    ) -> Answer:
        """As the wire's own."""
        turns.about_to_wait()
        return self._wire.send(method, url, headers, body, silence_seconds)


class _Placement:
    """Replica sets for new chunks, taken in turn and asked for again when they are old."""

    def __init__(self, directory: DirectoryClient) -> None:
        self._directory = directory
        self._attempts = Attempts()
        self._sets: list[list[ServerAddress]] = []
        self._turn = 0
        self._valid_until = 0.0

    def next_set(self) -> list[ServerAddress]:
        with self._attempts.turn():
            if time.monotonic() >= self._valid_until:
                placement = self._directory.placement()
                self._sets = placement.sets
                self._valid_until = time.monotonic() + placement.valid_seconds
            self._turn += 1
            return self._sets[self._turn % len(self._sets)]
