"""What programs have set of an inode, and the directory does not know yet."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PendingAttrs:
    """What was set explicitly while the content is dirty, and goes with the commit."""

    mode: int | None = None
    atime: int | None = None
    mtime: int | None = None

    def __bool__(self) -> bool:
        return (self.mode, self.atime, self.mtime) != (None, None, None)

    def overruled(self, newer: "PendingAttrs") -> "PendingAttrs":
        """These, but for what ``newer`` sets."""
        return PendingAttrs(
            self.mode if newer.mode is None else newer.mode,
            self.atime if newer.atime is None else newer.atime,
            self.mtime if newer.mtime is None else newer.mtime,
        )


NOTHING_PENDING = PendingAttrs()
"""One for all: to make it costs more than to look at it."""
