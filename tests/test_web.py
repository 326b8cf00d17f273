"""The door of every service: what is opened, what is refused, and that replies belong to their requests."""

import base64
import errno
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest
from flask import Flask

from clients import session as session_module
from clients.session import Answer, Channel, Keyring
from servers.seals import Call
from servers.web import Door
from tests.support.inprocess import InProcessWire, LossyWire, make_keyring
from wire.errors import BadSeal, Busy, DfsError, SlowDown, TicketRefused, fail, from_problem, to_problem
from wire.messages.common import Empty, Health
from wire.messages.lock import Held
from wire.sealing import new_key
from wire.tickets import Role

KEY = new_key()
URL = "http://lock"


def make_app() -> Flask:
    door = Door("lock", {Role.LOCK: KEY})

    def double(call: Call) -> Held:
        held = call.message(Held)
        return Held(held.ino * 2, held.token * 2)

    def refuse(call: Call) -> Empty:
        raise Busy("bob@there has it")

    def crash(call: Call) -> Empty:
        raise ZeroDivisionError

    door.sealed("POST", "/v1/double", double, Role.LOCK)
    door.sealed("GET", "/v1/refuse", refuse, Role.LOCK)
    door.sealed("GET", "/v1/crash", crash, Role.LOCK)
    return door.app


@pytest.fixture
def wire() -> Iterator[InProcessWire]:
    wire = InProcessWire()
    wire.apps[URL] = make_app()
    yield wire


def channel(wire: InProcessWire, keyring: Keyring | None = None) -> Channel:
    return Channel(wire, URL, Role.LOCK, keyring or make_keyring({Role.LOCK: KEY}), deadline_seconds=5)


def test_a_message_goes_there_and_its_answer_comes_back(wire: InProcessWire) -> None:
    assert channel(wire).call("POST", "/v1/double", Held(4, 5), Held) == Held(8, 10)


def test_an_error_arrives_as_it_was_raised(wire: InProcessWire) -> None:
    with pytest.raises(Busy, match="bob@there has it"):
        channel(wire).call("GET", "/v1/refuse", None, Empty)


def test_the_unforeseen_is_eio_and_logged_whole(
    wire: InProcessWire, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="internal error") as caught:
        channel(wire).call("GET", "/v1/crash", None, Empty)
    assert caught.value.errno == errno.EIO
    assert "ZeroDivisionError" in caplog.text


def test_a_message_that_does_not_fit_names_the_field(wire: InProcessWire) -> None:
    with pytest.raises(OSError, match="ino") as caught:
        channel(wire).call("POST", "/v1/double", Empty(), Held)
    assert caught.value.errno == errno.EINVAL


def test_a_ticket_of_another_realm_or_role_or_time_is_refused(wire: InProcessWire) -> None:
    for keyring in (
        make_keyring({Role.LOCK: new_key()}),
        make_keyring({Role.FILES: KEY}),
        make_keyring({Role.LOCK: KEY}, expires=1.0),
    ):
        with pytest.raises(TicketRefused):
            channel(wire, keyring).call("POST", "/v1/double", Held(1, 1), Held)


def test_what_was_changed_on_the_way_is_refused(wire: InProcessWire) -> None:
    class Meddler:
        def __init__(self, change: str) -> None:
            self.change = change

        def send(
            self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
        ) -> Answer:
            headers = dict(headers)
            if self.change == "body":
                body = body[:-1] + bytes([body[-1] ^ 1])
            if self.change == "request id":
                headers["DFS-Request"] += "1"
            if self.change == "url":
                url += "?x=1"
            answer = wire.send(method, url, headers, body, silence_seconds)
            if self.change == "reply":
                return Answer(answer.status, answer.sealed, answer.body[:-1] + bytes([answer.body[-1] ^ 1]))
            if self.change == "status":
                return Answer(201, answer.sealed, answer.body)
            return answer

    for change, error in (
        ("body", TicketRefused),
        ("request id", TicketRefused),
        ("url", TicketRefused),
        ("reply", BadSeal),
        ("status", BadSeal),
    ):
        meddled = Channel(Meddler(change), URL, Role.LOCK, make_keyring({Role.LOCK: KEY}), deadline_seconds=1)
        with pytest.raises(error):
            meddled.call("POST", "/v1/double", Held(1, 1), Held)


def test_a_request_gets_through_a_bad_line(wire: InProcessWire) -> None:
    lossy = LossyWire(wire, seed=1)
    patient = Channel(lossy, URL, Role.LOCK, make_keyring({Role.LOCK: KEY}), deadline_seconds=30)
    for number in range(1, 30):
        assert patient.call("POST", "/v1/double", Held(number, 1), Held).ino == 2 * number
    assert lossy.lost_requests
    assert lossy.lost_replies


def test_a_request_is_not_sent_again_after_a_long_sleep(
    wire: InProcessWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the service may have forgotten its reply, and would carry it out once more."""
    sent: list[str] = []

    class AsleepWire(InProcessWire):
        def send(
            self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
        ) -> Answer:
            sent.append(headers["DFS-Request"])
            monkeypatch.setattr(session_module, "now_awake_or_not", lambda: 1e9)
            raise TicketRefused("it has expired meanwhile")

    old = make_keyring({Role.LOCK: KEY}).session
    with pytest.raises(TicketRefused):
        channel(AsleepWire(), Keyring(old, lambda session: session)).call(
            "POST", "/v1/double", Held(1, 1), Held
        )
    assert len(sent) == 1


def test_who_dies_while_he_sends_is_no_reason_to_worry(
    wire: InProcessWire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = wire.apps[URL]
    inner = app.wsgi_app

    def misses_the_end(environ: dict[str, Any], start: Any) -> Any:
        environ["CONTENT_LENGTH"] = str(int(environ["CONTENT_LENGTH"]) + 1)
        return inner(environ, start)

    monkeypatch.setattr(app, "wsgi_app", misses_the_end)
    with caplog.at_level(logging.INFO, "servers.web"), pytest.raises(OSError):
        channel(wire).call("POST", "/v1/double", Held(4, 5), Held)
    said = {(record.levelname, "not as long" in record.message) for record in caplog.records}
    assert said == {("INFO", True)}


def test_rubbish_is_answered_with_a_problem_and_no_traceback(wire: InProcessWire) -> None:
    client = wire.apps[URL].test_client()
    assert client.post("/v1/double", data=b"x").status_code == 400
    assert client.post("/v1/nothing").status_code == 404
    assert client.get("/v1/double").status_code == 405
    ticket = base64.b64encode(b"x" * 100).decode()
    refused = client.post("/v1/double", headers={"DFS-Request": "1.1", "DFS-Ticket": ticket}, data=b"x")
    assert refused.status_code == 401
    assert (
        client.post("/v1/double", headers={"DFS-Request": "1.1", "DFS-Ticket": "x" * 9000}).status_code == 413
    )
    assert msgspec.json.decode(client.get("/healthz").data, type=Health).service == "lock"
    assert b"dfs_requests_total" in client.get("/metrics").data


@pytest.mark.parametrize(
    "error",
    [
        Busy("taken"),
        SlowDown("wait", 3.0),
        fail(errno.ENOENT),
        fail(errno.ENOSPC, "no room"),
        DfsError("odd"),
    ],
)
def test_errors_survive_the_problem_document(error: OSError) -> None:
    copy = from_problem(to_problem(error))
    assert (copy.errno, copy.strerror) == (error.errno, error.strerror)
    assert isinstance(copy, type(error)) or type(error) is DfsError
