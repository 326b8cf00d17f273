"""What a file server does for clients: store a chunk here and on the secondaries, and answer it.

A put is answered when every server that is alive has the chunk on disk, and the receipt names exactly
those. A secondary that is away costs one silence, then it is left alone for a while (its breaker).
"""

import errno
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from clients.files import ChunkClient
from servers.files.addresses import Addresses
from servers.files.config import FilesConfig
from servers.files.store import ChunkStore, verify
from wire.errors import Unavailable, fail
from wire.messages.common import Empty, ServerAddress
from wire.messages.files import PutChunk, Stored
from wire.tickets import Receipt, Role, seal_receipt

log = logging.getLogger(__name__)


class FilesService:
    """``own_id`` is this server's id at the directory, 0 while it has none; ``doubt`` is told of chunks
    that could not be read."""

    def __init__(
        self,
        config: FilesConfig,
        store: ChunkStore,
        addresses: Addresses,
        peers: ChunkClient,
        own_id: Callable[[], int],
        doubt: Callable[[bytes], None],
    ) -> None:
        self._config = config
        self._store = store
        self._addresses = addresses
        self._peers = peers
        self._own_id = own_id
        self._doubt = doubt
        self._places = threading.BoundedSemaphore(config.forwarding_requests_max)
        self._forwarding = ThreadPoolExecutor(64, thread_name_prefix="forward")

    def close(self) -> None:
        """Waits for what is being forwarded."""
        self._forwarding.shutdown(cancel_futures=True)

    def get(self, chunk_id: bytes) -> bytes:
        """The chunk's bytes. ENOENT if it is not here, EIO if the disk does not give it back whole."""
        try:
            return self._store.get(chunk_id)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self._doubt(chunk_id)
            raise

    def doubt(self, chunk_id: bytes) -> Empty:
        """Has the chunk looked at soon: a client got other bytes than its id says."""
        self._doubt(chunk_id)
        return Empty()

    def put(self, chunk_id: bytes, message: PutChunk, request_id: str) -> Stored:
        """Stores the chunk here and on ``message.forward``. Raises EBADMSG, ENOSPC, or Unavailable while
        the directory does not know this server, or too many requests wait for secondaries."""
        verify(chunk_id, message.data)
        own_id = self._own_id()
        if not own_id:
            raise Unavailable("the file server is not registered yet")
        others = self._put_everywhere(chunk_id, message, request_id)
        servers = [own_id, *(other for other in others if other)]
        receipt = Receipt(chunk_id, len(message.data), servers, self._config.clock())
        return Stored(servers, seal_receipt(self._config.keys.tickets[Role.JOIN], receipt))

    def _put_everywhere(self, chunk_id: bytes, message: PutChunk, request_id: str) -> list[int]:
        """The ids of the secondaries that have it now, 0 for one that has not."""
        if not message.forward:
            self._store.put_verified(chunk_id, message.data)
            return []
        if not self._places.acquire(blocking=False):
            raise Unavailable("too many requests wait for secondaries")
        futures: list[Future[int]] = []
        try:
            copy = PutChunk(message.data)
            futures += [
                self._forwarding.submit(self._forward, server, chunk_id, copy, request_id)
                for server in self._addresses.find(message.forward)
            ]
            self._store.put_verified(chunk_id, message.data)
            return [future.result() for future in futures]
        finally:
            wait(futures)  # also when the store refused it: until then they have the place, and its memory
            self._places.release()

    def _forward(self, server: ServerAddress, chunk_id: bytes, copy: PutChunk, request_id: str) -> int:
        """The server's id once it has the chunk on disk; 0 if it is away or did not take it."""
        if self._peers.is_away(server):
            return 0
        silence_seconds = self._config.forward_silence_seconds
        try:
            stored = self._peers.put_once(server, chunk_id, copy, silence_seconds, request_id)
            if stored.servers != [server.id]:
                raise fail(errno.ESTALE, f"{server.url} is not server {server.id} any more")
        except OSError as error:
            log.info("%s: chunk %s is not on server %d: %s", request_id, chunk_id.hex(), server.id, error)
            return 0
        return server.id
