"""Sizes and times that both sides keep. The unit is in the name."""

CHUNK_BYTES = 4 * 1024 * 1024
"""Content is cut at multiples of this; only the last chunk before the end or a hole may be shorter."""

NAME_BYTES_MAX = 255
"""NAME_MAX of <linux/limits.h>."""

SYMLINK_BYTES_MAX = 4095
"""PATH_MAX of <linux/limits.h> less the final NUL."""

XATTR_NAME_BYTES_MAX = 255
XATTR_VALUE_BYTES_MAX = 65536
"""XATTR_NAME_MAX and XATTR_SIZE_MAX of <linux/limits.h>."""

ACL_ENTRIES_MAX = 200
"""Attributes carry an ACL: a page of LIST_ENTRIES_MAX entries with the longest ones fits in a body."""

LINK_MAX = 65000
FILE_BYTES_MAX = 2**60

BODY_BYTES_MAX = CHUNK_BYTES + 512 * 1024
"""The largest sealed body of any request or reply."""

HEADER_BYTES_MAX = 4096
"""The largest ticket, seal or request id in a header."""

OPS_MAX = 1024
"""The longest list of mutations, inodes or names in one request."""

LIST_ENTRIES_MAX = 2000
"""The longest page of a listing."""

MANIFEST_CHUNKS_MAX = 8192
"""The longest range of a manifest in one answer, and the most changed chunks in one commit."""

RESOLVED_CHUNKS_MAX = 64
"""The range of the manifest that comes with a path."""

CALLER_GIDS_MAX = 256
"""The groups of a local user that count in a trusted mount, the primary one among them."""

USER_BYTES_MAX = 64
PASSWORD_BYTES_MAX = 1024
CLIENT_BYTES_MAX = 128

TICKET_SECONDS = 3600.0
LOCK_LEASE_SECONDS = 15.0
"""How long a lock is held without a renewal, unless the lock server says otherwise. No client renews more
seldom than this lease asks for, and a lock server keeps what it finds at its start for so long at least."""
LOCK_POLL_SECONDS_MAX = 20.0

RANGES_MAX = 8192
"""Ranges that programs of one session have of one inode."""

LEASE_SECONDS = 10.0
"""How long the directory's promises hold after a session's last poll of its feed."""
FEED_POLL_SECONDS_MAX = 60.0
FEED_MESSAGES_MAX = 10_000
"""Messages that a session has not acknowledged; with more its feed ends."""

HEARTBEAT_SECONDS = 2.0
SUSPECT_SECONDS = 5.0
DEAD_SECONDS = 10.0
