"""What all services have in common on the web side.

``Door`` stands before every sealed route: it opens the ticket and the seal, decodes nothing else,
calls the view, and seals its answer or its error. Views are given a ``Call`` and return a struct or
bytes. Whatever cannot be opened is answered without a seal and never acted on.
"""

import base64
import binascii
import errno
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar
from urllib.parse import quote

import msgspec
from flask import Flask, Response, request
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from werkzeug.exceptions import HTTPException
from werkzeug.routing import IntegerConverter

from servers.logs import request_id as current_request
from wire import codec
from wire.errors import BadMessage, BadSeal, SlowDown, TicketRefused, TooLarge, fail, to_problem
from wire.headers import METHODS_WITH_BODY, REQUEST_HEADER, SEAL_HEADER, SEALED, TICKET_HEADER
from wire.limits import BODY_BYTES_MAX, HEADER_BYTES_MAX
from wire.messages.common import Caller, Health
from wire.permissions import Identity
from wire.sealing import reply_context, request_context, seal, unseal
from wire.tickets import Role, Ticket, open_ticket

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)
Reply = msgspec.Struct | bytes

PROBLEM = "application/problem+json"


class Server(Protocol):
    """A service, made from its config by ``make_server`` in its ``app`` module."""

    app: Flask

    def start(self) -> None:
        """Starts the background threads."""

    def close(self) -> None:
        """Stops them and closes the database."""


@dataclass(frozen=True)
class Call:
    """A request whose ticket and seal were opened."""

    ticket: Ticket
    request_id: str
    body: bytes

    def message(self, kind: type[T]) -> T:
        """The body as a message. Raises BadMessage."""
        return codec.decode(self.body, kind)

    def counter(self) -> int:
        """The number of a mutation: its request id is ``session.counter``. Raises BadMessage."""
        session, _, number = self.request_id.partition(".")
        if session != f"{self.ticket.session:x}" or not re.fullmatch(r"[0-9]{1,19}", number):
            raise BadMessage("a mutation's request id is SESSION.COUNTER")
        if int(number) >= 2**63:
            raise BadMessage("a mutation's counter has 63 bits")
        return int(number)

    def identity(self, caller: Caller | None = None) -> Identity:
        """On whose behalf: the session's user, or in a trusted session whoever it says. Raises EPERM."""
        if caller is None:
            return Identity(self.ticket.uid, tuple(self.ticket.gids))
        if not self.ticket.trusted:
            raise fail(errno.EPERM, "only a trusted session may speak for others")
        return Identity(caller.uid, tuple(caller.gids))


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
        self._keys = keys
        self._clock = clock
        self._started = time.monotonic()
        self._requests = Counter(
            "dfs_requests", "Requests answered", ["endpoint", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "dfs_request_seconds", "Time to answer", ["endpoint"], registry=self.registry
        )
        self._open_ticket = lru_cache(maxsize=4096)(self._open_ticket_uncached)
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
            try:
                call = self._open(role, allow_expired)
            except OSError as error:
                # Quoted: what nobody vouches for must not write lines of its own into the log.
                log.warning("refused %s %s: %s", method, quote(request.path), error.strerror)
                response = self._problem(error)
            else:
                response = self._answer(call, view, arguments)
            self._count(path, response.status_code, began)
            return response

        self.app.add_url_rule(path, f"{method} {path}", run, methods=[method])

    def _open(self, role: Role, allow_expired: bool) -> Call:
        request_id = request.headers.get(REQUEST_HEADER, "")
        if not 0 < len(request_id) <= 64 or not request_id.isprintable():
            raise BadMessage(f"the header {REQUEST_HEADER} is missing or too long")
        current_request.set(request_id)
        header = request.headers.get(TICKET_HEADER, "")
        if len(header) > HEADER_BYTES_MAX:
            raise TooLarge("the ticket is too long")
        ticket = self._open_ticket(header, role)
        if ticket.expires < self._clock() and not allow_expired:
            raise TicketRefused("the ticket has expired")
        if request.method in METHODS_WITH_BODY:
            if request.content_length is None:
                raise BadMessage("the header Content-Length is missing")
            if request.content_length > BODY_BYTES_MAX:
                raise TooLarge(f"a body has at most {BODY_BYTES_MAX} bytes")
            if "Transfer-Encoding" in request.headers:
                raise BadMessage("a body is sent with its length and not in pieces")
            # At once: granian copies what is left at each smaller read (3 to 13 ms of 4 MiB, against 1 ms).
            sealed = request.environ["wsgi.input"].read()
            if len(sealed) != request.content_length:
                raise BadMessage("the body is not as long as it says")
        else:
            sealed = _base64(request.headers.get(SEAL_HEADER, ""))
        context = request_context(request.method, _path(), request_id)
        return Call(ticket, request_id, unseal(ticket.key, sealed, context))

    def _open_ticket_uncached(self, header: str, role: Role) -> Ticket:
        try:
            return open_ticket(self._keys[role], _base64(header), role)
        except TicketRefused as error:
            raise TicketRefused("no ticket for this service") from error

    def _answer(self, call: Call, view: View, arguments: dict[str, object]) -> Response:
        try:
            if call.body and request.method not in METHODS_WITH_BODY:
                raise BadMessage("a message came where none is taken")
            reply = view(call, **arguments)
            data = reply if isinstance(reply, bytes) else codec.encode(reply)
            status = 200
        except OSError as error:
            problem = to_problem(error, call.request_id)
            status, data = problem.status, codec.encode(problem)
            log.log(
                logging.ERROR if status == 500 else logging.DEBUG,
                "%s %s by %s: %s %s",
                request.method,
                request.path,
                call.ticket.user,
                problem.errno,
                problem.detail,
            )
        except Exception:
            log.exception("%s %s failed unforeseen", request.method, request.path)
            status, data = (
                500,
                codec.encode(to_problem(fail(errno.EIO, "internal error, see the log"), call.request_id)),
            )
        else:
            log.debug("%s %s by %s", request.method, request.path, call.ticket.user)
        sealed = seal(call.ticket.key, data, reply_context(status, request.method, _path(), call.request_id))
        return Response(sealed, status=status, content_type=SEALED)

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


def _path() -> str:
    """The path with its query, as the client sealed it."""
    query = request.query_string.decode("latin-1")
    return f"{request.path}?{query}" if query else request.path


def _base64(text: str) -> bytes:
    if len(text) > HEADER_BYTES_MAX:
        raise TooLarge("a header is too long")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSeal("a header is not base64") from error
