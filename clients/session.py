"""Speaking to one service: sealing, deadlines, retries, breakers, error decoding.

``Keyring`` holds what a session may show to services and renews it. ``Channel`` is one service (one
base URL and role): ``call`` sends a message and returns the decoded reply or raises the ``OSError`` that
the service raised. A ``Wire`` moves bytes: ``clients.http`` over HTTP, tests in other ways.

Retrying: a request that never arrived is sent again until the deadline. One whose reply was lost is
sent again too, because every mutation bears a request id whose reply the service remembers, and all
else may be repeated. A deadline counts silence: it starts again with every byte that arrives.
"""

import base64
import errno
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from clients.attempts import Attempts
from wire import codec
from wire.errors import (
    BadSeal,
    DfsError,
    Problem,
    SlowDown,
    TicketRefused,
    Unavailable,
    fail,
    from_problem,
)
from wire.headers import METHODS_WITH_BODY, REQUEST_HEADER, SEAL_HEADER, SEALED, TICKET_HEADER
from wire.messages.auth import Credential, Session
from wire.sealing import reply_context, request_context, seal, unseal
from wire.tickets import Role

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)

PAUSE_SECONDS_MAX = 2.0

RESEND_SECONDS_MAX = 600.0
"""A request is not sent again later than this: services forget replies after two hours (servers.replies)."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_sequence = itertools.count(1)
_random = random.Random()  # its own: nobody else's sequence of random numbers depends on our retries


def now_awake_or_not() -> float:
    """Seconds of a clock that never goes back and, unlike time.monotonic, does not stand still in suspend."""
    return time.clock_gettime(_CLOCK)


def backoff_seconds(first: float, attempt: int) -> float:
    """The pause after a failed attempt (0 is the first): doubled each time up to a bound, and jittered."""
    return min(first * 2.0**attempt, PAUSE_SECONDS_MAX) * _random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class Answer:
    """What came back: the status, the headers that matter, the body."""

    status: int
    sealed: bool
    body: bytes


class Wire(Protocol):
    """Moves one request to a service and its answer back."""

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
    ) -> Answer:
        """Raises NeverReached or ReplyLost."""


class Breaker:
    """Remembers that a server did not answer, so that callers with a choice try another one first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._closed_until = 0.0

    def failed(self) -> None:
        """The server was not reached or did not answer."""
        self._failures += 1
        self._closed_until = self._clock() + min(0.5 * 2 ** min(self._failures, 5), 10.0)

    def succeeded(self) -> None:
        """The server answered."""
        self._failures = 0
        self._closed_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the server should be left alone for now."""
        return self._clock() < self._closed_until


class Keyring:
    """The credentials of one session; thread-safe. ``renew`` asks for new ones (see clients.auth).
    ``received``: when these came, in seconds of time.monotonic, if not just now."""

    def __init__(
        self,
        session: Session,
        renew: Callable[[Session], Session] | None = None,
        received: float | None = None,
    ) -> None:
        self._renew = renew
        self._attempts = Attempts()
        self._received = time.monotonic() if received is None else received
        self.session = session
        self._credentials = {credential.role: credential for credential in session.credentials}

    def credential(self, role: Role) -> Credential:
        """What to show to a service of this role. Raises TicketRefused if the session has none."""
        try:
            return self._credentials[role]
        except KeyError:
            raise TicketRefused(f"the session has no ticket for {role}") from None

    def renew(self, stale: Credential | None = None) -> None:
        """New credentials, unless another thread has replaced ``stale``. Raises what the server says; to all
        who waited for the same attempt."""
        with self._attempts.turn():
            if stale is not None and self._credentials.get(stale.role) is not stale:
                return
            if self._renew is None:
                raise TicketRefused("the session has ended; log in again")
            self.session = self._renew(self.session)
            self._credentials = {credential.role: credential for credential in self.session.credentials}
            self._received = time.monotonic()

    def seconds_until_renewal(self) -> float:
        """Until two thirds of the tickets' life are over; negative when they are."""
        return self._received + self.session.lifetime_seconds * 2 / 3 - time.monotonic()


Numbering = Callable[[int], int]
"""Decides under which number a mutation is sent that an earlier process may have sent already: given a fresh
one, returns that, or the earlier one."""


class Counter:
    """Numbers a session's mutations at one service, and knows which are still under way.

    A session that is taken over from another process begins at ``first``, above all that the other one has
    used, with the numbers ``held``, which it may send again.
    """

    def __init__(self, first: int = 1, held: Iterable[int] = ()) -> None:
        self._lock = threading.Lock()
        self._next = first
        self._under_way = set(held)

    @contextmanager
    def number(self, numbering: Numbering | None = None) -> Iterator[tuple[int, int]]:
        """``(counter, acked)``: all below ``acked`` are answered or given up, and will not be sent again.
        What ``numbering`` has decided may be sent again until ``done``."""
        with self._lock:
            number = self._next
            self._next += 1
            self._under_way.add(number)
        chosen = 0
        try:
            chosen = number if numbering is None else numbering(number)
            with self._lock:
                acked = min(self._under_way)
            yield chosen, acked
        finally:
            if numbering is None or chosen != number:
                self.done(number)

    def done(self, number: int) -> None:
        """It will not be sent again."""
        with self._lock:
            self._under_way.discard(number)


class Channel:
    """One service, for one session. Thread-safe."""

    def __init__(
        self,
        wire: Wire,
        base_url: str,
        role: Role,
        keyring: Keyring,
        deadline_seconds: float = 30.0,
        counter: Counter | None = None,
    ) -> None:
        self._wire = wire
        self._role = role
        self._keyring = keyring
        self.base_url = base_url.rstrip("/")
        self.deadline_seconds = deadline_seconds
        self.breaker = Breaker()
        self.counter = counter or Counter()

    def call(
        self,
        method: str,
        path: str,
        message: msgspec.Struct | None,
        reply: type[T],
        *,
        request_id: str = "",
        wait_seconds: float = 0.0,
        deadline_seconds: float | None = None,
    ) -> T:
        """The decoded reply. ``wait_seconds`` is how long the service may hold the answer back.

        Raises the OSError that the service raised, or Unavailable when the deadline is over.
        """
        return codec.decode(
            self.call_bytes(
                method,
                path,
                message,
                request_id=request_id,
                wait_seconds=wait_seconds,
                deadline_seconds=deadline_seconds,
            ),
            reply,
        )

    def mutate(
        self,
        path: str,
        make: Callable[[int], msgspec.Struct],
        reply: type[T],
        *,
        wait_seconds: float = 0.0,
        deadline_seconds: float | None = None,
        numbering: Numbering | None = None,
    ) -> T:
        """POSTs a mutation exactly once, whatever is retried: ``make`` gets ``acked``."""
        with self.counter.number(numbering) as (number, acked):
            return self.call(
                "POST",
                path,
                make(acked),
                reply,
                request_id=f"{self._keyring.session.session:x}.{number}",
                wait_seconds=wait_seconds,
                deadline_seconds=deadline_seconds,
            )

    def call_bytes(
        self,
        method: str,
        path: str,
        message: msgspec.Struct | None,
        *,
        request_id: str = "",
        wait_seconds: float = 0.0,
        deadline_seconds: float | None = None,
    ) -> bytes:
        """The reply's bytes, for replies that are content and not a message. Else as ``call``."""
        body = b"" if message is None else codec.encode(message)
        request_id = request_id or f"{self._keyring.session.session:x}-{next(_sequence):x}"
        patience = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        began = now_awake_or_not()
        for attempt in itertools.count():
            try:
                return self._try(method, path, body, request_id, patience + wait_seconds, began)
            except (Unavailable, SlowDown) as error:
                pause = _pause_seconds(error, attempt)
                if now_awake_or_not() + pause >= began + patience:
                    raise
                level = logging.DEBUG if attempt < 3 else logging.INFO
                url = self.base_url + path
                log.log(level, "%s %s is tried again (%s): %s", method, url, request_id, error.detail)
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _try(
        self, method: str, path: str, body: bytes, request_id: str, silence_seconds: float, began: float
    ) -> bytes:
        credential = self._keyring.credential(self._role)
        try:
            return self._send(credential, method, path, body, request_id, silence_seconds)
        except TicketRefused:
            self._keyring.renew(credential)
            if now_awake_or_not() > began + RESEND_SECONDS_MAX:
                raise
            credential = self._keyring.credential(self._role)
            return self._send(credential, method, path, body, request_id, silence_seconds)

    def _send(
        self,
        credential: Credential,
        method: str,
        path: str,
        body: bytes,
        request_id: str,
        silence_seconds: float,
    ) -> bytes:
        sealed = seal(credential.key, body, request_context(method, path, request_id))
        headers = {
            TICKET_HEADER: base64.b64encode(credential.ticket).decode(),
            REQUEST_HEADER: request_id,
            "Content-Type": SEALED,
        }
        if method not in METHODS_WITH_BODY:
            headers[SEAL_HEADER] = base64.b64encode(sealed).decode()
            sealed = b""
        try:
            answer = self._wire.send(method, self.base_url + path, headers, sealed, silence_seconds)
        except Unavailable:
            self.breaker.failed()
            raise
        self.breaker.succeeded()
        if not answer.sealed:
            raise _unsealed_error(answer, self.base_url + path)
        context = reply_context(answer.status, method, path, request_id)
        data = unseal(credential.key, answer.body, context)
        if answer.status >= 400:
            raise from_problem(codec.decode(data, Problem))
        return data


def _pause_seconds(error: Unavailable | SlowDown, attempt: int) -> float:
    """As long as the service asks for, or longer from attempt to attempt."""
    return error.retry_after_seconds if isinstance(error, SlowDown) else backoff_seconds(0.05, attempt)


def _unsealed_error(answer: Answer, url: str) -> OSError:
    """An answer without a seal proves nothing: it can only make us renew the ticket or try again."""
    try:
        error = from_problem(msgspec.json.decode(answer.body, type=Problem))
    except (msgspec.DecodeError, msgspec.ValidationError):
        error = Unavailable(f"{url} answered {answer.status} and no message of DFS")
    if isinstance(error, TicketRefused | BadSeal):
        return TicketRefused(str(error.strerror))
    if isinstance(error, Unavailable):
        return error
    return fail(errno.EPROTO, f"{url} answered without a seal: {error.strerror}")


def call_plain(
    wire: Wire,
    method: str,
    url: str,
    body: bytes,
    silence_seconds: float = 10.0,
) -> bytes:
    """An exchange that needs no session (realm, sign-up, login, health). Raises what the server says."""
    headers = {"Content-Type": "application/msgpack"} if body else {}
    answer = wire.send(method, url, headers, body, silence_seconds)
    if answer.status < 400:
        return answer.body
    try:
        raise from_problem(msgspec.json.decode(answer.body, type=Problem))
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DfsError(f"{url} answered {answer.status} and no message of DFS") from error
