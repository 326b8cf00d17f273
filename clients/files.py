"""Storing and fetching chunks, with failover between the file servers that have them.

A server is asked once and then the next one; only when all were asked in vain does the next round
begin, and it waits longer for each, since a slow server is not a dead one. All rounds together have one
deadline. Servers that lately did not answer (their breaker is open) are asked last.
"""

import errno
import itertools
import logging
import threading
import time
from collections.abc import Iterator

from clients.session import Channel, Keyring, Wire, backoff_seconds
from wire.chunking import fits
from wire.errors import TicketRefused, Unavailable, fail
from wire.messages.common import Empty, ServerAddress
from wire.messages.files import PutChunk, Stored
from wire.tickets import Role

log = logging.getLogger(__name__)

PUT_SILENCE_SECONDS = 8.0
"""More than a primary waits for its secondaries."""
GET_SILENCE_SECONDS = 3.0
DOUBT_SILENCE_SECONDS = 1.0


class ChunkClient:
    """The file servers, for one session. Thread-safe."""

    def __init__(self, wire: Wire, keyring: Keyring, deadline_seconds: float = 30.0) -> None:
        self._wire = wire
        self._keyring = keyring
        self._deadline_seconds = deadline_seconds
        self._lock = threading.Lock()
        self._channels: dict[str, Channel] = {}

    def put(self, servers: list[ServerAddress], chunk_id: bytes, data: bytes) -> Stored:
        """Stores the chunk on ``servers``, primary first, and says on which of them it is now.

        If the primary does not take it (it is away, or full), the next one is the primary and the first is
        left out. Raises only when none took it: ENOSPC if one is full, Unavailable if none answered,
        else EIO.
        """
        failures: list[tuple[ServerAddress, OSError]] = []
        for silence_seconds in self._rounds(PUT_SILENCE_SECONDS):
            failures = []
            left = self._alive_first(servers)
            while left:
                primary, left = left[0], left[1:]
                message = PutChunk(data, [server.id for server in left if not self.is_away(server)])
                try:
                    return self.put_once(primary, chunk_id, message, silence_seconds)
                except OSError as error:
                    _note("store", chunk_id, primary, error, failures)
            if not any(isinstance(error, Unavailable) for _, error in failures):
                break
        raise _verdict(f"chunk {chunk_id.hex()} could not be stored", failures, answered_first=True)

    def get(self, servers: list[ServerAddress], chunk_id: bytes) -> bytes:
        """The chunk's bytes, which fit its id, from the first of ``servers`` that has them.

        Raises ENOENT if none of them has the chunk, Unavailable if one that may have it did not answer in
        time, else EIO; the text is what each one said.
        """
        failures: list[tuple[ServerAddress, OSError]] = []
        for silence_seconds in self._rounds(GET_SILENCE_SECONDS):
            failures = []
            for server in self._alive_first(servers):
                try:
                    return self._get_once(server, chunk_id, silence_seconds)
                except OSError as error:
                    _note("fetch", chunk_id, server, error, failures)
            if not any(isinstance(error, Unavailable) for _, error in failures):
                break
        raise _verdict(f"no server has chunk {chunk_id.hex()}", failures, answered_first=False)

    def put_once(
        self,
        server: ServerAddress,
        chunk_id: bytes,
        message: PutChunk,
        silence_seconds: float,
        request_id: str = "",
    ) -> Stored:
        """One attempt at one server. Raises what it says, or Unavailable."""
        path = f"/v1/chunks/{chunk_id.hex()}"
        return self._channel(server).call(
            "PUT", path, message, Stored, request_id=request_id, wait_seconds=silence_seconds
        )

    def is_away(self, server: ServerAddress) -> bool:
        """Whether the server did not answer lately and should be left alone for now."""
        return self._channel(server).breaker.is_open

    def _get_once(self, server: ServerAddress, chunk_id: bytes, silence_seconds: float) -> bytes:
        path = f"/v1/chunks/{chunk_id.hex()}"
        data = self._channel(server).call_bytes("GET", path, None, wait_seconds=silence_seconds)
        if not fits(chunk_id, data):
            self._doubt(server, path)
            raise fail(errno.EBADMSG, "what it answered is not that chunk")
        return data

    def _doubt(self, server: ServerAddress, path: str) -> None:
        """Tells the server to look at its chunk. If it does not hear, its scrub will see."""
        try:
            self._channel(server).call(
                "POST", f"{path}/doubt", Empty(), Empty, wait_seconds=DOUBT_SILENCE_SECONDS
            )
        except OSError as error:
            log.info("server %d was not told of its damage: %s", server.id, error.strerror)

    def _alive_first(self, servers: list[ServerAddress]) -> list[ServerAddress]:
        return sorted(servers, key=self.is_away)

    def _channel(self, server: ServerAddress) -> Channel:
        with self._lock:
            channel = self._channels.get(server.url)
            if channel is None:
                # No patience of its own: a failure is answered by asking another server.
                channel = Channel(self._wire, server.url, Role.FILES, self._keyring, deadline_seconds=0.0)
                self._channels[server.url] = channel
            return channel

    def _rounds(self, silence_seconds: float) -> Iterator[float]:
        """How long to wait for each server in this round; ends at the deadline."""
        last_moment = time.monotonic() + self._deadline_seconds
        for number in itertools.count():
            yield min(silence_seconds * 2**number, max(last_moment - time.monotonic(), 0.1))
            pause = backoff_seconds(0.1, number)
            if time.monotonic() + pause >= last_moment:
                return
            time.sleep(pause)


def _note(
    what: str,
    chunk_id: bytes,
    server: ServerAddress,
    error: OSError,
    failures: list[tuple[ServerAddress, OSError]],
) -> None:
    """Keeps what a server said. A refused ticket too: it may be the fault of this server alone."""
    log.info("server %d did not %s chunk %s: %s", server.id, what, chunk_id.hex(), error.strerror)
    failures.append((server, error))


def _verdict(detail: str, failures: list[tuple[ServerAddress, OSError]], *, answered_first: bool) -> OSError:
    """One error for what all servers said. With ``answered_first`` an answer counts more than silence (to
    store, one that is full says more); else less (to fetch, one that is silent may have the chunk)."""
    said = "; ".join(f"{server.url}: {error.strerror}" for server, error in failures) or "there is no server"
    detail = f"{detail}: {said}"
    answers = [error for _, error in failures if not isinstance(error, Unavailable)]
    if not answers or (len(answers) < len(failures) and not answered_first):
        return Unavailable(detail)
    if all(isinstance(error, TicketRefused) for error in answers):
        return TicketRefused(detail)
    numbers = {error.errno or errno.EIO for error in answers}
    if answered_first and errno.ENOSPC in numbers:
        return fail(errno.ENOSPC, detail)
    return fail(errno.ENOENT if numbers == {errno.ENOENT} else errno.EIO, detail)
