"""Who guesses is slowed down; what is forged, malformed or secret gets nowhere."""

import logging
import threading

import msgspec
import pytest

from clients.auth import fetch_realm, renew
from clients.session import Channel, Keyring, call_plain
from servers.auth.passwords import WAITING_MAX, WORKING_MAX, Passwords
from servers.keys import new_realm_keys
from tests.support.auth import AUTH, NONCE, PASSWORD, House
from wire import codec
from wire.errors import BadMessage, BadSeal, SlowDown, TicketRefused, TooLarge, Unavailable, WrongCredentials
from wire.messages.auth import (
    ChangeUser,
    Credential,
    Credentials,
    SealedCredentials,
    Session,
)
from wire.messages.common import Empty
from wire.passwords import credentials_context
from wire.sealing import seal_to_server
from wire.tickets import Role

# Guessing


@pytest.mark.parametrize("user", ["alice", "nobody"])
def test_guessing_is_slowed_down_more_and_more(house: House, alice: Session, user: str) -> None:
    house.guess_wrong(user, 3)
    for wait in (1, 2, 4, 8, 16, 32, 60, 60):
        house.clock.now += wait - 0.5
        with pytest.raises(SlowDown) as caught:
            house.login(user)  # not even the right one is looked at
        assert caught.value.retry_after_seconds == pytest.approx(0.5)
        house.clock.now += 0.5
        house.guess_wrong(user, 1)


def test_slow_down_is_429_with_retry_after_and_survives_a_restart(house: House, alice: Session) -> None:
    house.guess_wrong("alice", 3)
    house.restart()
    realm = fetch_realm(AUTH, house.wire, house.trust)
    credentials = codec.encode(Credentials("alice", PASSWORD, "", NONCE))
    sealed = seal_to_server(realm.public_key, credentials, credentials_context("/v1/login"))
    answer = house.server.app.test_client().post("/v1/login", data=codec.encode(SealedCredentials(sealed)))
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")


def test_a_right_password_ends_the_slow_down(house: House, alice: Session) -> None:
    house.guess_wrong("alice", 3)
    house.clock.now += 1
    house.login("alice")
    house.guess_wrong("alice", 3)


def test_repeating_a_login_buys_no_guesses(house: House, alice: Session) -> None:
    overheard = Credentials("alice", PASSWORD, "", NONCE)
    house.send("/v1/login", overheard)
    house.guess_wrong("alice", 2)
    for _ in range(5):
        house.send("/v1/login", overheard)
    house.guess_wrong("alice", 1)
    with pytest.raises(SlowDown):
        house.login("alice")


def test_many_guesses_at_once_are_no_more_than_one_after_the_other(house: House, alice: Session) -> None:
    outcomes: list[type[BaseException]] = []

    def guess() -> None:
        try:
            house.login("alice", "wrong guess")
        except OSError as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=guess) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(WrongCredentials) == 3
    assert outcomes.count(SlowDown) == 9


def test_no_more_requests_wait_to_derive_than_there_is_room_for() -> None:
    passwords = Passwords(8192, 1)
    refused, done = threading.Event(), threading.Event()
    working = threading.Semaphore(0)

    def work() -> None:
        try:
            with passwords.slot():
                working.release()
                done.wait(30)
        except Unavailable:
            refused.set()

    threads = [threading.Thread(target=work) for _ in range(WAITING_MAX + 1)]
    for thread in threads:
        thread.start()
    assert refused.wait(30)
    assert [working.acquire(timeout=30) for _ in range(WORKING_MAX)] == [True] * WORKING_MAX
    assert not working.acquire(blocking=False)
    done.set()
    for thread in threads:
        thread.join()
    assert all(working.acquire(blocking=False) for _ in range(WAITING_MAX - WORKING_MAX))


def test_right_passwords_all_at_once_are_not_slowed_down(house: House, alice: Session) -> None:
    sessions: list[Session] = []
    threads = [threading.Thread(target=lambda: sessions.append(house.login("alice"))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({session.session for session in sessions}) == 10


def test_nobody_else_is_slowed_down(house: House, alice: Session, bob: Session) -> None:
    house.guess_wrong("alice", 3)
    assert house.login("bob").uid == bob.uid


# What does not belong there


@pytest.mark.parametrize("path", ["/v1/signup", "/v1/login"])
def test_malformed_and_forged_credentials_are_answered_and_logged(
    house: House, alice: Session, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    public_key = fetch_realm(AUTH, house.wire, house.trust).public_key
    other_path = "/v1/login" if path == "/v1/signup" else "/v1/signup"
    good = codec.encode(Credentials("carol", PASSWORD, "", NONCE))

    def sealed(data: bytes, for_path: str) -> bytes:
        return codec.encode(
            SealedCredentials(seal_to_server(public_key, data, credentials_context(for_path)))
        )

    for body, error in (
        (b"", BadMessage),
        (b"rubbish", BadMessage),
        (codec.encode(SealedCredentials(b"")), BadSeal),
        (codec.encode(SealedCredentials(b"x" * 200)), BadSeal),
        (codec.encode(SealedCredentials(b"x" * 9000)), BadMessage),
        (b"x" * 20_000, TooLarge),
        (sealed(b"rubbish", path), BadMessage),
        (sealed(codec.encode(Credentials("carol", "", "", NONCE)), path), BadMessage),
        (sealed(codec.encode(Credentials("carol", PASSWORD, "", b"short")), path), BadMessage),
        (sealed(good, other_path), BadSeal),
        (sealed(good, path)[:-1] + b"?", BadSeal),
    ):
        with pytest.raises(error):
            call_plain(house.wire, "POST", AUTH + path, body)
    assert caplog.text.count(f"refused POST {path}") == 11
    assert [user.user for user in house.client(alice).users()] == ["alice"]


def test_a_forged_or_foreign_ticket_is_refused(house: House, alice: Session, bob: Session) -> None:
    stranger = new_realm_keys()["auth"].tickets
    by_role = {credential.role: credential for credential in bob.credentials}
    auth, lock = by_role[Role.AUTH], by_role[Role.LOCK]
    for forged in (
        Credential(Role.AUTH, lock.key, lock.ticket),  # another role's
        Credential(Role.AUTH, auth.key, auth.ticket[:-1] + bytes([auth.ticket[-1] ^ 1])),
        Credential(Role.AUTH, stranger[Role.AUTH], auth.ticket),  # without its key
    ):
        session = msgspec.structs.replace(bob, credentials=[forged])
        with pytest.raises(TicketRefused):
            renew(AUTH, session, house.wire)


def test_malformed_messages_are_refused_and_change_nothing(house: House, alice: Session) -> None:
    channel = Channel(house.wire, AUTH, Role.AUTH, Keyring(alice))
    for method, path, request_id in (
        ("POST", "/v1/sessions", "r"),
        ("PUT", "/v1/password", f"{alice.session:x}.1"),
    ):
        with pytest.raises(BadMessage):
            channel.call(method, path, Empty(), Session, request_id=request_id)
    with pytest.raises(BadMessage, match="gids"):
        channel.call("PUT", "/v1/users/10001", ChangeUser(gids=[]), Empty, request_id=f"{alice.session:x}.2")
    assert house.login("alice").gids == [10001]


def test_the_logs_tell_who_but_never_the_password(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    house.signup("alice", "secret-first")
    session = house.login("alice", "secret-first")
    for _ in range(3):
        with pytest.raises(WrongCredentials):
            house.login("alice", "secret-guess")
    with pytest.raises(SlowDown):
        house.login("alice", "secret-guess")
    house.clock.now += 60
    house.client(session).change_password("secret-first", "secret-second")
    with pytest.raises(OSError):
        house.client(session).change_password("secret-second", "secret")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([text for text in warnings if "wrong user name or password for alice" in text]) == 3
    assert len([text for text in warnings if "login of alice refused" in text]) == 1
    assert "secret" not in caplog.text
