"""Signing up, logging in, and changing users, over the real authentication server."""

import errno
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from clients.auth import renew
from clients.session import Answer, Keyring
from servers.auth.passwords import PASSWORD_CHARACTERS_MIN, check
from tests.support.auth import AUTH, NONCE, PASSWORD, House
from tests.support.inprocess import LossyWire
from wire import codec
from wire.errors import BadSeal, TicketRefused, WrongCredentials
from wire.messages.auth import (
    ChangeUser,
    Credentials,
    KeyDerivation,
    LoggedIn,
    Session,
    UserInfo,
)
from wire.passwords import derive, token_context
from wire.sealing import unseal
from wire.tickets import CLIENT_ROLES

# Sign-up


def test_the_first_user_is_the_admin_and_the_second_is_not(alice: Session, bob: Session) -> None:
    assert (alice.uid, alice.gids, alice.admin, alice.trusted) == (10001, [10001], True, False)
    assert (bob.uid, bob.gids, bob.admin, bob.trusted) == (10002, [10002], False, False)


def test_of_many_first_users_one_is_admin(house: House) -> None:
    names = [f"user{number}" for number in range(6)]
    threads = [threading.Thread(target=house.signup, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sessions = [house.login(name) for name in names]
    assert sum(session.admin for session in sessions) == 1
    assert len({session.uid for session in sessions}) == len(names)


def test_a_taken_name_is_eexist_and_keeps_its_password(house: House, alice: Session) -> None:
    with pytest.raises(FileExistsError, match="alice is taken"):
        house.signup("alice", "another password")
    assert house.login("alice").uid == alice.uid


@pytest.mark.parametrize("name", ["Alice", "../alice", "al ice", "x" * 64 + "x", "1alice", "a\n"])
def test_a_name_that_cannot_be_one_is_refused(house: House, name: str) -> None:
    with pytest.raises(OSError) as caught:
        house.signup(name)
    assert caught.value.errno == errno.EINVAL


def test_a_short_password_is_refused(house: House) -> None:
    with pytest.raises(OSError, match="at least 8 characters") as caught:
        house.signup("alice", "x" * (PASSWORD_CHARACTERS_MIN - 1))
    assert caught.value.errno == errno.EINVAL
    house.signup("alice", "x" * PASSWORD_CHARACTERS_MIN)


def test_a_sign_up_sent_again_succeeds_for_a_while(house: House) -> None:
    credentials = Credentials("alice", PASSWORD, "", NONCE)
    first = house.send("/v1/signup", credentials)
    assert house.send("/v1/signup", credentials) == first
    house.clock.now += 3600
    with pytest.raises(FileExistsError):
        house.send("/v1/signup", credentials)


@pytest.mark.parametrize("seed", range(3))
def test_sign_up_and_login_get_through_a_bad_line(house: House, seed: int) -> None:
    lossy = LossyWire(house.wire, seed, loss=0.3)
    for number in range(6):
        house.signup(f"user{number}", wire=lossy)
        session = house.login(f"user{number}", wire=lossy)
        assert (session.uid, session.admin) == (10001 + number, number == 0)
    assert lossy.lost_requests
    assert lossy.lost_replies


# Login


def test_a_login_gives_a_ticket_for_each_role_that_the_service_believes(house: House, bob: Session) -> None:
    assert [credential.role for credential in bob.credentials] == list(CLIENT_ROLES)
    assert house.who(Keyring(bob)) == UserInfo("bob", 10002, [10002], False, False)


def test_a_wrong_password_and_an_unknown_user_look_the_same(house: House, alice: Session) -> None:
    answers = []
    for user in ("alice", "nobody"):
        with pytest.raises(WrongCredentials) as caught:
            house.login(user, "wrong guess")
        answers.append((type(caught.value), caught.value.args))
    assert answers[0] == answers[1]


def test_the_token_can_be_read_with_the_password_only(house: House, alice: Session) -> None:
    answer = codec.decode(house.send("/v1/login", Credentials("alice", PASSWORD, "", NONCE)), LoggedIn)
    _proof, key = derive(PASSWORD, answer.derivation)
    assert codec.decode(unseal(key, answer.token, token_context(NONCE)), Session).user == "alice"
    with pytest.raises(BadSeal):
        unseal(key, answer.token, token_context(b"m" * 16))
    proof, other = derive(PASSWORD + "!", answer.derivation)
    for wrong in (proof, other):
        with pytest.raises(BadSeal):
            unseal(wrong, answer.token, token_context(NONCE))


def test_the_database_holds_neither_the_password_nor_what_opens_the_token(
    house: House, alice: Session, tmp_path: Path
) -> None:
    answer = codec.decode(house.send("/v1/login", Credentials("alice", PASSWORD, "", NONCE)), LoggedIn)
    proof, key = derive(PASSWORD, answer.derivation)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "auth").iterdir())
    assert answer.derivation.salt in stored
    assert not any(secret in stored for secret in (PASSWORD.encode(), proof, key))


def test_an_answer_that_the_password_does_not_open_is_refused(house: House, alice: Session) -> None:
    false = LoggedIn(KeyDerivation(b"s" * 16, 1, 1, 8192), b"t" * 100)

    class FalseServer:
        def send(
            self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
        ) -> Answer:
            if url.endswith("/v1/login"):
                return Answer(200, False, codec.encode(false))
            return house.wire.send(method, url, headers, body, silence_seconds)

    with pytest.raises(BadSeal, match="cannot be opened with the password"):
        house.login("alice", wire=FalseServer())


def test_the_same_letters_typed_otherwise_are_the_same_password(house: House) -> None:
    house.signup("alice", "caf\u00e9 creme")
    assert house.login("alice", "cafe\u0301 creme").user == "alice"


def test_a_login_sent_again_opens_no_second_session(house: House, alice: Session) -> None:
    def session() -> Session:
        answer = codec.decode(house.send("/v1/login", Credentials("alice", PASSWORD, "", NONCE)), LoggedIn)
        _proof, key = derive(PASSWORD, answer.derivation)
        return codec.decode(unseal(key, answer.token, token_context(NONCE)), Session)

    first = session()
    assert session().session == first.session
    house.client(first).logout()
    with pytest.raises(TicketRefused, match="ended"):
        session()


def test_users_and_numbers_outlive_the_server(house: House, alice: Session) -> None:
    house.restart()
    again = house.login("alice")
    assert again.uid == alice.uid
    assert again.session > alice.session
    house.signup("bob")
    assert house.login("bob").uid == 10002


# Users


def test_only_admins_see_and_change_users(house: House, alice: Session, bob: Session) -> None:
    assert [user.user for user in house.client(alice).users()] == ["alice", "bob"]
    attempts: list[Callable[[], object]] = [
        house.client(bob).users,
        lambda: house.client(bob).change_user(bob.uid, ChangeUser(admin=True)),
    ]
    for attempt in attempts:
        with pytest.raises(PermissionError, match="only an admin"):
            attempt()
    with pytest.raises(FileNotFoundError):
        house.client(alice).change_user(99, ChangeUser(admin=True))


def test_an_admin_who_is_one_no_more_is_refused_though_his_ticket_says_so(
    house: House, alice: Session, bob: Session
) -> None:
    house.client(alice).change_user(bob.uid, ChangeUser(admin=True))
    house.client(bob).change_user(alice.uid, ChangeUser(admin=False))
    with pytest.raises(PermissionError):
        house.client(alice).users()
    with pytest.raises(PermissionError, match="only admin"):
        house.client(bob).change_user(bob.uid, ChangeUser(admin=False))


def test_a_replayed_change_of_a_user_changes_nothing(house: House, alice: Session, bob: Session) -> None:
    sent: list[Callable[[], Answer]] = []

    class Listener:
        def send(
            self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
        ) -> Answer:
            sent.append(lambda: house.wire.send(method, url, headers, body, silence_seconds))
            return sent[-1]()

    house.client(alice, Listener()).change_user(bob.uid, ChangeUser(trusted=True))
    house.client(alice).change_user(bob.uid, ChangeUser(trusted=False))
    assert sent[0]().status == 200
    assert [user.trusted for user in house.client(alice).users()] == [False, False]


def test_a_password_change_ends_the_other_sessions(house: House, bob: Session) -> None:
    other = house.login("bob")
    child = house.client(bob).open_session("mount")
    house.client(bob).change_password(PASSWORD, "battery staple")
    assert renew(AUTH, bob, house.wire).session == bob.session
    for ended in (other, child.session):
        with pytest.raises(TicketRefused):
            renew(AUTH, ended, house.wire)
    with pytest.raises(WrongCredentials):
        house.login("bob")
    assert house.login("bob", "battery staple").uid == bob.uid


def test_no_login_with_the_old_password_slips_in_after_a_change(
    house: House, bob: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, changed = threading.Event(), threading.Event()

    def check_and_pause(password: str, derivation: KeyDerivation, verifier: bytes) -> tuple[bool, bytes]:
        outcome = check(password, derivation, verifier)
        if not checked.is_set():  # the login's; the password change comes second
            checked.set()
            changed.wait(30)
        return outcome

    monkeypatch.setattr("servers.auth.service.check", check_and_pause)
    outcomes: list[object] = []

    def log_in() -> None:
        try:
            outcomes.append(house.login("bob"))
        except OSError as error:
            outcomes.append(type(error))

    late = threading.Thread(target=log_in)
    late.start()
    assert checked.wait(30)
    house.client(bob).change_password(PASSWORD, "battery staple")
    changed.set()
    late.join()
    assert outcomes == [WrongCredentials]


def test_a_password_change_needs_the_old_one_and_a_good_new_one(house: House, bob: Session) -> None:
    with pytest.raises(WrongCredentials):
        house.client(bob).change_password("wrong guess", "battery staple")
    with pytest.raises(OSError, match="at least 8 characters"):
        house.client(bob).change_password(PASSWORD, "short")
    assert house.login("bob").uid == bob.uid


@pytest.mark.parametrize("seed", [1, 2])
def test_changes_happen_once_over_a_bad_line(house: House, alice: Session, bob: Session, seed: int) -> None:
    lossy = LossyWire(house.wire, seed, loss=0.3)
    password = PASSWORD
    for number in range(4):
        new = f"battery staple {number}"
        house.client(bob, lossy).change_password(password, new)
        password = new
        changed = house.client(alice, lossy).change_user(bob.uid, ChangeUser(gids=[bob.uid, number]))
        assert changed.gids == [bob.uid, number]
    assert house.login("bob", password).gids == [bob.uid, 3]
    assert lossy.lost_replies
