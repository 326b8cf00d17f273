"""What could not be committed when its last handle was closed is tried again until it succeeds.

Meanwhile the lock is kept and the dirty copy stays on disk, where the next mount finds it.
"""

import logging
import threading
from collections.abc import Callable

from mount.committing import Committer
from mount.nodes import Node
from wire.errors import Conflict

log = logging.getLogger(__name__)

RETRY_SECONDS = (1.0, 2.0, 5.0, 15.0)
"""Before an attempt; the last one again and again."""


class LaterCommits:
    """The nodes of a mount that wait for it, and the thread that tries. ``on_saved`` hears of those that have
    nothing dirty any more."""

    def __init__(self, committer: Committer, on_saved: Callable[[Node], None]) -> None:
        self._committer = committer
        self._on_saved = on_saved
        self._unsaved: list[Node] = []
        self._guard = threading.Condition()
        self._stopping = False
        self._attempts = threading.Thread(target=self._attempt_loop, name="write-back", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._attempts.start()

    def close(self) -> None:
        """Ends it; what is unsaved stays dirty on disk."""
        with self._guard:
            self._stopping = True
            self._guard.notify_all()
        self._attempts.join()

    def add(self, node: Node) -> None:
        """One that nobody has open any more and that could not be committed. It must stay pinned."""
        with self._guard:
            self._unsaved.append(node)
            self._guard.notify_all()

    def unsaved(self) -> list[Node]:
        """What waits."""
        with self._guard:
            return list(self._unsaved)

    def _attempt_loop(self) -> None:
        attempt = 0
        while True:
            with self._guard:
                self._guard.wait_for(lambda: self._unsaved or self._stopping)
                pause_seconds = RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
                self._guard.wait_for(lambda: self._stopping, pause_seconds)
                if self._stopping:
                    return
                nodes = list(self._unsaved)
            saved = [node for node in nodes if self._try_again(node)]
            with self._guard:
                for node in saved:  # one for each: another failure may have been added meanwhile
                    self._unsaved.remove(node)
                attempt = 0 if saved or not self._unsaved else attempt + 1
            for node in saved:
                self._on_saved(node)

    def _try_again(self, node: Node) -> bool:
        """Whether nothing of it is dirty any more."""
        if node.attr.nlink == 0:
            self._give_up(node)
            return True
        try:
            self._committer.commit(node)
        except Conflict:
            return True
        except OSError as error:
            log.info("inode %d is still not written back: %s", node.ino, error)
            return False
        except Exception:
            log.exception("inode %d is still not written back", node.ino)
            return False
        return True

    @staticmethod
    def _give_up(node: Node) -> None:
        """The file was removed while its content could not be written back: nobody will miss it."""
        with node.committing, node.guard:
            node.discard()
