"""ACLs as programs set them, random ones, and a local disk to compare with."""

import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
from hypothesis import strategies as st

from wire.acl import GROUP, GROUP_OBJ, MASK, NOBODY, OTHER, USER, USER_OBJ

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"

Entry = tuple[int, int, int]

NUMBERS = (10001, 10002, 10003)
"""Few, so that they meet: of users and of groups."""


def acl(*entries: Entry, version: int = 2) -> bytes:
    """The value of an attribute, entry by entry: tag, permissions, number."""
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def extended(
    mode: int,
    *,
    users: Sequence[tuple[int, int]] = (),
    groups: Sequence[tuple[int, int]] = (),
    group: int = 0,
) -> bytes:
    """A whole one: ``mode`` gives owner, mask and others, ``group`` is for the owning group, ``users`` and
    ``groups`` are numbers with their permissions."""
    return acl(
        (USER_OBJ, mode >> 6 & 7, NOBODY),
        *((USER, permissions, number) for number, permissions in users),
        (GROUP_OBJ, group, NOBODY),
        *((GROUP, permissions, number) for number, permissions in groups),
        (MASK, mode >> 3 & 7, NOBODY),
        (OTHER, mode & 7, NOBODY),
    )


_PERMISSIONS = st.integers(0, 7)


def whole_acls(users: Sequence[int] = NUMBERS, groups: Sequence[int] = NUMBERS) -> st.SearchStrategy[bytes]:
    """Those that may be set, minimal ones included."""
    minimal = st.builds(
        lambda owner, group, other: acl(
            (USER_OBJ, owner, NOBODY), (GROUP_OBJ, group, NOBODY), (OTHER, other, NOBODY)
        ),
        *[_PERMISSIONS] * 3,
    )
    more = st.builds(
        lambda mode, users, groups, group: extended(mode, users=users, groups=groups, group=group),
        *[st.integers(0, 0o777), _named(users), _named(groups), _PERMISSIONS],
    )
    return minimal | more


def _named(numbers: Sequence[int]) -> st.SearchStrategy[list[tuple[int, int]]]:
    return st.lists(st.tuples(st.sampled_from(numbers), _PERMISSIONS), max_size=3)


def any_values() -> st.SearchStrategy[bytes]:
    """What may be an ACL, or nearly, or not at all."""
    tags = st.sampled_from([USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER, 0, 3, 64])
    entries = st.tuples(tags, st.integers(0, 9), st.sampled_from([*NUMBERS, NOBODY]))
    mixed = st.builds(
        lambda some, version: acl(*some, version=version), st.lists(entries, max_size=6), st.integers(1, 3)
    )
    ordered = st.lists(entries, max_size=8).map(lambda some: acl(*sorted(some)))
    cut = st.builds(lambda value, length: value[:length], whole_acls(), st.integers(0, 50))
    return whole_acls() | mixed | ordered | cut


@contextmanager
def local_disk() -> Iterator[Path]:
    """A folder that all users may enter, of a file system with ACLs; the test is skipped if there is none."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        try:
            os.setxattr(folder, ACCESS, extended(0o755, group=5))
            os.removexattr(folder, ACCESS)
        except OSError:
            pytest.skip(f"{folder} knows no ACLs")
        yield folder


_ASKED = """
import os, sys
uid, gids = int(sys.argv[1]), [int(gid) for gid in sys.argv[2].split(",")]
os.setgroups(gids)
os.setresgid(gids[0], gids[0], gids[0])
os.setresuid(uid, uid, uid)
for line in sys.stdin:
    bits, path = line.rstrip("\\n").split(" ", 1)
    print(int(os.access(path, int(bits))), flush=True)
"""


class Asked:
    """A process of another user, who is asked what he may do; only root can have one."""

    def __init__(self, uid: int, gids: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ASKED, str(uid), ",".join(map(str, gids))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def may(self, path: Path, bits: int) -> bool:
        """access(2)."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{bits} {path}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline() == "1\n"
