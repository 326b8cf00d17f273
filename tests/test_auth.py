"""Who is who: the authentication server, its client, and what the client keeps about realms."""

import errno
import logging
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from clients.auth import AuthClient, fetch_realm, keyring_of, login, renew, signup
from clients.session import Answer, Channel, Keyring, Wire, call_plain
from clients.trust import Trust
from servers.auth.app import make_server
from servers.auth.config import AuthConfig
from servers.auth.passwords import PASSWORD_CHARACTERS_MIN, WAITING_MAX, WORKING_MAX, Passwords, check
from servers.database import sqlite_url
from servers.keys import new_realm_keys
from servers.web import Call, Door, Server
from tests.support.inprocess import InProcessWire, LossyWire
from tests.support.times import Clock
from wire import codec
from wire.errors import BadMessage, BadSeal, SlowDown, TicketRefused, TooLarge, Unavailable, WrongCredentials
from wire.messages.auth import (
    ChangeUser,
    Credential,
    Credentials,
    KeyDerivation,
    LoggedIn,
    Realm,
    SealedCredentials,
    Session,
    UserInfo,
)
from wire.messages.common import Empty
from wire.passwords import credentials_context, derive, token_context
from wire.sealing import fingerprint, seal_to_server, unseal
from wire.tickets import CLIENT_ROLES, Role

AUTH = "http://auth"
LOCK = "http://lock"
PASSWORD = "correct horse"
NONCE = b"n" * 16


class House:
    """An authentication server and a lock service that only tells whom it sees."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.keys = new_realm_keys()
        self.config = AuthConfig(
            self.keys["auth"],
            sqlite_url(folder / "auth" / "auth.db"),
            directory_url="http://directory",
            lock_url=LOCK,
            kdf_memory_kib=8192,
            kdf_iterations=1,
            clock=self.clock,
        )
        self.wire = InProcessWire()
        self.trust = Trust(folder / "state")
        self.server = self.start()
        door = Door("lock", self.keys["lock"].tickets, self.clock)
        door.sealed("GET", "/v1/me", self._who, Role.LOCK)
        self.wire.apps[LOCK] = door.app

    @staticmethod
    def _who(call: Call) -> UserInfo:
        ticket = call.ticket
        return UserInfo(ticket.user, ticket.uid, ticket.gids, ticket.admin, ticket.trusted)

    def start(self) -> Server:
        server = make_server(self.config)
        server.start()
        self.wire.apps[AUTH] = server.app
        return server

    def restart(self) -> None:
        self.server.close()
        self.server = self.start()

    def signup(self, user: str, password: str = PASSWORD, wire: Wire | None = None) -> None:
        signup(AUTH, user, password, wire or self.wire, self.trust)

    def login(self, user: str, password: str = PASSWORD, wire: Wire | None = None) -> Session:
        return login(AUTH, user, password, "test", wire or self.wire, self.trust)

    def client(self, session: Session, wire: Wire | None = None) -> AuthClient:
        wire = wire or self.wire
        return AuthClient(AUTH, keyring_of(AUTH, session, wire), wire)

    def who(self, keyring: Keyring) -> UserInfo:
        return Channel(self.wire, LOCK, Role.LOCK, keyring, 1.0).call("GET", "/v1/me", None, UserInfo)

    def send(self, path: str, credentials: Credentials) -> bytes:
        """As the client does, without the client."""
        realm = fetch_realm(AUTH, self.wire, self.trust)
        sealed = seal_to_server(realm.public_key, codec.encode(credentials), credentials_context(path))
        return call_plain(self.wire, "POST", AUTH + path, codec.encode(SealedCredentials(sealed)))

    def guess_wrong(self, user: str, times: int) -> None:
        for _ in range(times):
            with pytest.raises(WrongCredentials):
                self.login(user, "wrong guess")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.server.close()


@pytest.fixture
def alice(house: House) -> Session:
    """The first user, hence the admin."""
    house.signup("alice")
    return house.login("alice")


@pytest.fixture
def bob(house: House, alice: Session) -> Session:
    """An ordinary user."""
    house.signup("bob")
    return house.login("bob")


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


# Sessions


def test_an_expired_ticket_is_refused_by_services_and_renewed_by_the_keyring(
    house: House, bob: Session
) -> None:
    saved: list[Session] = []
    house.clock.now += bob.lifetime_seconds + 1
    with pytest.raises(TicketRefused):
        house.who(Keyring(bob))
    keyring = keyring_of(AUTH, bob, house.wire, saved.append)
    assert house.who(keyring).user == "bob"
    assert [session.session for session in saved] == [bob.session]
    assert not {c.key for c in saved[0].credentials} & {c.key for c in bob.credentials}


def test_renewal_shows_what_the_database_says_now(house: House, alice: Session, bob: Session) -> None:
    house.client(alice).change_user(bob.uid, ChangeUser(gids=[bob.uid, 50], admin=True))
    assert house.who(Keyring(bob)).gids == [bob.uid]
    renewed = renew(AUTH, bob, house.wire)
    assert house.who(Keyring(renewed)) == UserInfo("bob", bob.uid, [bob.uid, 50], True, False)


def test_renewal_is_refused_after_logout_and_logout_may_be_repeated(house: House, bob: Session) -> None:
    client = house.client(bob)
    client.logout()
    client.logout()
    with pytest.raises(TicketRefused, match="log in again"):
        renew(AUTH, bob, house.wire)
    with pytest.raises(TicketRefused):
        client.open_session("mount")


def test_an_unused_session_ends_and_a_used_one_does_not(house: House, alice: Session, bob: Session) -> None:
    half = house.config.session_idle_seconds / 2 + 1
    house.clock.now += half
    renew(AUTH, alice, house.wire)
    house.clock.now += half
    renew(AUTH, alice, house.wire)
    with pytest.raises(TicketRefused):
        renew(AUTH, bob, house.wire)


def test_a_child_session_is_its_own_and_ends_with_its_parent(house: House, bob: Session) -> None:
    client = house.client(bob)
    child = client.open_session("host:/mnt")
    grandchild = AuthClient(AUTH, child, house.wire).open_session("x" * 500)
    other = house.login("bob")
    assert len({bob.session, child.session.session, grandchild.session.session}) == 3
    assert house.who(child).user == "bob"
    house.clock.now += bob.lifetime_seconds + 1
    assert house.who(grandchild).user == "bob"
    client.logout()
    for keyring in (child, grandchild):
        with pytest.raises(TicketRefused):
            keyring.renew()
    renew(AUTH, other, house.wire)


def test_the_end_of_a_child_leaves_its_parent(house: House, bob: Session) -> None:
    child = house.client(bob).open_session("host:/mnt")
    AuthClient(AUTH, child, house.wire).logout()
    assert renew(AUTH, bob, house.wire).session == bob.session


def test_a_trusted_session_needs_an_admins_word_and_loses_it_with_it(
    house: House, alice: Session, bob: Session
) -> None:
    admin = house.client(alice)
    for client in (admin, house.client(bob)):
        with pytest.raises(PermissionError, match="trust"):
            client.open_session("mount", trusted=True)
    assert admin.change_user(alice.uid, ChangeUser(trusted=True)).trusted
    keyring = admin.open_session("mount", trusted=True)
    assert house.who(keyring).trusted
    assert not house.who(admin.open_session("mount")).trusted
    admin.change_user(alice.uid, ChangeUser(trusted=False))
    keyring.renew()
    assert not house.who(keyring).trusted


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


# The realm and its key


def test_a_realm_says_where_its_servers_are(house: House) -> None:
    realm = fetch_realm(AUTH + "/", house.wire, house.trust)
    assert (realm.realm, realm.directory_url, realm.lock_url) == (
        house.keys["auth"].realm,
        "http://directory",
        LOCK,
    )


def test_a_changed_key_is_refused_before_anything_is_sent(
    house: House, alice: Session, tmp_path: Path
) -> None:
    old = fetch_realm(AUTH, house.wire, house.trust).public_key
    requests: list[str] = []
    impostor = Realm("impostor", b"k" * 32, "", "")

    class Impostor:
        def send(
            self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
        ) -> Answer:
            requests.append(f"{method} {url}")
            return Answer(200, False, msgspec.json.encode(impostor))

    attempts: list[Callable[[], object]] = [
        lambda: house.login("alice", wire=Impostor()),
        lambda: house.signup("carol", wire=Impostor()),
    ]
    for attempt in attempts:
        with pytest.raises(OSError) as caught:
            attempt()
        text = str(caught.value.strerror)
        pinned = next(tmp_path.glob("state/realms/*/fingerprint"))
        assert all(part in text for part in (fingerprint(old), fingerprint(b"k" * 32), str(pinned)))
    assert set(requests) == {f"GET {AUTH}/v1/realm"}
    pinned.unlink()
    house.trust.check_key(AUTH, b"k" * 32)


@pytest.mark.parametrize("answer", [b"", b"<html>", b"{}", msgspec.json.encode(Realm("x", b"short", "", ""))])
def test_what_is_no_realm_is_said_in_a_sentence(house: House, answer: bytes) -> None:
    class Elsewhere:
        def send(
            self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
        ) -> Answer:
            return Answer(200, False, answer)

    with pytest.raises(OSError, match="is not a realm"):
        fetch_realm(AUTH, Elsewhere(), house.trust)


@pytest.mark.parametrize("url", ["", "auth", "ftp://auth", "http://", "file:///etc/passwd", "http://[x"])
def test_what_is_no_url_is_said_in_a_sentence(house: House, url: str) -> None:
    with pytest.raises(OSError, match="not the URL of a realm") as caught:
        fetch_realm(url, house.wire, house.trust)
    assert caught.value.errno == errno.EINVAL


def test_sessions_are_kept_a_user_and_a_realm(house: House, alice: Session, bob: Session) -> None:
    trust = house.trust
    assert trust.load(AUTH) is None
    for session in (alice, bob):
        trust.save(AUTH, session)
        trust.set_default_user(AUTH, session.user)
    assert trust.load(AUTH + "/") == bob
    assert trust.load(AUTH, "alice") == alice
    assert trust.load("http://elsewhere", "alice") is None
    trust.forget(AUTH, "bob")
    trust.forget(AUTH, "bob")
    assert trust.load(AUTH) is None
    assert trust.load(AUTH, "alice") == alice
    with pytest.raises(OSError, match="user name"):
        trust.load(AUTH, "../alice")


def test_what_is_kept_is_for_its_owner_only_and_replaced_whole(
    house: House, alice: Session, tmp_path: Path
) -> None:
    house.trust.save(AUTH, alice)
    house.trust.save(AUTH, renew(AUTH, alice, house.wire))
    house.trust.set_default_user(AUTH, "alice")
    state = tmp_path / "state"
    folders = [state, state / "realms", *(state / "realms").iterdir()]
    files = sorted(folders[-1].iterdir())
    assert [path.name for path in files] == ["alice.session", "default", "fingerprint"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    files[0].write_bytes(b"rubbish")
    with pytest.raises(OSError, match="log in again"):
        house.trust.load(AUTH)


def test_of_two_first_keys_one_is_pinned(house: House) -> None:
    outcomes: list[bool] = []

    def pin(key: bytes) -> None:
        try:
            house.trust.check_key("http://new", key)
            outcomes.append(True)
        except OSError:
            outcomes.append(False)

    threads = [threading.Thread(target=pin, args=(bytes([number]) * 32,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(True) == 1
