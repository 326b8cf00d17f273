"""All that the kernel may ask."""

import errno

from mount import interruption
from mount.bindings.native import protocol
from mount.bindings.native.attributes import Attributes
from mount.bindings.native.context import Context
from mount.bindings.native.directories import Directories
from mount.bindings.native.files import Files
from mount.bindings.native.locks import Locks
from mount.bindings.native.names import Names
from mount.bindings.native.protocol import Opcode
from mount.bindings.native.requests import DONE, Answer, Methods, Request
from wire.errors import fail


class Operations:
    """The operations of one mount; thread-safe."""

    def __init__(self, the: Context) -> None:
        self._vfs = the.vfs
        self.written = the.written
        directories, files = Directories(the), Files(the)
        methods: Methods = {
            **Names(the).methods,
            **Attributes(the).methods,
            **files.methods,
            **directories.methods,
            **Locks(the).methods,
            Opcode.SYNCFS: self.syncfs,
            Opcode.DESTROY: self.destroy,
            Opcode.INTERRUPT: self.interrupt,
            Opcode.IOCTL: self.ioctl,
        }
        self._methods = {int(opcode): method for opcode, method in methods.items()}
        at_once = {**directories.at_once, **files.at_once}
        self.at_once = {int(opcode): method for opcode, method in at_once.items()}

    def answer(self, request: Request) -> Answer:
        """Carries a request out. Raises ENOSYS for what is not known: the kernel does without, then."""
        method = self._methods.get(request.opcode)
        if method is None:
            raise fail(errno.ENOSYS)
        return method(request)

    def syncfs(self, request: Request) -> Answer:
        """syncfs(2). What cannot be committed stays dirty, and its handles are told."""
        self._vfs.write_back_all()
        return DONE

    def destroy(self, request: Request) -> Answer:
        """The kernel's last request; what is to be done is done when the mount's process ends."""
        return DONE

    def interrupt(self, request: Request) -> Answer:
        """Nobody waits for a request any more. EAGAIN, which makes the kernel say so again, if the request is
        not being carried out yet."""
        if not interruption.interrupt(protocol.INTERRUPT_IN.read(request.body).unique):
            raise fail(errno.EAGAIN)
        return None

    def ioctl(self, request: Request) -> Answer:
        """None is known. Not ENOSYS: that would be the answer to the caller too."""
        raise fail(errno.ENOTTY)
