"""Which directories an identity may enter: remembered, because every call asks it.

To enter a directory is to have SEARCH on it and on every one above it, up to the root. Answers are
dropped when a directory's mode, owner or place changes. Two races are excluded:

- A reader that began before the change must not put its answer in afterwards: it names the generation
  that it began with, and an answer of an older generation is not kept.
- The writer sees changes that are not committed, and may still be rolled back. From such a change until
  its request has its outcome (``settle``), the writer neither uses nor keeps answers.

An answer from before a change may be used until that change is acknowledged, never after.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from servers.directory.store import Inode
from wire.messages.directory import ROOT_INO
from wire.permissions import SEARCH, Identity, may

ANSWERS_MAX = 100_000


class Access:
    """The remembered answers. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[tuple[int, Identity], bool] = {}
        self._generation = 0
        self._unsettled = 0

    @property
    def generation(self) -> int:
        """For a reader, asked before its first look at the database."""
        return self._generation

    @property
    def writers_generation(self) -> int | None:
        """For the writer: None while it must not rely on answers."""
        with self._lock:
            return None if self._unsettled else self._generation

    def may_enter(
        self, ino: int, who: Identity, generation: int | None, chain: Callable[[], Sequence[Inode]]
    ) -> bool:
        """Whether ``who`` may enter the directory; ``chain`` loads it and all above it."""
        if generation is not None and (known := self._answers.get((ino, who))) is not None:
            return known
        way = chain()
        if not way:
            return False
        answer = way[-1].ino == ROOT_INO and all(
            directory.nlink > 0 and may(who, directory, SEARCH) for directory in way
        )
        with self._lock:
            if generation == self._generation:
                if len(self._answers) >= ANSWERS_MAX:
                    self._answers.clear()
                self._answers[ino, who] = answer
        return answer

    @contextmanager
    def changing(self) -> Iterator["Change"]:
        """Around a request that may change directories; afterwards its outcome is known."""
        change = Change(self)
        try:
            yield change
        finally:
            if change.begun:
                self._settle()

    def _begin(self) -> None:
        with self._lock:
            self._unsettled += 1

    def _settle(self) -> None:
        with self._lock:
            self._unsettled -= 1
            self._generation += 1
            self._answers.clear()


class Change:
    """One request's change of who may enter what."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self.begun = False

    def begin(self) -> None:
        """Called by the writer before the change; a second time it does nothing."""
        if not self.begun:
            self.begun = True
            self._access._begin()
