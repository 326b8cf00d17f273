"""Operations that are about attributes, and extended ones."""

from typing import Any

from mount.bindings.fusepy.paths import Paths, to_bytes, to_text
from mount.vfs import Changes
from wire.messages.directory import Attr
from wire.permissions import SET_IDS

BLOCK_BYTES = 4096


class Attributes(Paths):
    """As mfusepy calls them; and what the bridge wants to be set."""

    def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
        """stat(2)."""
        return self._stat(self._attr(path) if fh is None else self.vfs.handle_attr(fh.fh))

    def _stat(self, attr: Attr) -> dict[str, int]:
        return {
            "st_ino": attr.ino,
            "st_mode": attr.mode,
            "st_nlink": attr.nlink,
            "st_uid": self._owners.uid(attr.uid),
            "st_gid": self._owners.gid(attr.gid),
            "st_rdev": attr.rdev,
            "st_size": attr.size,
            "st_blocks": -(-attr.stored_bytes // 512),
            "st_blksize": BLOCK_BYTES,
            "st_atime": attr.atime,
            "st_mtime": attr.mtime,
            "st_ctime": attr.ctime,
        }

    def access(self, path: str, amode: int) -> int:
        """access(2) and chdir(2)."""
        self.vfs.access(self._attr(path).ino, amode, self._who())
        return 0

    def set_at(self, path: str, changes: Changes) -> None:
        """Sets what ``changes`` names."""
        self._set(self._target(path), changes)

    def set_through(self, number: int, changes: Changes) -> None:
        """As ``set_at``, of an open file."""
        self._set(self.vfs.inode_of(number), changes, number)

    def _set(self, ino: int, changes: Changes, number: int | None = None) -> None:
        who = self._who()
        try:
            self.vfs.setattr(ino, changes, who, number)
        except PermissionError:
            # Before a write the kernel takes set-id bits away by a chmod in the writer's name, whoever he is.
            mode = self.vfs.getattr(ino, who).mode
            asked = mode if changes.mode is None else changes.mode
            if asked == mode or asked & ~SET_IDS != mode & ~SET_IDS or asked & ~mode:
                raise
            self.vfs.drop_privileges(ino, who)

    def changed_owner(self, uid: int, gid: int) -> Changes:
        """chown(2): -1 leaves it as it is."""
        owner = None if uid == -1 else self._owners.uid(uid)
        group = None if gid == -1 else self._owners.gid(gid)
        return Changes(uid=owner, gid=group)

    def statfs(self, path: str) -> dict[str, int]:
        """statfs(2)."""
        space = self.vfs.statfs()
        return {
            "f_bsize": BLOCK_BYTES,
            "f_frsize": BLOCK_BYTES,
            "f_blocks": space.total_bytes // BLOCK_BYTES,
            "f_bfree": space.free_bytes // BLOCK_BYTES,
            "f_bavail": space.free_bytes // BLOCK_BYTES,
            "f_files": 2**32,
            "f_ffree": 2**32 - space.inodes,
            "f_favail": 2**32 - space.inodes,
            "f_namemax": 255,
        }

    # Extended attributes

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """getxattr(2)."""
        value = self.vfs.getxattr(self._attr(path).ino, to_bytes(name), self._who())
        return self._owners.xattr(to_bytes(name), value)

    def listxattr(self, path: str) -> list[str]:
        """listxattr(2)."""
        return [to_text(name) for name in self.vfs.listxattr(self._attr(path).ino, self._who())]

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        """setxattr(2)."""
        value = self._owners.xattr(to_bytes(name), value)
        self.vfs.setxattr(self._target(path), to_bytes(name), value, options, self._who())
        return 0

    def removexattr(self, path: str, name: str) -> int:
        """removexattr(2)."""
        self.vfs.removexattr(self._target(path), to_bytes(name), self._who())
        return 0
