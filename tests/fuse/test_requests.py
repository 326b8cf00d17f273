"""What is asked over /dev/fuse and how it is answered, also where no kernel would ask so."""

import errno
import logging
import os
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mount.bindings.native import protocol
from mount.bindings.native.operations import Operations
from mount.bindings.native.protocol import Fattr, Fopen, Opcode
from mount.bindings.native.requests import Request
from mount.nodes import Handle
from tests.support.kernel import ENTRY_BYTES, Kernel
from wire.messages.directory import ROOT_INO


def test_a_file_from_its_making_to_its_end(kernel: Kernel) -> None:
    ino, number = kernel.create(b"file")
    write = protocol.WRITE_IN.pack(number, 0, 5, 0, 0, 0o2, 0)
    assert kernel.ask(Opcode.WRITE, write + b"hello", ino) == (0, protocol.WRITE_OUT.pack(5, 0))
    read = protocol.READ_IN.pack(number, 1, 100, 0, 0, 0, 0)
    assert kernel.ask(Opcode.READ, read, ino) == (0, b"ello")
    assert kernel.ask(Opcode.FLUSH, protocol.FLUSH_IN.pack(number, 0, 0, 0), ino) == (0, b"")
    assert kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino) == (0, b"")
    assert kernel.ask(Opcode.READ, read, ino)[0] == errno.EBADF
    status, answer = kernel.ask(Opcode.LOOKUP, b"file\0")
    attr = protocol.ATTR.read(answer, protocol.ENTRY_OUT.size)
    assert (status, attr.ino, attr.size, stat.S_ISREG(attr.mode)) == (0, ino, 5, True)
    kernel.ask(Opcode.FORGET, protocol.FORGET_IN.pack(2), ino)
    assert kernel.ask(Opcode.UNLINK, b"file\0") == (0, b"")
    assert kernel.ask(Opcode.LOOKUP, b"file\0")[0] == errno.ENOENT


@pytest.mark.parametrize("opcode", [Opcode.CREATE, Opcode.OPEN])
def test_what_cannot_be_opened_keeps_its_content_and_is_not_looked_up(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, opcode: Opcode
) -> None:
    name = b"kept-%d" % opcode
    ino, number = kernel.create(name)
    kernel.ask(Opcode.WRITE, protocol.WRITE_IN.pack(number, 0, 5, 0, 0, 0o2, 0) + b"hello", ino)
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)
    lookups = kernel.the.inodes._records[ino].lookups

    def busy(_: Handle) -> tuple[Fopen, int]:
        raise OSError(errno.EBUSY, "refused")

    with monkeypatch.context() as patched:
        patched.setattr(kernel.the.passthrough, "opened", busy)
        patched.setattr(kernel.the.passthrough, "may_refuse", lambda *_: True)
        flags = os.O_RDWR | os.O_TRUNC | os.O_CREAT
        if opcode == Opcode.CREATE:
            asked = kernel.ask(opcode, protocol.CREATE_IN.pack(flags, 0o644, 0, 0) + name + b"\0")
        else:
            asked = kernel.ask(opcode, protocol.OPEN_IN.pack(flags, 0), ino)
        assert asked[0] == errno.EBUSY
    record = kernel.the.inodes._records[ino]
    assert (record.lookups, record.open) == (lookups, 0)
    assert kernel.the.vfs.getattr(ino, None).size == 5
    assert not kernel.the.vfs.handles()


def test_a_file_that_was_made_meanwhile_is_opened_and_truncated(kernel: Kernel) -> None:
    ino, number = kernel.create(b"made")
    kernel.ask(Opcode.WRITE, protocol.WRITE_IN.pack(number, 0, 5, 0, 0, 0o2, 0) + b"hello", ino)
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)
    body = protocol.CREATE_IN.pack(os.O_RDWR | os.O_TRUNC | os.O_CREAT, 0o644, 0, 0) + b"made\0"
    status, answer = kernel.ask(Opcode.CREATE, body)
    attr = protocol.ATTR.read(answer, protocol.ENTRY_OUT.size)
    assert (status, attr.ino, attr.size) == (0, ino, 0)
    number = protocol.OPEN_OUT.read(answer, ENTRY_BYTES).fh
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)


def test_a_file_that_is_made_without_a_name_gets_one(kernel: Kernel) -> None:
    body = protocol.CREATE_IN.pack(os.O_TMPFILE | os.O_RDWR, 0o100666, 0o022, 0) + b"/\0"
    status, answer = kernel.ask(Opcode.TMPFILE, body)
    attr = protocol.ATTR.read(answer, protocol.ENTRY_OUT.size)
    number = protocol.OPEN_OUT.read(answer, ENTRY_BYTES).fh
    assert (status, attr.mode, attr.nlink) == (0, 0o100644, 0)
    ino = protocol.ENTRY_OUT.read(answer).nodeid
    kernel.ask(Opcode.WRITE, protocol.WRITE_IN.pack(number, 0, 5, 0, 0, 0o2, 0) + b"hello", ino)
    status, answer = kernel.ask(Opcode.LINK, protocol.LINK_IN.pack(ino) + b"linked\0")
    attr = protocol.ATTR.read(answer, protocol.ENTRY_OUT.size)
    assert (status, attr.ino, attr.nlink, attr.size) == (0, ino, 1, 5)
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)
    assert kernel.the.inodes._records[ino].lookups == 2, "each answer counts as one"
    assert kernel.the.inodes.path(ino) == (1, [b"linked"])


def test_who_opens_a_file_while_its_last_reader_closes_it_keeps_its_pages(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino, number = kernel.create(b"read")
    kernel.ask(Opcode.WRITE, protocol.WRITE_IN.pack(number, 0, 5, 0, 0, 0o2, 0) + b"hello", ino)
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)
    vfs, inodes = kernel.the.vfs, kernel.the.inodes
    first = vfs.open(ino, os.O_RDONLY, None)
    inodes.opened(first.node, lambda *_: True)
    opened: list[Handle] = []
    kept: list[bool] = []
    real = vfs.release

    def release(number: int) -> None:
        real(number)
        if not opened:
            opened.append(vfs.open(ino, os.O_RDONLY, None))
            kept.append(inodes.opened(opened[0].node, lambda *_: False))

    monkeypatch.setattr(vfs, "release", release)
    kernel.the.release(first)
    assert opened[0].node is not first.node
    assert kept == [True]
    kernel.the.release(opened[0])
    assert inodes._records[ino].open == 0


def test_the_length_of_an_extended_attribute_is_asked_for_first(kernel: Kernel) -> None:
    ino, number = kernel.create(b"noted")
    value = b"a value"
    body = protocol.SETXATTR_IN.pack(len(value), 0) + b"user.note\0" + value
    assert kernel.ask(Opcode.SETXATTR, body, ino) == (0, b"")

    def get(size: int) -> tuple[int, bytes]:
        return kernel.ask(Opcode.GETXATTR, protocol.GETXATTR_IN.pack(size, 0) + b"user.note\0", ino)

    assert get(0) == (0, protocol.GETXATTR_OUT.pack(7, 0))
    assert get(7) == (0, value)
    assert get(6) == (errno.ERANGE, b"")
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)


def test_offsets_and_times_beyond_what_there_is(kernel: Kernel) -> None:
    ino, number = kernel.create(b"far")
    read = protocol.READ_IN.pack(number, 2**64 - 1, 100, 0, 0, 0, 0)
    assert kernel.ask(Opcode.READ, read, ino)[0] == errno.EINVAL
    fields = protocol.SETATTR_IN.kind(*[0] * 16)._replace(valid=Fattr.MTIME, mtime=10**12)
    status, answer = kernel.ask(Opcode.SETATTR, protocol.SETATTR_IN.pack(*fields), ino)
    attr = protocol.ATTR.read(answer, protocol.ATTR_OUT.size)
    assert (status, attr.mtime, attr.mtimensec) == (0, *divmod(2**63 - 1, 10**9))
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)


def test_times_before_1970(kernel: Kernel) -> None:
    ino, number = kernel.create(b"old")
    before = 2**64 - 5
    fields = protocol.SETATTR_IN.kind(*[0] * 16)._replace(valid=Fattr.MTIME, mtime=before, mtimensec=7)
    status, answer = kernel.ask(Opcode.SETATTR, protocol.SETATTR_IN.pack(*fields), ino)
    attr = protocol.ATTR.read(answer, protocol.ATTR_OUT.size)
    assert (status, attr.mtime, attr.mtimensec) == (0, before, 7)
    _, answer = kernel.ask(Opcode.STATX, protocol.STATX_IN.pack(0, 0, 0, 0, 0), ino)
    assert (protocol.STATX_OUT.read(answer).mtime, protocol.STATX_OUT.read(answer).mtimensec) == (-5, 7)
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)


def test_what_is_not_known_is_said_so(kernel: Kernel) -> None:
    assert kernel.ask(999) == (errno.ENOSYS, b"")
    assert kernel.ask(Opcode.IOCTL) == (errno.ENOTTY, b"")


def test_a_request_that_is_no_request_is_not_the_end(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL):
        assert kernel.ask(Opcode.LOOKUP, b"no end") == (errno.EINVAL, b"")
        assert kernel.ask(Opcode.SETATTR, b"short") == (errno.EINVAL, b"")
        kernel.ask(Opcode.BATCH_FORGET, protocol.BATCH_FORGET_IN.pack(2**32 - 1, 0))
        assert kernel.ask(Opcode.STATFS)[0] == 0


WORDS = st.one_of(st.sampled_from([0, 1, 2, 3, 4096, 2**31, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))
BODIES = st.tuples(
    st.lists(WORDS, max_size=12).map(lambda words: b"".join(word.to_bytes(8, "little") for word in words)),
    st.sampled_from([b"", b"\0", b"noted\0", b"other\0", b"a/b\0", b"x\0y\0", b"." * 300 + b"\0"]),
    st.binary(max_size=40),
).map(b"".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(Opcode), st.one_of(st.integers(0, 5), WORDS), BODIES)
def test_whatever_comes_is_answered(
    kernel: Kernel, caplog: pytest.LogCaptureFixture, opcode: Opcode, nodeid: int, body: bytes
) -> None:
    caplog.clear()
    status, _ = kernel.ask(opcode, body, nodeid)
    assert status in errno.errorcode or status == 0
    unforeseen = [record.getMessage() for record in caplog.records if record.exc_info]
    assert not unforeseen, unforeseen
    caplog.clear()


def test_what_the_kernel_forgets_is_not_kept(kernel: Kernel) -> None:
    inos = []
    for number in range(3):
        _, answer = kernel.ask(Opcode.SYMLINK, b"link-%d\0there\0" % number)
        inos.append(protocol.ENTRY_OUT.read(answer).nodeid)
        kernel.ask(Opcode.READLINK, nodeid=inos[-1])
    known, cache = len(kernel.the.inodes), kernel.the.vfs._names._cache
    cache._kept = 0
    assert None not in [cache.get_target(ino) for ino in inos]
    several = b"".join(protocol.FORGET_ONE.pack(ino, 1) for ino in inos[1:])
    for opcode, body in (
        (Opcode.FORGET, protocol.FORGET_IN.pack(1)),
        (Opcode.BATCH_FORGET, protocol.BATCH_FORGET_IN.pack(2, 0) + several),
    ):  # not through the socket: they are not answered, so nothing says when they are carried out
        asked = Request(opcode, 2, inos[0], 0, 0, 0, memoryview(body), memoryview(b""))
        Operations(kernel.the).answer(asked)
    assert len(kernel.the.inodes) == known - 3
    assert [cache.get_target(ino) for ino in inos] == [None] * 3
    assert [cache.get_entry(ROOT_INO, b"link-%d" % number) for number in range(3)] == [None] * 3
