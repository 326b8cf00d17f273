"""What the tests of handles that rest have in common: files, opened and closed by the kernel's word."""

import os

from mount.bindings.native import protocol
from mount.bindings.native.files import KEEP_CACHE, NOFLUSH
from mount.bindings.native.protocol import Opcode
from mount.nodes import Node
from tests.support.kernel import Kernel

READ = 0o100000
"""How the kernel passes on O_RDONLY."""

NAME = b"file"


def make(kernel: Kernel, name: bytes, data: bytes) -> int:
    """A file in the root; its inode."""
    ino, number = kernel.create(name)
    head = protocol.WRITE_IN.pack(number, 0, len(data), 0, 0, 0, 0)
    assert kernel.ask(Opcode.WRITE, head + data, ino)[0] == 0
    assert kernel.ask(Opcode.FLUSH, protocol.FLUSH_IN.pack(number, 0, 0, 0), ino)[0] == 0
    shut(kernel, ino, number)
    return ino


def opened(kernel: Kernel, ino: int, flags: int = READ) -> int:
    """open(2): the handle."""
    status, answer = kernel.ask(Opcode.OPEN, protocol.OPEN_IN.pack(flags, 0), ino)
    assert status == 0, os.strerror(status)
    found = protocol.OPEN_OUT.read(answer)
    if flags == READ:
        assert found.open_flags == KEEP_CACHE | NOFLUSH
    return found.fh


def shut(kernel: Kernel, ino: int, number: int) -> None:
    """The last close(2) of an open file."""
    assert kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)[0] == 0


def content(kernel: Kernel, ino: int, number: int) -> bytes:
    """pread(2) of all."""
    status, answer = kernel.ask(Opcode.READ, protocol.READ_IN.pack(number, 0, 4096, 0, 0, 0, 0), ino)
    assert status == 0, os.strerror(status)
    return answer


def laid(kernel: Kernel, ino: int) -> int:
    """Opened, and closed, until it rests: the handle. The directory may have to be asked first."""
    for _ in range(3):
        number = opened(kernel, ino)
        shut(kernel, ino, number)
        if rests(kernel, ino):
            return number
    raise AssertionError("it does not rest")


def rests(kernel: Kernel, ino: int) -> bool:
    """Whether a handle of the inode does."""
    return kernel.the.vfs.resting.peek(ino) is not None


def noted(kernel: Kernel) -> dict[int, int]:
    """What the next worker would find open: handles, and by which calls they were opened."""
    return {file.number: file.opened_by for _, file in kernel.the.vfs.slate.handles.items()}


def node(kernel: Kernel, ino: int) -> Node | None:
    """What is open in this process."""
    return kernel.the.vfs._table.peek(ino)
