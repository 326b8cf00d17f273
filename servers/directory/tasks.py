"""What file servers still have to do, in memory: planned from the rows, lost without harm.

A task is given in the answer of a heartbeat and waits for the heartbeat that reports it done. If that
does not come in time, a deletion is given again, and a copy is forgotten, so that it can be planned for
another server. A chunk is copied to one server at a time.
"""

import threading
from collections.abc import Iterable

from wire.messages.directory import CopyTask, Tasks

TASK_SECONDS = 30.0
"""How long a given task is waited for."""

DELETES_MAX = 1000
"""The most deletions in one answer."""

DELETES_WAITING_MAX = 5000
"""The most deletions that are remembered for one server; more will be planned later."""

COPY_BYTES_MAX = 256 * 1024 * 1024
"""The most bytes that one server has to copy at a time, counting ``COPY_COST_BYTES`` more for each chunk."""

COPY_COST_BYTES = 256 * 1024

NOT_GIVEN = float("inf")


class TaskBook:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deletes: dict[int, dict[bytes, float]] = {}  # by server: when it was given
        self._copies: dict[int, dict[bytes, tuple[CopyTask, float]]] = {}
        self._copied: set[bytes] = set()  # all chunks in _copies

    def add_deletes(self, server: int, ids: Iterable[bytes]) -> None:
        """``server`` shall delete these chunks."""
        with self._lock:
            waiting = self._deletes.setdefault(server, {})
            for chunk in ids:
                if len(waiting) < DELETES_WAITING_MAX:
                    waiting.setdefault(chunk, NOT_GIVEN)

    def add_copy(self, server: int, task: CopyTask) -> None:
        """``server`` shall get this chunk, which is not in ``copied``; it shall delete it no more."""
        with self._lock:
            self._deletes.get(server, {}).pop(task.chunk, None)
            self._copied.add(task.chunk)
            self._copies.setdefault(server, {})[task.chunk] = (task, NOT_GIVEN)

    def copied(self) -> set[bytes]:
        """The chunks that some server is getting."""
        with self._lock:
            return set(self._copied)

    def load(self, server: int) -> int:
        """What the server has to copy, in bytes."""
        with self._lock:
            return sum(task.size + COPY_COST_BYTES for task, _ in self._copies.get(server, {}).values())

    def take(self, server: int, now: float) -> Tasks:
        """What was not given yet, or for too long."""
        with self._lock:
            deletes = self._deletes.get(server, {})
            due = [
                chunk for chunk, given in deletes.items() if given == NOT_GIVEN or now - given >= TASK_SECONDS
            ]
            due = due[:DELETES_MAX]
            deletes.update(dict.fromkeys(due, now))
            copies = self._copies.get(server, {})
            fresh = [task for task, given in copies.values() if given == NOT_GIVEN]
            copies.update({task.chunk: (task, now) for task in fresh})
            return Tasks(due, fresh)

    def done(self, server: int, ids: Iterable[bytes]) -> None:
        """The server reported these, whatever it had to do with them."""
        with self._lock:
            for chunk in ids:
                self._deletes.get(server, {}).pop(chunk, None)
                self._forget_copy(server, chunk)

    def expire(self, now: float, keep: set[int]) -> None:
        """Forgets copies that took too long, and all tasks of servers that are not in ``keep``."""
        with self._lock:
            for server, copies in list(self._copies.items()):
                for chunk, (_, given) in list(copies.items()):
                    if server not in keep or now - given >= TASK_SECONDS:
                        self._forget_copy(server, chunk)
            for server in self._deletes.keys() - keep:
                del self._deletes[server]

    def forget_server(self, server: int) -> None:
        """The server has started anew and knows nothing of its tasks."""
        with self._lock:
            self._deletes.pop(server, None)
            for chunk in list(self._copies.get(server, {})):
                self._forget_copy(server, chunk)

    def _forget_copy(self, server: int, chunk: bytes) -> None:
        """With the lock held."""
        if self._copies.get(server, {}).pop(chunk, None) is not None:
            self._copied.discard(chunk)
