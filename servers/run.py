"""Runs a service's Flask app on granian, as one process tree that never outlives its parent."""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.util import Finalize
from typing import Any

from granian.constants import Interfaces, RuntimeModes
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server

from servers import web

_PR_SET_PDEATHSIG = 1
"""prctl(2)."""

DRAIN_SECONDS = 3
"""How long a stop waits for requests. Answers that are held back longer are cut off: who waits asks again."""

_GRANIAN_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"_granian": {"level": "ERROR", "propagate": True}},
}


def serve(make: Callable[[], web.Server], host: str, port: int, threads: int) -> None:
    """Serves until SIGTERM or SIGINT. ``make`` is called in the process that answers requests, so that
    threads and database connections that it makes are in the right one."""

    multiprocessing.set_start_method("fork")  # ``load`` is a closure; later Pythons have another default
    parent = os.getpid()

    def load(_target: str) -> Any:
        # The parent's handler was inherited and would swallow a SIGTERM until granian sets the worker's own.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before prctl
            os._exit(1)
        server = make()
        server.start()
        Finalize(server, server.close, exitpriority=10)  # when the last request was answered
        return server.app

    Server(
        "dfs",
        address=host,
        port=port,
        interface=Interfaces.WSGI,
        # One thread of its runtime: with several a small request took 0.85 ms here instead of 0.70.
        runtime_mode=RuntimeModes.st,
        workers=1,
        blocking_threads=threads,
        backpressure=max(2 * threads, 256),
        http1_settings=HTTP1Settings(max_buffer_size=1024 * 1024),
        websockets=False,
        log_level=LogLevels.error,
        log_dictconfig=_GRANIAN_LOGGING,
        workers_kill_timeout=DRAIN_SECONDS,
    ).serve(target_loader=load)


def exit_with_parent(lifeline_fd: int) -> None:
    """Ends this process (SIGTERM to itself) when the other end of the pipe ``lifeline_fd`` is closed."""

    def watch() -> None:
        while os.read(lifeline_fd, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
