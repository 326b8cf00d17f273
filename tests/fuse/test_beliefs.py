"""What the kernel is told to believe under a lease, and how that is taken back."""

import time
from pathlib import Path

import pytest

from mount.bindings.native import answers, context, protocol
from mount.bindings.native.beliefs import NAME_SECONDS_MAX, Beliefs
from mount.bindings.native.inodes import Inodes
from mount.bindings.native.listings import Listings
from mount.bindings.native.notifications import Notifications
from mount.bindings.native.protocol import Notify, Opcode
from mount.owners import Owners
from tests.support import kernel
from tests.support.stack import Stack
from tests.support.times import Clock, wait_until
from wire.limits import LEASE_SECONDS
from wire.messages.directory import Attr

MOUNTS = b"""\
20 1 0:20 / / rw - ext4 /dev/root rw
30 20 0:30 / /mnt rw - fuse.dfs dfs rw
"""
ABOVE = b"31 30 0:31 / /mnt/sub rw - tmpfs none rw\n"


class Kernel(Notifications):
    """What it was told, in order."""

    def __init__(self, does: bool = True) -> None:
        super().__init__(-1)
        self.told: list[int | str] = []
        self._does = does

    def drop_attributes(self, ino: int) -> bool:
        self.told.append(ino)
        return True

    def drop(self, ino: int, offset: int, wait_seconds: float = 0.0) -> bool:
        self.told.append(ino)
        return self._does

    def next_epoch(self) -> None:
        self.told.append("epoch")


def beliefs(kernel: Kernel, tmp_path: Path, mounts: bytes, listings: Listings | None = None) -> Beliefs:
    (tmp_path / "mounts").write_bytes(mounts)
    return Beliefs(
        kernel,
        Inodes(),
        listings or Listings(),
        Path("/mnt"),
        names_may_go=True,
        mounts=tmp_path / "mounts",
    )


def test_names_that_an_earlier_worker_has_told_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    kernel = Kernel()
    assert beliefs(kernel, tmp_path, MOUNTS + ABOVE).revoke_all()
    assert kernel.told == []
    assert len(waited) == 1 and NAME_SECONDS_MAX / 2 < waited[0] <= NAME_SECONDS_MAX


def test_names_go_once(tmp_path: Path) -> None:
    kernel = Kernel()
    one = beliefs(kernel, tmp_path, MOUNTS)
    assert one.revoke_all()
    one.revoke([7])
    assert kernel.told == ["epoch", 7]
    assert one.tell_name(7, lambda: 5.0) == 5.0
    one.revoke([7])
    assert kernel.told == ["epoch", 7, 7, "epoch"]


def test_a_listing_that_cannot_be_dropped_is_no_success(tmp_path: Path) -> None:
    listings = Listings()
    listings.opened(7, 1)
    with pytest.raises(OSError, match="listing"):
        beliefs(Kernel(does=False), tmp_path, MOUNTS, listings).revoke([7])


def test_attributes_that_come_with_another_name_are_not_believed(tmp_path: Path) -> None:
    """The kernel takes them even if it was told meanwhile to forget the inode."""
    with Stack(tmp_path) as stack:
        mount = kernel.Kernel(stack, promised=True)
        try:
            ino, _ = mount.create(b"file")
            _, found = mount.ask(Opcode.LOOKUP, b"file\0")
            _, linked = mount.ask(Opcode.LINK, protocol.LINK_IN.pack(ino) + b"other\0")
        finally:
            mount.close()
        assert protocol.ENTRY_OUT.read(found).attr_valid > 0
        told = protocol.ENTRY_OUT.read(linked)
        assert (told.nodeid, told.attr_valid, told.attr_valid_nsec) == (ino, 0, 0)


@pytest.mark.parametrize(
    "opcode, body", [(Opcode.GETATTR, protocol.GETATTR_IN.pack(0, 0, 0)), (Opcode.LOOKUP, b"d\0")]
)
def test_an_answer_that_was_written_late_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opcode: Opcode, body: bytes
) -> None:
    """The process was stopped after it had looked for how long it may be believed. The kernel counts anew."""
    clock = Clock()

    def stopped(of: Attr, owners: Owners) -> bytes:
        clock.now += LEASE_SECONDS / 10
        return attr(of, owners)

    attr = answers.attr
    monkeypatch.setattr(context, "now_awake_or_not", lambda: clock.now)
    with Stack(tmp_path) as stack:
        mount = kernel.Kernel(stack, promised=True)
        try:
            _, made = mount.ask(Opcode.MKDIR, protocol.MKDIR_IN.pack(0o755, 0) + b"d\0")
            ino = protocol.ENTRY_OUT.read(made).nodeid
            # Who has answered looks at the clock too, and it must not be a later one.
            wait_until(lambda: mount.loop._idle == mount.loop._threads)
            monkeypatch.setattr(answers, "attr", stopped)
            assert mount.ask(opcode, body, 1 if opcode == Opcode.LOOKUP else ino)[0] == 0
            inos = [1, ino] if opcode == Opcode.LOOKUP else [ino]
            for expected in inos:
                what, of = mount.notified()
                assert (what, protocol.INVAL_INODE_OUT.read(of).ino) == (Notify.INVAL_INODE, expected)
        finally:
            mount.close()
