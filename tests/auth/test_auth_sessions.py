"""Sessions: they are renewed, end, have children, and are kept on disk; the realm's key is pinned."""

import errno
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from clients.auth import AuthClient, fetch_realm, keyring_of, renew
from clients.session import Answer, Keyring
from tests.support.auth import AUTH, LOCK, House
from wire.errors import TicketRefused
from wire.messages.auth import (
    ChangeUser,
    Realm,
    Session,
    UserInfo,
)
from wire.sealing import fingerprint

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
