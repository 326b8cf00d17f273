"""Whatever programs do on two mounts in turn, a local directory does the same: a state machine that compares.

Every operation is done through one of two mounts and to a directory of a local file system. Results, errnos,
bytes and attributes must be the same (tests/support/twins.py says which). The rule of the two mounts: what
one has open for writing is left to it, elsewhere the last committed version is seen and a second writer
waits. All else is done through either at any time, by root or by another user.

What is known to differ, and left out: see docs/semantics.md, "Differences".

As a command: ``python -m tests.support.oracle --examples 1000 --steps 100 --seed 1``.
"""

import os
import stat
import sys
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import initialize

from tests.support.acls import DEFAULT
from tests.support.oracle.acls import Acls
from tests.support.oracle.attributes import Attributes
from tests.support.oracle.content import Content
from tests.support.oracle.draws import FOLDERS, TARGETS, acls, modes
from tests.support.oracle.locks import Locks
from tests.support.oracle.maps import Maps
from tests.support.oracle.names import Names
from tests.support.oracle.sides import listing


class Machine(Names, Attributes, Acls, Content, Maps, Locks):
    """All of it. ``world`` is set before the first run."""

    @initialize(
        umask=st.sampled_from([0, 0o022, 0o077]),
        mode=modes,
        defaults=st.dictionaries(st.sampled_from(FOLDERS), acls, max_size=1),
        is_alone=st.booleans(),
    )
    def begin(self, umask: int, mode: int, defaults: dict[str, bytes], is_alone: bool) -> None:
        """There is something to begin with, or else most calls find nothing."""
        self.is_alone = is_alone
        self.umask = os.umask(umask)
        for place in ("d", "d/e"):
            self.mkdir(0, 0, place, mode | 0o700)
        for place, acl in defaults.items():
            self.set_acl(0, 0, place, DEFAULT, acl)
        for place in ("a", "d/b", "d/e/a"):
            self.open(0, 0, place, os.O_RDWR, os.O_CREAT, 0, mode)
        self.symlink(0, 0, "l", TARGETS.index("d/b"))

    def teardown(self) -> None:
        os.umask(self.umask)
        while self.opened:
            self._close(self.opened[-1])
        if sys.exc_info()[0] is None:  # a difference has been found, and is to be told
            for mount in (0, 1):
                self.compare(mount, "")

    def compare(self, mount: int, place: str) -> None:
        """Everything below ``place``; nothing is open."""
        self._do(mount, 0, [place], lambda root: listing(root + place))
        for name in os.listdir(self.here + place):
            below = place + name
            kind = stat.S_IFMT(os.lstat(self.here + below).st_mode)
            self._do(mount, 0, [below], _at(below, _xattrs))
            if kind == stat.S_IFDIR:
                self.compare(mount, below + "/")
            elif kind == stat.S_IFLNK:
                self._do(mount, 0, [below], _at(below, os.readlink))
            elif kind == stat.S_IFREG:
                self._do(mount, 0, [below], _at(below, _bytes))


def _at(place: str, run: Callable[[str], object]) -> Callable[[str], object]:
    """``run`` at a place below the root of a side."""
    return lambda root: run(root + place)


def _xattrs(place: str) -> dict[str, bytes]:
    names = os.listxattr(place, follow_symlinks=False)
    return {name: os.getxattr(place, name, follow_symlinks=False) for name in names}


def _bytes(place: str) -> bytes:
    with open(place, "rb") as file:
        return file.read()
