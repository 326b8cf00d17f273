"""What all services have in common on the web side.

``Door`` stands before every sealed route: it opens the ticket and the seal (servers.seals), decodes nothing
else, calls the view, and seals its answer or its error. Views are given a ``Call`` and return a struct or
bytes. Whatever cannot be opened is answered without a seal and never acted on.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Protocol
from urllib.parse import quote

import msgspec
from flask import Flask, Response, request
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from werkzeug.exceptions import HTTPException
from werkzeug.routing import IntegerConverter

from servers.logs import request_id as current_request
from servers.seals import Asked, Call, Seals, failure, seal_reply
from wire import codec
from wire.errors import BadMessage, SlowDown, TooLarge, fail, to_problem
from wire.headers import METHODS_WITH_BODY, SEALED
from wire.limits import BODY_BYTES_MAX
from wire.messages.common import Health
from wire.tickets import Role

log = logging.getLogger(__name__)

Reply = msgspec.Struct | bytes

PROBLEM = "application/problem+json"


class Server(Protocol):
    """A service, made from its config by ``make_server`` in its ``app`` module."""

    app: Flask

    def start(self) -> None:
        """Starts the background threads."""

    def close(self) -> None:
        """Stops them and closes the database."""


View = Callable[..., Reply]


class _Number(IntegerConverter):
    """``<int:…>`` in a route: what a database can hold. A longer one is no resource: 404."""

    regex = "[0-9]{1,18}"


class Door:
    """A Flask app with health, metrics and sealed routes. ``keys`` are the ticket keys by role."""

    def __init__(
        self, service: str, keys: Mapping[Role, bytes], clock: Callable[[], float] = time.time
    ) -> None:
        self.service = service
        self.app = Flask(service, static_folder=None)
        self.app.config["MAX_CONTENT_LENGTH"] = BODY_BYTES_MAX
        self.app.url_map.converters["int"] = _Number
        self.registry = CollectorRegistry()
        self.seals = Seals(keys, clock)
        self._started = time.monotonic()
        self._requests = Counter(
            "dfs_requests", "Requests answered", ["endpoint", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "dfs_request_seconds", "Time to answer", ["endpoint"], registry=self.registry
        )
        self.app.get("/healthz")(self._healthz)
        self.app.get("/metrics")(self._metrics)
        self.app.register_error_handler(HTTPException, self._on_http_error)
        self.app.register_error_handler(Exception, self._on_unforeseen)

    def plain(self, method: str, path: str, view: Callable[[], bytes], mimetype: str) -> None:
        """A route outside the seals; ``view`` raises OSErrors too."""

        def run() -> Response:
            began = time.perf_counter()
            current_request.set("plain")
            try:
                response = Response(view(), mimetype=mimetype)
            except OSError as error:
                response = self._problem(error)
            self._count(path, response.status_code, began)
            return response

        self.app.add_url_rule(path, f"{method} {path}", run, methods=[method])

    def sealed(
        self,
        method: str,
        path: str,
        view: View,
        role: Role,
        *,
        allow_expired: bool = False,
    ) -> None:
        """A sealed route: ``view(call, **url_arguments)``; ``allow_expired`` is for renewal."""

        def run(**arguments: object) -> Response:
            began = time.perf_counter()
            asked = _asked()
            try:
                call = self.seals.open(asked, role, allow_expired=allow_expired)
            except OSError as error:
                # A sender that dies in the middle (a mount that is killed, as a rule) is no reason to worry.
                is_cut_off = isinstance(error.__cause__, ConnectionAbortedError)
                level = logging.INFO if is_cut_off else logging.WARNING
                # Quoted: what nobody vouches for must not write lines of its own into the log.
                log.log(level, "refused %s %s: %s", method, quote(request.path), error.strerror)
                response = self._problem(error)
            else:
                response = self._answer(call, asked, view, arguments)
            self._count(path, response.status_code, began)
            return response

        self.app.add_url_rule(path, f"{method} {path}", run, methods=[method])

    def _answer(self, call: Call, asked: Asked, view: View, arguments: dict[str, object]) -> Response:
        try:
            if call.body and request.method not in METHODS_WITH_BODY:
                raise BadMessage("a message came where none is taken")
            reply = view(call, **arguments)
            status, data = 200, reply if isinstance(reply, bytes) else codec.encode(reply)
        except Exception as error:
            status, data = failure(call, asked, error)
        else:
            log.debug("%s %s by %s", request.method, request.path, call.ticket.user)
        return Response(seal_reply(call, asked, status, data), status=status, content_type=SEALED)

    def _problem(self, error: OSError) -> Response:
        problem = to_problem(error)
        response = Response(msgspec.json.encode(problem), status=problem.status, content_type=PROBLEM)
        if isinstance(error, SlowDown):
            response.headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
        return response

    def _on_http_error(self, error: HTTPException) -> Response:
        status = error.code or 500
        kind = TooLarge if status == 413 else BadMessage
        response = self._problem(kind(f"{request.method} {request.path}: {error.name}"))
        response.status_code = status
        self._count("unknown", status, time.perf_counter())
        return response

    def _on_unforeseen(self, error: Exception) -> Response:
        log.error("%s %s failed unforeseen", request.method, request.path, exc_info=error)
        return self._problem(fail(errno.EIO, "internal error, see the log"))

    def _count(self, endpoint: str, status: int, began: float) -> None:
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(time.perf_counter() - began)

    def _healthz(self) -> Response:
        health = Health(self.service, os.getpid(), time.monotonic() - self._started)
        return Response(msgspec.json.encode(health), mimetype="application/json")

    def _metrics(self) -> Response:
        return Response(generate_latest(self.registry), mimetype="text/plain")


def _asked() -> Asked:
    """The request that is being answered; its path with its query."""
    query = request.query_string.decode("latin-1")
    path = f"{request.path}?{query}" if query else request.path
    return Asked(request.method, path, lambda name: request.headers.get(name, ""), _read)


def _read() -> bytes:
    if request.content_length is None:
        raise BadMessage("the header Content-Length is missing")
    if request.content_length > BODY_BYTES_MAX:
        raise TooLarge(f"a body has at most {BODY_BYTES_MAX} bytes")
    if "Transfer-Encoding" in request.headers:
        raise BadMessage("a body is sent with its length and not in pieces")
    # At once: granian copies what is left at each smaller read (3 to 13 ms of 4 MiB, against 1 ms).
    sealed: bytes = request.environ["wsgi.input"].read()
    if len(sealed) != request.content_length:
        raise BadMessage("the body is not as long as it says") from ConnectionAbortedError()
    return sealed
