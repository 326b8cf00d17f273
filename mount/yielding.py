"""Write locks that others need for what their programs have locked are given up, in a thread of its own: who
hears of it is the thread of renewals, which must not wait for a commit."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger(__name__)


class Yielder:
    """``give_way(ino)`` may raise OSError: who still waits then is heard of again with the next renewal."""

    def __init__(self, give_way: Callable[[int], None]) -> None:
        self._give_way = give_way
        self._inos: SimpleQueue[int] = SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="yielding", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends it, when what it has heard of is done."""
        self._inos.put(0)
        if self._thread.ident is not None:
            self._thread.join()

    def ask(self, ino: int) -> None:
        """Another mount waits for the write lock of this inode, which programs lock for themselves."""
        self._inos.put(ino)

    def _loop(self) -> None:
        while ino := self._inos.get():
            try:
                self._give_way(ino)
            except OSError as error:
                log.info("the write lock of inode %d is not given up yet: %s", ino, error)
            except Exception:
                log.exception("the write lock of inode %d is not given up", ino)
