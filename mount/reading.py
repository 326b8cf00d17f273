"""Reading: what the local copy lacks is fetched, each chunk once, and sequential readers are run ahead of."""

import logging
import threading
from concurrent.futures import Future

from cache.copies import NeedsManifest
from mount import turns
from mount.nodes import Handle, Node
from mount.proxy import Proxy
from wire.limits import CHUNK_BYTES, MANIFEST_CHUNKS_MAX
from wire.messages.common import Caller
from wire.messages.directory import ChunkAt, Manifest

log = logging.getLogger(__name__)

AHEAD_MAX = 8
"""Chunks fetched ahead of a sequential reader, once it has shown that it goes on."""


class Demand:
    """How many chunks are under way because programs need them or soon will: who fetches what nobody has
    asked for waits until there are none. ``count`` is under ``changed``."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.count = 0

    def begin(self) -> None:
        """One more."""
        with self.changed:
            self.count += 1

    def end(self, _: object = None) -> None:
        """One less."""
        with self.changed:
            self.count -= 1
            self.changed.notify_all()


class Reader:
    """Reads through local copies."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.demand = Demand()

    def read_into(self, handle: Handle, offset: int, buffer: memoryview) -> int:
        """Fills ``buffer`` from ``offset`` on; fewer bytes at the end of the file. Returns how many."""
        node = handle.node
        while True:
            with node.guard:
                if node.copy.has(offset, len(buffer)):
                    count = node.copy.read_into(offset, buffer, turns.about_to_wait)
                    break
            self.ensure(node, offset, len(buffer), handle.caller)
        self._run_ahead(handle, offset, count)
        return count

    def ensure(self, node: Node, offset: int, size: int, who: Caller | None) -> None:
        """Fetches what is missing in the range, for ``who``. Raises what the last replica said."""
        turns.about_to_wait()
        while True:
            with node.guard:
                version = node.copy.version
                try:
                    missing = node.copy.missing(offset, size)
                except NeedsManifest as need:
                    missing, unlearned = None, need.index
                futures = [self._fetch(node, index, who) for index in missing or ()]
            if missing is None:
                self.learn(node, version, unlearned, who)
            elif not missing:
                return
            try:
                for future in futures:
                    future.result()
            except OSError:
                if node.copy.version == version:
                    raise  # else it was for an older version than the one that is shown now

    def fetch_some(self, node: Node, count: int, who: Caller | None) -> list[Future[bool]]:
        """Begins to fetch ``count`` chunks that the copy lacks, which no program has asked for. None: it is
        complete. Raises as ``learn``."""
        while True:
            with node.guard:
                version = node.copy.version
                try:
                    missing = node.copy.missing(0, node.copy.size)[:count]
                    return [self._fetch(node, index, who, is_asked_for=False) for index in missing]
                except NeedsManifest as need:
                    unlearned = need.index
            self.learn(node, version, unlearned, who)

    def learn(self, node: Node, version: int, index: int, who: Caller | None) -> None:
        """Asks for the manifest of ``version`` from chunk ``index`` on; what the node does not show any more
        when it comes is dropped. Raises ESTALE if the version is not retained."""
        self.take(node, self._proxy.manifest(node.ino, version, index, who), index, MANIFEST_CHUNKS_MAX)

    def take(self, node: Node, manifest: Manifest, first: int, count: int) -> None:
        """Learns a manifest of ``count`` chunks from ``first`` on, unless it is of another version."""
        self._proxy.learn_servers(manifest.servers)
        with node.guard:
            if node.copy.version == manifest.version:
                node.copy.learn(first, count, {chunk.index: chunk for chunk in manifest.chunks})

    def _fetch(
        self, node: Node, index: int, who: Caller | None, *, is_asked_for: bool = True
    ) -> Future[bool]:
        """Under guard: the one download of this chunk that is under way. One for an older version, of another
        chunk at the same place, is none of ours: it may fail."""
        chunk = node.copy.chunk_at(index)
        assert chunk is not None, "a chunk that is missing has a place in the manifest"
        future = node.fetching.get((index, chunk.id))
        if future is None:
            if is_asked_for:
                self.demand.begin()  # before it goes out, or something else would come first
            future = self._proxy.downloads.submit(self._download, node, chunk, who)
            node.fetching[index, chunk.id] = future
            if is_asked_for:
                future.add_done_callback(self.demand.end)
        return future

    def _download(self, node: Node, chunk: ChunkAt, who: Caller | None) -> bool:
        try:
            data = self._get(node, chunk, who)
            with node.guard:
                return node.copy.fill(chunk.index, chunk.id, data)
        finally:
            with node.guard:
                node.fetching.pop((chunk.index, chunk.id), None)

    def _get(self, node: Node, chunk: ChunkAt, who: Caller | None) -> bytes:
        try:
            return self._proxy.download(chunk)
        except OSError:
            # The chunk may have been copied to other servers since its place was learned.
            manifest = self._proxy.manifest(node.ino, node.copy.version, chunk.index, who)
            again = next((other for other in manifest.chunks if other.id == chunk.id), None)
            if again is None or again.servers == chunk.servers:
                raise
            return self._proxy.download(again)

    def _run_ahead(self, handle: Handle, offset: int, count: int) -> None:
        if not count:
            return
        sequential, end = offset == handle.next_read, offset + count
        handle.next_read = end
        if not sequential or offset == 0:
            handle.ahead = 1
            return
        index = (end - 1) // CHUNK_BYTES
        if index != (offset - 1) // CHUNK_BYTES:
            handle.ahead = min(2 * handle.ahead, AHEAD_MAX)
        node = handle.node
        with node.guard:
            try:
                missing = node.copy.missing((index + 1) * CHUNK_BYTES, handle.ahead * CHUNK_BYTES)
            except NeedsManifest:
                return
            for ahead in missing:
                self._fetch(node, ahead, handle.caller)
