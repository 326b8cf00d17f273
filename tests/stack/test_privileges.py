"""Set-id bits and capabilities: what takes them away, and what must not (as on a local disk)."""

import errno
import os
import stat

import pytest

from mount.bindings.native import protocol
from mount.bindings.native.protocol import Opcode
from mount.vfs import Changes
from tests.support.kernel import Kernel
from tests.support.stack import Client, Stack
from tests.support.vfs import raises
from wire.messages.common import Caller

ROOT, ALICE, BOB = Caller(0, [0]), Caller(10001, [10001]), Caller(10002, [10002])
CAPABILITIES = b"security.capability"


@pytest.fixture
def mount(stack: Stack) -> Client:
    return stack.client(trusted=True)


def make(mount: Client, owner: Caller = ALICE) -> int:
    """``/file``, set-id and writable by everybody; its inode."""
    mount.write("/file", b"content", who=owner)
    mount.set("/file", Changes(mode=0o6777), owner)
    return mount.walk("/file").ino


def mode(mount: Client) -> int:
    return stat.S_IMODE(mount.walk("/file", fresh=True).mode)


def test_root_writes_and_the_bits_stay(mount: Client) -> None:
    make(mount)
    with mount.opened("/file", os.O_RDWR, who=ROOT) as handle:
        mount.vfs.write(handle, 0, b"C")
        assert mode(mount) == 0o6777
    assert mode(mount) == 0o6777
    mount.set("/file", Changes(size=2), ROOT)
    assert mode(mount) == 0o6777


@pytest.mark.parametrize("size", [2, 7, 9])
@pytest.mark.parametrize("who", [ALICE, BOB])
def test_who_may_write_may_cut_and_the_bits_go(mount: Client, who: Caller, size: int) -> None:
    make(mount)
    mount.set("/file", Changes(size=size), who)
    assert (mode(mount), mount.walk("/file").size) == (0o777, size)


def test_bits_that_are_set_after_writing_stay_until_more_is_written(mount: Client) -> None:
    ino = make(mount)
    with mount.opened("/file", os.O_RDWR | os.O_TRUNC, who=ALICE) as handle:
        mount.vfs.write(handle, 0, b"new")
        mount.vfs.setattr(ino, Changes(mode=0o4755), ALICE, handle)
        assert mode(mount) == 0o4755
    assert mode(mount) == 0o4755
    with mount.opened("/other", os.O_CREAT | os.O_RDWR, who=ALICE) as handle:
        mount.vfs.write(handle, 0, b"new")
        ino = mount.vfs.inode_of(handle)
        mount.vfs.setattr(ino, Changes(mode=0o4755), ALICE, handle)
        mount.vfs.write(handle, 0, b"newer")
    assert stat.S_IMODE(mount.walk("/other").mode) == 0o755


def test_a_writer_through_another_users_descriptor_takes_them_away(mount: Client) -> None:
    ino = make(mount, ROOT)
    mount.set("/file", Changes(mode=0o4755), ROOT)
    with raises(errno.EPERM):
        mount.vfs.drop_privileges(ino, BOB, may_be_chown=True)
    with raises(errno.EACCES):
        mount.vfs.drop_privileges(ino, BOB)
    with mount.opened("/file", os.O_WRONLY, who=ROOT):
        dropped = mount.vfs.drop_privileges(ino, BOB, may_be_chown=True)
        assert stat.S_IMODE(dropped.mode) == 0o755
    assert mode(mount) == 0o755


def test_capabilities_go_with_a_write_and_with_the_owner(mount: Client) -> None:
    ino = make(mount)

    def give() -> None:
        mount.vfs.setxattr(ino, CAPABILITIES, b"\1", 0, ROOT)

    for do in (
        lambda: mount.write("/file", b"C", who=ROOT),
        lambda: mount.set("/file", Changes(size=1), BOB),
        lambda: mount.set("/file", Changes(uid=BOB.uid), ROOT),
        lambda: mount.vfs.drop_privileges(ino, BOB),
    ):
        give()
        do()
        assert mount.vfs.listxattr(ino, ROOT) == []
    with mount.opened("/file", os.O_WRONLY, who=ROOT) as handle:
        mount.vfs.write(handle, 0, b"new")
        give()
    assert mount.vfs.listxattr(ino, ROOT) == [CAPABILITIES]


def test_set_group_id_without_execution_stays_for_the_group(mount: Client) -> None:
    make(mount)
    for who, expected in ((ALICE, 0o2606), (BOB, 0o606)):
        mount.set("/file", Changes(mode=0o6606), ALICE)
        mount.write("/file", b"C", who=who)
        assert mode(mount) == expected


def test_the_kernel_says_when_bits_must_go(stack: Stack) -> None:
    """Before a write by a process without CAP_FSETID: an empty SETATTR, or a flag of WRITE."""
    kernel = Kernel(stack)
    ino, number = kernel.create(b"file")

    def set_attr(valid: int) -> int:
        fields = dict.fromkeys(protocol.SetattrIn._fields, 0) | {"valid": valid, "mode": 0o104777}
        status, answer = kernel.ask(Opcode.SETATTR, protocol.SETATTR_IN.pack(*fields.values()), ino)
        assert status == 0
        return stat.S_IMODE(protocol.ATTR.read(answer, protocol.ATTR_OUT.size).mode)

    assert set_attr(protocol.Fattr.MODE) == 0o4777
    assert set_attr(0) == 0o777
    assert set_attr(protocol.Fattr.MODE) == 0o4777
    write = protocol.WRITE_IN.pack(number, 0, 1, protocol.WRITE_KILL_SUIDGID, 0, 0o2, 0) + b"x"
    assert kernel.ask(Opcode.WRITE, write, ino)[0] == 0
    node = kernel.the.vfs.handles()[0].node
    assert stat.S_IMODE(node.attr.mode) == 0o777
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)
    kernel.close()
