"""The threads that read requests from the kernel and write what is answered.

Each thread reads a request into a buffer of its own, carries it out itself and answers: nothing is handed
over. One at a time reads: it has the *turn* (mount.bindings.native.turn). What needs no more than a look is
answered at once. Else it may wait long (for a lock, for a service), so the turn is passed on: directly, or
before it waits (mount.turns) if it is of a kind that is done in a moment as a rule (``KEEPS``). Whoever
leaves nobody to read starts another thread, unless it is a request that never waits; when more than a few
wait for requests, the next one ends. What waits for another program's lock may wait for days: it gets a
thread of its own (``Later``).
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from queue import SimpleQueue

from mount import interruption, turns
from mount.bindings.native import protocol
from mount.bindings.native.operations import Operations
from mount.bindings.native.protocol import Opcode
from mount.bindings.native.requests import Answer, Later, Request
from mount.bindings.native.turn import Turn
from mount.calls import Calls

log = logging.getLogger(__name__)

THREADS_MAX = 64
"""More than may wait for locks (``writing.WAITERS_MAX``) and pages (``NOTIFYING_MAX``) together."""

IDLE_MAX = 2
"""One reads, and one waits for its turn."""

SPARE_SECONDS = 1.0
"""More than that stay for so long after one was needed: programs whose calls overlap now and then would have
a thread started for every second call, which takes several times what the call takes."""

DATA_BYTES = 1 << 20
"""The most that a READ or a WRITE carries."""

BUFFER_BYTES = DATA_BYTES + 4096

_AGAIN = frozenset({errno.ENOENT, errno.EINTR, errno.EAGAIN})
"""From read(2): the request was taken back before it was read."""

_ENDED = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.EBADF})
"""From read(2): there is no mount any more."""

_UNWANTED = frozenset({errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EPERM})
"""From write(2): nobody waits for the answer."""

_HEAD = protocol.IN_HEADER.size

_NEVER_WAIT = frozenset({int(Opcode.FORGET), int(Opcode.BATCH_FORGET)})
"""What comes after these can come later: when the kernel forgets a million inodes, there would soon be as
many threads as there may be, each with its buffers."""

KEEPS = frozenset(
    int(opcode)
    for opcode in (
        Opcode.LOOKUP,
        Opcode.GETATTR,
        Opcode.ACCESS,
        Opcode.GETXATTR,
        Opcode.OPEN,
        Opcode.READ,
        Opcode.RELEASE,
        Opcode.OPENDIR,
        Opcode.READDIR,
        Opcode.READDIRPLUS,
        Opcode.RELEASEDIR,
    )
)
"""What is answered out of memory or the local copy, as a rule: in less time than it takes to wake another
thread."""


class Loop:
    """Answers requests from ``descriptor`` until the mount is gone or ``stop``."""

    def __init__(self, descriptor: int, operations: Operations, calls: Calls) -> None:
        self._descriptor = descriptor
        self._operations = operations
        self._at_once = operations.at_once
        self._calls = calls
        self._lock = threading.Lock()
        self._guard = threading.Condition(self._lock)  # the same: to enter it costs more
        self._turn = Turn(descriptor)
        self._threads = 0  # under guard, as what follows
        self._idle = 0
        self._started_at = self._answered_at = time.monotonic()
        self._stopping = False
        self.ended: SimpleQueue[None] = SimpleQueue()
        """Something is put there at the end; also by who handles signals."""
        self.is_gone = False
        """Whether the kernel has said that there is no mount any more."""

    def start(self) -> None:
        """Starts the first thread."""
        with self._guard:
            self._start_another()

    def stop(self, wait_seconds: float) -> None:
        """From now on nothing is carried out any more; waits for what is, but not for a look."""
        with self._guard:
            self._stopping = True
            self._guard.wait_for(lambda: self._idle == self._threads, wait_seconds)

    def is_able(self, patience_seconds: float) -> bool:
        """Whether there is a thread for the next request, or has been within this time."""
        with self._guard:
            return self._idle > 0 or time.monotonic() - self._answered_at < patience_seconds

    def fail(self, unique: int) -> None:
        """Answers a request that an earlier reader of the descriptor has not."""
        self._send(unique, errno.EIO, b"")

    def _start_another(self) -> None:
        """Under guard. Raises RuntimeError if the system lets there be no more threads."""
        threading.Thread(target=self._run, name="fuse", daemon=True).start()
        self._started_at = time.monotonic()
        self._threads += 1
        self._idle += 1

    def _see_to_readers(self) -> None:
        """Under guard: somebody shall read the next request, while this thread carries out its own."""
        if self._threads >= THREADS_MAX:
            return
        try:
            self._start_another()
        except RuntimeError as error:
            log.info("the next request waits for one of %d threads: %s", self._threads, error)

    def _run(self) -> None:
        try:
            self._serve()
        except Exception:
            log.exception("a thread of the mount has failed")
            self.ended.put(None)

    def _serve(self) -> None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        room = memoryview(bytearray(DATA_BYTES))
        turn, me = self._turn, object()
        pass_on = partial(turn.pass_on, me)
        turn.take()
        while count := self._read(buffer):
            opcode, unique, nodeid = protocol.beginning(buffer)
            if opcode in self._at_once and self._answer_at_once(opcode, unique, nodeid, buffer[_HEAD:count]):
                continue
            self._begin(opcode)
            if opcode in KEEPS:
                turn.keep(me)
                turns.keep(pass_on)
            else:
                turn.give_up()
            self._answer(buffer[:count], room)
            turns.keep(None)
            has_turn = turn.goes_on(me)
            if self._is_superfluous():
                if has_turn:
                    turn.give_up()
                return
            if not has_turn:
                turn.take()
        self.is_gone = True
        self.ended.put(None)
        turn.give_up()

    def _read(self, buffer: memoryview) -> int:
        """For who has the turn: how many bytes the next request has, 0 if there is no mount any more."""
        while True:
            try:
                return self._turn.read(buffer, may_watch=self._idle == self._threads)
            except OSError as error:
                if error.errno in _ENDED:
                    return 0
                if error.errno not in _AGAIN:
                    self._leave()  # the others answer what comes until the mount has ended
                    raise

    def _leave(self) -> None:
        """This thread, whose turn it is, reads no more."""
        with self._lock:
            self._idle -= 1
            self._threads -= 1
        self._turn.give_up()

    def _begin(self, opcode: int) -> None:
        """This thread will be at work, for a request that it has read."""
        with self._lock:
            self._idle -= 1
            if not self._idle and opcode not in _NEVER_WAIT:
                self._see_to_readers()

    def _is_superfluous(self) -> bool:
        """Whether this thread, which has answered, is to end: enough others are idle."""
        with self._lock:
            self._idle += 1
            self._answered_at = now = time.monotonic()
            if self._stopping:
                self._guard.notify_all()
            elif self._idle > IDLE_MAX and now - self._started_at > SPARE_SECONDS:
                self._idle -= 1
                self._threads -= 1
                return True
            return False

    def _answer_at_once(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bool:
        """Answers a request that needs no more than a look. False if it does, if an earlier worker may have
        begun it, or if a later one must know of it."""
        if self._stopping or self._calls.note_all or unique & protocol.UNIQUE_RESEND:
            return False
        try:
            answer = self._at_once[opcode](unique, nodeid, body)
        except Exception:  # not a word yet: it is carried out, and fails there
            return False
        if answer is None:
            return False
        self._send(unique, 0, answer)
        return True

    def _answer(self, data: memoryview, room: memoryview) -> None:
        try:
            head = protocol.IN_HEADER.read(data)
        except protocol.Malformed as error:
            log.error("the kernel has sent no request: %s", error)
            return
        body = data[protocol.IN_HEADER.size : head.len]
        request = Request(head.opcode, head.unique, head.nodeid, head.uid, head.gid, head.pid, body, room)
        self._calls.begin(head.unique & ~protocol.UNIQUE_RESEND)
        number, answer = self._carry_out(request, self._operations.answer)
        if isinstance(answer, Later):
            self._answer_later(request, answer)
        elif answer is not None:
            self._send(head.unique, number, answer)
            self._operations.written()
        self._calls.end()

    def _answer_later(self, request: Request, later: Later) -> None:
        """``request`` without what was in the buffers: those serve another one now."""
        waiting = replace(request, body=memoryview(b""), room=memoryview(b""))

        def run() -> None:
            number, answer = self._carry_out(waiting, lambda _: later.run())
            assert isinstance(answer, bytes), "who has waited waits no more"
            self._send(waiting.unique, number, answer)

        try:
            threading.Thread(target=run, name="fuse-waiting", daemon=True).start()
        except RuntimeError as error:
            log.info("there is no thread to wait in: %s", error)
            self._send(request.unique, errno.ENOLCK, b"")

    def _carry_out(self, request: Request, run: Callable[[Request], Answer]) -> tuple[int, Answer]:
        """``(errno, answer)``."""
        if self._stopping:
            return errno.ENOTCONN, b""
        try:
            with interruption.Call(request.unique):
                return 0, run(request)
        except OSError as error:
            return error.errno or errno.EIO, b""
        except protocol.Malformed as error:
            log.error("request %d of opcode %d: %s", request.unique, request.opcode, error)
            return errno.EINVAL, b""
        except Exception:
            log.exception("a request of opcode %d failed unforeseen", request.opcode)
            return errno.EIO, b""

    def _send(self, unique: int, number: int, answer: bytes | memoryview) -> None:
        header = protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size + len(answer), -number, unique)
        try:
            os.writev(self._descriptor, [header, answer] if answer else [header])
        except OSError as error:
            if error.errno not in _UNWANTED:
                log.error("request %d could not be answered: %s", unique, error)
