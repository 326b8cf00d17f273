"""The worker's side of what it talks with its keeper (mount.keeper)."""

import logging
import os
import socket
import threading
from collections.abc import Callable

from mount.keeper import Failed, Given, Line, Ping, Ready, Replace
from wire.errors import to_problem

log = logging.getLogger(__name__)


class Worker:
    """This process, as the worker of a keeper. ``is_able`` decides whether it is still able to work; it is
    called from a thread of its own and must not take longer than that is true."""

    def __init__(self, given: Given) -> None:
        self.device = given.device
        self.memory = given.memory
        self.is_able: Callable[[], bool] = lambda: True
        for descriptor in (given.device, given.memory, given.line):
            os.set_inheritable(descriptor, False)
        self._line = Line(socket.socket(fileno=given.line))
        threading.Thread(target=self._answer, name="keeper-line", daemon=True).start()

    def ready(self) -> None:
        """The kernel is answered."""
        self._line.tell(Ready())

    def failed(self, error: OSError) -> None:
        """This worker will not be ready."""
        self._line.tell(Failed(to_problem(error)))

    def replace(self, program: list[str], environment: dict[str, str]) -> None:
        """Ends this process, without any more ado, as soon as the keeper reads it."""
        self._line.tell(Replace(program, environment))

    def _answer(self) -> None:
        while self._line.hear() is not None:
            if self.is_able():
                self._line.tell(Ping())
            else:
                log.error("this process is not able to work any more")
