"""What may stand as a name in a directory, and as a user's name."""

import errno
import re

from wire.errors import fail
from wire.limits import NAME_BYTES_MAX, USER_BYTES_MAX

_USER = re.compile(r"[a-z_][a-z0-9_.-]*")


def check_name(name: bytes) -> None:
    """Raises ENAMETOOLONG, or EINVAL for what can never name an entry (POSIX, Base Definitions 3.170)."""
    if len(name) > NAME_BYTES_MAX:
        raise fail(errno.ENAMETOOLONG, f"a name has at most {NAME_BYTES_MAX} bytes")
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise fail(errno.EINVAL, f"{name!r} cannot name an entry")


def check_user_name(user: str) -> None:
    """Raises EINVAL unless ``user`` looks like a portable user name."""
    if not _USER.fullmatch(user) or len(user) > USER_BYTES_MAX:
        raise fail(
            errno.EINVAL,
            "a user name has 1 to 64 of a-z, 0-9, '_', '-', '.', and begins with a letter or '_'",
        )


def conflict_name(name: bytes, user: str, host: str, time_text: str) -> bytes:
    """The name of a conflict copy beside ``name``, cut to fit the limit of a name."""
    suffix = f" (conflict {user}@{host} {time_text})".encode()
    return name[: NAME_BYTES_MAX - len(suffix)] + suffix
