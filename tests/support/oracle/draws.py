"""What is drawn: few names, users and numbers, so that they meet."""

import os

from hypothesis import strategies as st

from tests.support.acls import whole_acls
from tests.support.syscalls import UTIME_NOW, UTIME_OMIT
from wire.limits import CHUNK_BYTES

FOLDERS = ("", "d/", "d/e/")
NAMES = ("a", "b", "d", "e", "l")
TARGETS = ("a", "d", "e", "d/b", "../b", "l", "d/e/../a", "none/b", "x" * 255, "y/" * 2047 + "y")
USERS = ((0, (0,)), (0, (0,)), (0, (0,)), (40001, (40001, 40010)), (40002, (40002,)))

mounts = st.integers(0, 1)
users = st.integers(0, len(USERS) - 1)
paths = st.tuples(st.sampled_from(FOLDERS), st.sampled_from(NAMES)).map("".join)
offsets = st.sampled_from(
    [0, 0, 1, 100, 4096, 5000, 70_000, CHUNK_BYTES - 3, CHUNK_BYTES, 2 * CHUNK_BYTES - 1]
)
lengths = st.sampled_from([0, 1, 30, 4096, 6000, 70_000, CHUNK_BYTES + 5])
modes = st.sampled_from([0o644, 0o600, 0o666, 0o755, 0o777, 0o444, 0o1777, 0o000])
picks = st.integers(0, 30)
seeds = st.integers(0, 255)
ids = st.sampled_from([-1, 0, 40001, 40002, 40010])
names_of_xattrs = st.sampled_from(["user.a", "user.b", "trusted.t", "security.s", "other.o", "plain"])
acls = whole_acls((40001, 40002), (40002, 40010))
values = st.sampled_from([b"", b"v", b"value " * 20])
moments = st.sampled_from(
    [(0, 0), (1, 7), (2**31 + 5, 999_999_999), (-5, 3), (9, UTIME_NOW), (9, UTIME_OMIT)]
)
accesses = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR])
creates = st.sampled_from([0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL])
others = st.sampled_from(
    [
        0,
        0,
        0,
        os.O_TRUNC,
        os.O_APPEND,
        os.O_APPEND | os.O_TRUNC,
        os.O_NOFOLLOW,
        os.O_DIRECTORY,
        os.O_SYNC,
        os.O_DSYNC | os.O_TRUNC,
        os.O_PATH,
        os.O_NOATIME,
    ]
)


def content(length: int, seed: int) -> bytes:
    """So many bytes; of an even seed zeros, of others never the same."""
    return (
        bytes(length)
        if seed % 8 == 0
        else (bytes((seed + i) % 251 for i in range(251)) * (length // 251 + 1))[:length]
    )
