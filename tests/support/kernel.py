"""The other end of a mount: what the kernel says over /dev/fuse, said by a test over a socket."""

import select
import socket
from pathlib import Path

from mount.bindings.native import protocol
from mount.bindings.native.context import Context
from mount.bindings.native.loop import Loop
from mount.bindings.native.operations import Operations
from mount.bindings.native.protocol import Opcode
from mount.owners import Owners
from tests.support.stack import Client, Stack

ENTRY_BYTES = protocol.ENTRY_OUT.size + protocol.ATTR.size
"""struct fuse_entry_out."""


def request(opcode: int, body: bytes, unique: int = 1, nodeid: int = 1, uid: int = 0) -> bytes:
    """As the kernel sends it."""
    size = protocol.IN_HEADER.size + len(body)
    return protocol.IN_HEADER.pack(size, opcode, unique, nodeid, uid, 0, 0, 0, 0) + body


class Kernel:
    """The other end of a mount; ``promised`` and ``before`` as in ``Stack.client``."""

    def __init__(self, stack: Stack, *, promised: bool = False, before: Client | None = None) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(60.0)
        self.theirs = theirs
        self._unique = 2
        self.client = client = stack.client(promised=promised, before=before)
        self.the = Context(
            client.vfs,
            theirs.fileno(),
            Owners(0, 0, 0, 0),
            trusted=False,
            passes=False,
            mountpoint=Path("/nowhere"),
            names_may_go=False,
        )
        self.loop = Loop(theirs.fileno(), Operations(self.the), client.vfs.calls)
        self.loop.start()

    @property
    def last(self) -> int:
        """The number of the last request."""
        return self._unique

    def ask(self, opcode: int, body: bytes = b"", nodeid: int = 1, again: int = 0) -> tuple[int, bytes]:
        """``(errno, what was answered)``. Notifications that come before it are as good as carried out.
        ``again``: the request of this number comes once more, because an earlier worker has died."""
        if not again:
            self._unique += 2
        unique = again | protocol.UNIQUE_RESEND if again else self._unique
        self._socket.sendall(request(opcode, body, unique, nodeid))
        if opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT):
            return 0, b""
        while True:
            data = self._socket.recv(1 << 21)
            head = protocol.OUT_HEADER.read(data)
            assert head.len == len(data)
            if head.unique == unique:
                return -head.error, data[protocol.OUT_HEADER.size :]

    def notified(self) -> tuple[int, bytes]:
        """The next notification: what, and what follows."""
        assert select.select([self._socket], [], [], 20.0)[0], "nothing comes"
        data = self._socket.recv(1 << 21)
        head = protocol.OUT_HEADER.read(data)
        assert head.unique == 0
        return head.error, data[protocol.OUT_HEADER.size :]

    def create(self, name: bytes, nodeid: int = 1) -> tuple[int, int]:
        """``(inode, handle)`` of a new file."""
        body = protocol.CREATE_IN.pack(0o102, 0o644, 0, 0) + name + b"\0"
        number, answer = self.ask(Opcode.CREATE, body, nodeid)
        assert number == 0
        opened = protocol.OPEN_OUT.read(answer, ENTRY_BYTES)
        return protocol.ENTRY_OUT.read(answer).nodeid, opened.fh

    def close(self) -> None:
        """The mount is gone. No thread reads the descriptor any more: who comes next may get its number."""
        self._socket.close()
        self.loop.stop(5)
        for _ in range(self.loop._threads):
            self.loop.ended.get(timeout=60.0)
        self.the.passthrough.close()
        self.theirs.close()
