"""Opening what clients send and sealing what they are answered; knows neither Flask nor sockets.

Nothing is believed before ticket and seal were opened, and nothing that cannot be opened is acted on.
"""

import base64
import binascii
import errno
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import msgspec

from servers.logs import request_id as current_request
from wire import codec
from wire.errors import BadMessage, BadSeal, TicketRefused, TooLarge, fail, to_problem
from wire.headers import METHODS_WITH_BODY, REQUEST_HEADER, SEAL_HEADER, TICKET_HEADER
from wire.limits import HEADER_BYTES_MAX
from wire.messages.common import Caller
from wire.permissions import Identity
from wire.sealing import reply_context, request_context, seal, unseal
from wire.tickets import Role, Ticket, open_ticket

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class Asked:
    """A request as it came: ``path`` is with its query, as the client sealed it; ``header`` gives a header's
    text or an empty one, ``read`` the body."""

    method: str
    path: str
    header: Callable[[str], str]
    read: Callable[[], bytes]


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


class Seals:
    """``keys`` are the ticket keys by role. Thread-safe."""

    def __init__(self, keys: Mapping[Role, bytes], clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._clock = clock
        self._open_ticket = lru_cache(maxsize=4096)(self._open_ticket_uncached)

    def open(self, asked: Asked, role: Role, *, allow_expired: bool = False) -> Call:
        """Raises BadMessage, TooLarge, TicketRefused, BadSeal; and what reading raises."""
        request_id = asked.header(REQUEST_HEADER)
        if not 0 < len(request_id) <= 64 or not request_id.isprintable():
            raise BadMessage(f"the header {REQUEST_HEADER} is missing or too long")
        current_request.set(request_id)
        header = asked.header(TICKET_HEADER)
        if len(header) > HEADER_BYTES_MAX:
            raise TooLarge("the ticket is too long")
        ticket = self._open_ticket(header, role)
        if ticket.expires < self._clock() and not allow_expired:
            raise TicketRefused("the ticket has expired")
        has_body = asked.method in METHODS_WITH_BODY
        sealed = asked.read() if has_body else _base64(asked.header(SEAL_HEADER))
        context = request_context(asked.method, asked.path, request_id)
        return Call(ticket, request_id, unseal(ticket.key, sealed, context))

    def _open_ticket_uncached(self, header: str, role: Role) -> Ticket:
        try:
            return open_ticket(self._keys[role], _base64(header), role)
        except TicketRefused as error:
            raise TicketRefused("no ticket for this service") from error


def seal_reply(call: Call, asked: Asked, status: int, data: bytes) -> bytes:
    """The body of the answer."""
    return seal(call.ticket.key, data, reply_context(status, asked.method, asked.path, call.request_id))


def failure(call: Call, asked: Asked, error: Exception) -> tuple[int, bytes]:
    """Status and encoded problem; what is unforeseen is logged whole."""
    if not isinstance(error, OSError):
        log.error("%s %s failed unforeseen", asked.method, asked.path, exc_info=error)
        return 500, codec.encode(to_problem(fail(errno.EIO, "internal error, see the log"), call.request_id))
    problem = to_problem(error, call.request_id)
    log.log(
        logging.ERROR if problem.status == 500 else logging.DEBUG,
        "%s %s by %s: %s %s",
        asked.method,
        asked.path,
        call.ticket.user,
        problem.errno,
        problem.detail,
    )
    return problem.status, codec.encode(problem)


def _base64(text: str) -> bytes:
    if len(text) > HEADER_BYTES_MAX:
        raise TooLarge("a header is too long")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSeal("a header is not base64") from error
