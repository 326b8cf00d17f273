"""Runs a service's Flask app on granian, as one process tree that never outlives its parent."""

import ctypes
import gc
import multiprocessing
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.util import Finalize
from typing import Any
from wsgiref.types import StartResponse

from flask import Flask
from granian.constants import Interfaces, RuntimeModes
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server

from servers import web

_PR_SET_PDEATHSIG = 1
"""prctl(2)."""

DRAIN_SECONDS = 3
"""How long a stop waits for requests. Answers that are held back longer are cut off: who waits asks again."""

CONNECTIONS_MAX = 16_384
"""Clients keep connections open between requests; one costs a descriptor and no thread."""

_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""tcp(7): a client that is gone in the middle of a request gives its thread back after 25 s."""

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
    gc.freeze()  # what is imported stays shared: to look for cycles in it would copy all of it

    def load(_target: str) -> Any:
        # The parent's handler was inherited and would swallow a SIGTERM until granian sets the worker's own.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before prctl
            os._exit(1)
        server = make()
        server.start()
        Finalize(server, server.close, exitpriority=10)  # when the last request was answered
        _raise_descriptor_limit()
        gc.collect()
        gc.freeze()  # what is made at the start is not looked at again and again
        return _Kept(server.app)

    Server(
        "dfs",
        address=host,
        port=port,
        interface=Interfaces.WSGI,
        # One thread of its runtime: with several a small request took 0.85 ms here instead of 0.70.
        runtime_mode=RuntimeModes.st,
        workers=1,
        blocking_threads=threads,
        backpressure=CONNECTIONS_MAX,
        http1_settings=HTTP1Settings(max_buffer_size=1024 * 1024),
        websockets=False,
        log_level=LogLevels.error,
        log_dictconfig=_GRANIAN_LOGGING,
        workers_kill_timeout=DRAIN_SECONDS,
    ).serve(target_loader=load)


class _Kept:
    """The app, behind listening sockets whose connections notice that their client is gone. Granian makes
    these sockets itself, after the app and before the first request; connections inherit their options."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._is_set = False

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if not self._is_set:
            self._is_set = True
            for listener in listening_sockets():
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in _KEEPALIVE:
                    listener.setsockopt(socket.IPPROTO_TCP, option, value)
        return self._app(environ, start_response)


def listening_sockets() -> Iterator[socket.socket]:
    """This process's listening sockets, not to be closed. Nor is any other descriptor duplicated and closed:
    closing one of a database's file would end all locks that SQLite has on it (fcntl(2))."""
    for name in os.listdir("/proc/self/fd"):
        try:
            found = socket.socket(fileno=int(name))
        except OSError:
            continue  # no socket, or closed meanwhile
        try:
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                yield found
        finally:
            found.detach()


def _raise_descriptor_limit() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def exit_with_parent(lifeline_fd: int) -> None:
    """Ends this process (SIGTERM to itself) when the other end of the pipe ``lifeline_fd`` is closed."""

    def watch() -> None:
        while os.read(lifeline_fd, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
