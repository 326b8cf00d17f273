"""The messages of one session: of which inodes nothing is promised any more. No rules of who is told."""

from collections import deque
from collections.abc import Callable

from servers.directory.waiting import Awaited
from wire.messages.directory import Told


class Feed(Awaited):
    """The messages for one session, and the slot (bit) of its promises."""

    def __init__(self, session: int, expires: float, slot: int) -> None:
        super().__init__(session, expires)
        self.slot = slot
        self.bit = 1 << slot
        self.number = 0
        self.last = 0  # of the last message
        self.messages: deque[tuple[int, float]] = deque()  # inode, and when; not acknowledged
        self.latest: dict[int, int] = {}  # the number of the last of these about an inode
        self.wake: Callable[[], None] | None = None

    def queue(self, ino: int, now: float) -> None:
        """One more message."""
        self.last += 1
        self.latest[ino] = self.last
        self.messages.append((ino, now))

    def acknowledge(self, seen: int) -> None:
        """The messages up to ``seen`` were carried out."""
        while self.messages and self.last - len(self.messages) < seen:
            number = self.last - len(self.messages) + 1
            ino, _ = self.messages.popleft()
            if self.latest[ino] == number:
                del self.latest[ino]
        self.release(seen)

    def told(self, lease_seconds: float, is_new: bool) -> Told:
        """All that is not acknowledged."""
        return Told(self.number, lease_seconds, is_new, self.last, [ino for ino, _ in self.messages])

    def rouse(self) -> None:
        """Whoever holds a poll back looks again."""
        if self.wake is not None:
            self.wake()
            self.wake = None
