"""Where sessions poll their feeds: held-back answers, thousands of them, on one thread.

A WSGI server needs a thread for each request that it holds back; so this is an ASGI app on uvicorn, with an
event loop of its own in a thread of the directory's process. The loop's thread waits for nothing else: that a
session has a feed is written to the database by one other thread, in the order in which sessions join, leave
and are found gone.

Invariant: the database has the row of every session that has a feed or is a ghost
(servers.directory.promises).
"""

import asyncio
import errno
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import msgspec
import uvicorn

from servers.directory.feed_rows import FeedRows
from servers.directory.promises import Promises
from servers.seals import Asked, Call, Seals, failure, seal_reply
from wire import codec
from wire.errors import BadMessage, TooLarge, Unavailable, fail, to_problem
from wire.headers import SEALED
from wire.messages.common import Empty
from wire.messages.directory import FeedAt, LeaveFeed, Poll, Told
from wire.tickets import Role

log = logging.getLogger(__name__)

PATHS = ("/v1/feed", "/v1/feed/leave")
"""What is POSTed here."""
MESSAGE_BYTES_MAX = 4096
"""A poll is small."""
BACKLOG = 4096
"""Mounts that connect at the same moment, after a start."""
HEADERS_MAX = 64

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class FeedListener:
    """Polls of ``promises``. It listens between ``start`` and ``close``."""

    def __init__(self, promises: Promises, rows: FeedRows, seals: Seals, host: str, port: int) -> None:
        self._promises = promises
        self._rows = rows
        self._seals = seals
        self._address = (host, port)
        self._writer = ThreadPoolExecutor(1, "feed-rows")
        self._is_closing = False
        self._port = 0
        self._routes = dict(zip(PATHS, (self._poll, self._leave), strict=True))
        self._server = uvicorn.Server(
            uvicorn.Config(
                self,
                http="httptools",
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level=logging.WARNING,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=60,
                timeout_graceful_shutdown=2,
            )
        )
        self._thread = threading.Thread(target=self._run, name="feeds", daemon=True)

    def start(self) -> None:
        """Raises OSError if the port is taken."""
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        self._socket = socket.create_server(self._address, family=family, backlog=BACKLOG)
        # Connections inherit it. uvicorn writes an answer in two pieces, and the second would wait until the
        # first is acknowledged: 40 ms, for every change that somebody must hear of (tcp(7)).
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._port = self._socket.getsockname()[1]
        self._thread.start()

    def close(self) -> None:
        """Polls that are held back are answered, and the thread ends."""
        self._is_closing = True
        self._server.should_exit = True
        self._promises.rouse()
        if self._port:
            self._thread.join()
            self._socket.close()
        self._writer.shutdown()

    def at(self) -> FeedAt:
        """Where clients find it. Raises Unavailable before the start."""
        if not self._port:
            raise Unavailable("the feed is not there yet")
        return FeedAt(self._port, self._promises.lease_seconds)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        sweep = asyncio.create_task(self._sweep())
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            sweep.cancel()

    async def _sweep(self) -> None:
        """The rows of those that are gone, now and then."""
        while True:
            await asyncio.sleep(self._promises.lease_seconds / 2)
            try:
                await self._write(self._forget_gone)
            except OSError as error:
                log.warning("sessions that are gone stay recorded for now: %s", error)

    def _forget_gone(self) -> None:
        self._promises.expire()
        self._rows.forget([session for session in self._rows.sessions if self._promises.is_gone(session)])

    async def _write(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    # Requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI app."""
        path = scope["path"]
        try:
            view = self._routes.get(path) if scope["method"] == "POST" else None
            if view is None:
                raise fail(errno.ENOENT, "no such resource")
            body = await _body(receive)
            asked = Asked("POST", path, _headers(scope), lambda: body)
            call = self._seals.open(asked, Role.DIRECTORY)
        except OSError as error:
            log.warning("refused %s %s: %s", scope["method"], quote(path), error.strerror)
            problem = to_problem(error)
            await _send(send, problem.status, msgspec.json.encode(problem), "application/problem+json")
            return
        try:
            status, data = 200, codec.encode(await view(call))
        except Exception as error:
            status, data = failure(call, asked, error)
        await _send(send, status, seal_reply(call, asked, status, data), SEALED)

    async def _poll(self, call: Call) -> Told:
        message = call.message(Poll)
        session = call.ticket.session
        if not self._promises.hear(session, message):
            told = await self._write(lambda: self._join(session))
            assert isinstance(told, Told)
            return told
        loop, roused = asyncio.get_running_loop(), asyncio.Event()

        def rouse() -> None:
            loop.call_soon_threadsafe(roused.set)

        wait_seconds = min(message.wait_seconds, self._promises.lease_seconds / 4)
        told_now = self._promises.tell(session, message.feed, rouse if wait_seconds else None)
        if told_now is not None:
            return told_now
        if not self._is_closing:
            try:
                await asyncio.wait_for(roused.wait(), wait_seconds)
            except TimeoutError:
                pass
        told_now = self._promises.tell(session, message.feed, None)
        assert told_now is not None
        return told_now

    def _join(self, session: int) -> Told:
        self._rows.record(session, self._promises.lease_seconds)
        return self._promises.join(session)

    async def _leave(self, call: Call) -> Empty:
        message = call.message(LeaveFeed)
        session = call.ticket.session

        def leave() -> None:
            self._promises.leave(session, message.feed)
            if self._promises.is_gone(session):
                self._rows.forget([session])

        await self._write(leave)
        return Empty()


def _headers(scope: Scope) -> Callable[[str], str]:
    if len(scope["headers"]) > HEADERS_MAX:
        raise BadMessage("too many headers")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    return lambda name: headers.get(name.lower(), "")


async def _body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadMessage("the body broke off")
        piece: bytes = message.get("body", b"")
        body += piece
        if len(body) > MESSAGE_BYTES_MAX:
            raise TooLarge(f"a poll has at most {MESSAGE_BYTES_MAX} bytes")
        if not message.get("more_body"):
            return body


async def _send(send: Send, status: int, body: bytes, kind: str) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
