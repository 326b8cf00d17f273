"""The process that a mount cannot do without, kept small so that it does not die: it holds /dev/fuse.

The work is done by another process, the *worker*, which gets the keeper's descriptors: of the device, of the
memory in which it writes down what its successor must know (mount.slate), and of a line on which both talk.
A worker that dies, or does not answer in time, is followed by another one on the same mount: the kernel keeps
the calls of programs, who see a pause. A mount ends with its worker's end in order, with the keeper, or when
its first worker does not come so far as to answer the kernel.

A new version of DFS takes the mount over in the same way: its ``dfs mount`` gives the worker its command, the
worker hands it on, and the keeper has that one run from then on, unless it fails before it is ready.
"""

import ctypes
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import msgspec

from wire.errors import DfsError, Problem, from_problem

log = logging.getLogger(__name__)

HANG_SECONDS = 30.0
"""A worker that has not answered for so long is replaced."""

STACKS_SECONDS = 1.0
"""A worker that hangs has so long to write the stacks of its threads into the log."""

STEADY_SECONDS = 10.0
"""A worker that lived so long is followed at once."""

PAUSE_SECONDS_MAX = 5.0

HURRIED_MAX = 16
"""When so many workers in a row died sooner than that, the next one would too: the mount ends, and programs
hear that it is gone instead of waiting for ever."""

MESSAGE_BYTES_MAX = 65536

_PR_SET_PDEATHSIG = 1
"""<linux/prctl.h>"""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker answers the kernel."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It never will, and ends."""

    problem: Problem


class Ping(msgspec.Struct, frozen=True, tag=True):
    """From the keeper: is it still able to work? From the worker: it is."""


class Replace(msgspec.Struct, frozen=True, tag=True):
    """This program is to be the worker from now on, with the same words and in this environment."""

    program: list[str]
    environment: dict[str, str]


Message = Ready | Failed | Ping | Replace


class Line:
    """One end of what keeper and worker talk on."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._decode = msgspec.json.Decoder(Message).decode

    def fileno(self) -> int:
        """For poll(2) and exec(2)."""
        return self._end.fileno()

    def close(self) -> None:
        """The other end hears of it."""
        self._end.close()

    def tell(self, message: Message) -> None:
        """Raises BrokenPipeError if nobody is there any more, BlockingIOError if he does not listen."""
        self._end.send(msgspec.json.encode(message), socket.MSG_DONTWAIT)

    def hear(self) -> Message | None:
        """Waits for the next message; None if there will be none."""
        try:
            data = self._end.recv(MESSAGE_BYTES_MAX)
        except ConnectionResetError:
            return None
        return self._decode(data) if data else None


@dataclass(frozen=True)
class Given:
    """What a worker gets from its keeper; as one word of its command line."""

    device: int
    memory: int
    line: int
    keeper: int

    def __str__(self) -> str:
        return f"{self.device},{self.memory},{self.line},{self.keeper}"

    @classmethod
    def parse(cls, word: str) -> "Given":
        """Raises ValueError."""
        return cls(*map(int, word.split(",")))


def end_with_keeper(given: Given) -> None:
    """For the worker, before anything else: it does not outlive its keeper."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != given.keeper:
        sys.exit("the keeper of this mount is gone")


class Keeper:
    """Keeps one mount going on ``device`` and ``memory``. ``program``, with ``words`` and what is Given as
    another one, is the worker; ``hang_seconds`` as HANG_SECONDS."""

    def __init__(
        self,
        device: int,
        memory: int,
        program: list[str],
        words: list[str],
        environment: dict[str, str],
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        self._device = device
        self._memory = memory
        self._words = words
        self._wanted = Replace(program, environment)
        self._proven = self._wanted
        self._hang_seconds = hang_seconds
        self._ending = 0
        self._worker: subprocess.Popen[bytes] | None = None

    def run(self, on_ready: Callable[[], None]) -> None:
        """Returns when the mount is to end: a worker has ended in order, or a signal has said so. Raises what
        kept the first worker from being ready; after that one ``on_ready`` is called."""
        is_first, hurried = True, 0
        with self._passing_signals_on():
            while not self._ending:
                began = time.monotonic()
                status, was_ready, problem = self._one_worker(on_ready if is_first else lambda: None)
                if status == 0 or self._ending:
                    return
                if is_first and not was_ready:
                    raise problem or DfsError("the mount's process died before it was ready")
                is_first = False
                if self._wanted != self._proven and not was_ready:
                    log.warning("the new version of the worker is not ready; the old one goes on")
                    self._wanted = self._proven
                hurried = 0 if time.monotonic() - began > STEADY_SECONDS else hurried + 1
                if hurried == HURRIED_MAX:
                    raise problem or DfsError(f"{hurried} workers in a row died at once: the mount ends")
                if hurried > 1:
                    time.sleep(min(0.05 * 2**hurried, PAUSE_SECONDS_MAX))

    def _one_worker(self, on_ready: Callable[[], None]) -> tuple[int, bool, OSError | None]:
        """From its start to its end: its status, whether it came to be ready, and why not."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with closing(Line(ours)) as line:
            with theirs:
                given = Given(self._device, self._memory, theirs.fileno(), os.getpid())
                worker = self._worker = subprocess.Popen(
                    [*self._wanted.program, *self._words, "--worker", str(given)],
                    stdin=subprocess.DEVNULL,
                    env=self._wanted.environment,
                    pass_fds=(given.device, given.memory, given.line),
                    process_group=0,  # a Ctrl-C is passed on, and does not come twice
                )
            try:
                was_ready, problem = self._listen(line, worker, on_ready)
            finally:
                worker.kill()
                status = worker.wait()
                self._worker = None
        return status, was_ready, problem

    def _listen(
        self, line: Line, worker: subprocess.Popen[bytes], on_ready: Callable[[], None]
    ) -> tuple[bool, OSError | None]:
        """Until the worker ends, or must."""
        was_ready, problem = False, None
        poll = select.poll()
        poll.register(line.fileno(), select.POLLIN)
        heard_at = asked_at = time.monotonic()
        while True:
            if poll.poll(self._hang_seconds / 5 * 1000):
                message = line.hear()
                heard_at = time.monotonic()
                match message:
                    case None:
                        self._say_how_it_ended(worker)
                        return was_ready, problem
                    case Ready():
                        was_ready = True
                        self._proven = self._wanted
                        on_ready()
                    case Failed():
                        problem = from_problem(message.problem)
                    case Replace():
                        self._wanted = message
                        log.info("another version of DFS takes over the work")
                        return was_ready, problem
            now = time.monotonic()
            if now - heard_at > self._hang_seconds:
                self._have_stacks_written(worker)
                return was_ready, problem
            if now - asked_at >= self._hang_seconds / 5:
                asked_at = now
                self._ask(line)

    def _ask(self, line: Line) -> None:
        try:
            line.tell(Ping())
        except OSError:
            pass  # it is gone, and the next look finds that; or it reads no more, and time will tell

    def _say_how_it_ended(self, worker: subprocess.Popen[bytes]) -> None:
        status = worker.wait()
        if status and not self._ending:
            log.warning("the worker %d died (status %d); another one takes over", worker.pid, status)

    def _have_stacks_written(self, worker: subprocess.Popen[bytes]) -> None:
        log.warning(
            "the worker %d has not answered for %.0f s: its stacks follow, then another one takes over",
            *(worker.pid, self._hang_seconds),
        )
        worker.send_signal(signal.SIGUSR1)
        worker.send_signal(signal.SIGCONT)
        time.sleep(STACKS_SECONDS)

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        """What ends a process ends this one's worker, which unmounts."""

        def pass_on(number: int, _frame: object) -> None:
            self._ending = number
            if self._worker is not None:
                self._worker.send_signal(number)

        before = {
            number: signal.signal(number, pass_on)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
