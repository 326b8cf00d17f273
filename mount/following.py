"""Bringing a newer version to programs that read the local copy past this process (FUSE passthrough).

The kernel lets an inode have one file behind it at a time. So who opens the newer version can read and map
it only if the file that others have open has become that version: all that has changed is fetched first, and
then replaces the old in that file, for all of them (cache.succession).
"""

import logging
from concurrent.futures import wait

from cache.succession import Successor
from mount import turns
from mount.nodes import Node
from mount.proxy import TRANSFERS, Proxy
from wire.chunking import chunk_count
from wire.limits import MANIFEST_CHUNKS_MAX
from wire.messages.common import Caller
from wire.messages.directory import Attr, ChunkAt

log = logging.getLogger(__name__)

FOLLOW_BYTES_MAX = 1024 * 1024 * 1024
"""Who opens a file waits until so much of it was fetched, and the cache folder has room for it twice. If more
has changed, those who read the old version are left with it."""

LOOK_BYTES_MAX = 64 * 1024 * 1024
"""Who asks for attributes waits for less. If more has changed, he is shown the version that is read here."""


class Follower:
    """Moves nodes to newer versions."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def follow(self, node: Node, attr: Attr, who: Caller | None) -> None:
        """For who opens the file: moves to what the directory says. Raises what stands in the way of fetching
        it; then everything is as it was."""
        while not node.accept(attr):
            if not self._bring(node, attr, who, FOLLOW_BYTES_MAX):
                log.info("inode %d: who reads version %d is left with it", node.ino, node.copy.version)
                node.accept(attr, leaves=True)

    def follow_early(self, node: Node, attr: Attr) -> None:
        """For who asks for attributes: a program that waits for a file to grow reads what is behind the old
        end when he sees another size. What cannot be fetched is not tried again for him."""
        if node.accept(attr, may_move=False) or node.not_followed == attr.version:
            return
        try:
            is_brought = self._bring(node, attr, node.caller, LOOK_BYTES_MAX)
        except OSError as error:
            log.info("inode %d: version %d cannot be fetched: %s", node.ino, attr.version, error)
            is_brought = False
        if not is_brought:
            node.not_followed = attr.version
        node.accept(attr, may_move=False)

    def _bring(self, node: Node, attr: Attr, who: Caller | None, bytes_max: int) -> bool:
        """False if it is too much, or may not be read by ``who`` (he may only write)."""
        turns.about_to_wait()  # for who brings it already, or for services
        with node.following.turn():
            with node.guard:
                successor = node.copy.successor(attr.version, attr.size, with_writers=node.is_shared)
            if successor is None:
                return True  # somebody else has brought it, or nobody reads it any more
            with successor:
                if not self._learn(node.ino, successor, who, bytes_max):
                    return False
                self._fetch(successor)
                node.follow(successor)
                return True

    def _learn(self, ino: int, successor: Successor, who: Caller | None, bytes_max: int) -> bool:
        try:
            for first in range(0, chunk_count(successor.size), MANIFEST_CHUNKS_MAX):
                successor.learn(self._proxy.manifest(ino, successor.version, first, who).chunks)
                if successor.bytes_wanted > bytes_max:
                    return False
        except PermissionError:
            return False
        return True

    def _fetch(self, successor: Successor) -> None:
        """As many at a time as there are threads, so that other readers have their turns."""
        for first in range(0, len(successor.wanted), TRANSFERS):
            chunks = successor.wanted[first : first + TRANSFERS]
            futures = [self._proxy.downloads.submit(self._download, successor, chunk) for chunk in chunks]
            wait(futures)
            for future in futures:
                future.result()

    def _download(self, successor: Successor, chunk: ChunkAt) -> None:
        successor.fill(chunk, self._proxy.download(chunk))
