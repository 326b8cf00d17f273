"""The feed over HTTP: polls that are held back, and changes that wait for them."""

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from servers.directory import promises
from tests.support.directory import ALICE, DirectoryRealm, User, commit
from tests.support.times import wait_until
from wire.errors import BadMessage, Problem, Unavailable
from wire.messages.directory import ROOT_INO, Create, LeaveFeed, Mutated, Mutations, Poll, SetAttr, Told

T = TypeVar("T")
LONG_SECONDS = 20.0
"""A lease that no test waits for."""

PATIENCE_SECONDS = 20.0
"""A busy machine is silent for longer than a mount would wait."""


class Listener:
    """A mount's feed: it drops at once what it is told of."""

    def __init__(self, user: User) -> None:
        self.user = user
        user.feed.find(PATIENCE_SECONDS)
        self.told = user.feed.poll(Poll(0, 0, False), PATIENCE_SECONDS)
        self.dropped: list[int] = []
        self.poll()

    def poll(self, wait_seconds: float = 0.0, *, seen: int | None = None) -> Told:
        """Polls once."""
        poll = Poll(self.told.feed, self.told.last if seen is None else seen, True, wait_seconds)
        self.told = self.user.feed.poll(poll, PATIENCE_SECONDS)
        self.dropped += self.told.inos
        return self.told


@pytest.fixture
def realm(tmp_path: Path) -> Iterator[DirectoryRealm]:
    realm = DirectoryRealm(tmp_path, lease_seconds=LONG_SECONDS)
    realm.listen()
    yield realm
    realm.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def is_held(realm: DirectoryRealm, future: Future[T]) -> bool:
    """A change has reached the directory and its answer is held back."""
    wait_until(lambda: realm.server._promises._waits)
    return not future.done()


def test_a_poll_is_held_back_until_something_changes(realm: DirectoryRealm, pool: ThreadPoolExecutor) -> None:
    reader, writer = Listener(realm.user(ALICE)), realm.user(ALICE)
    reader.user.client.resolve(ROOT_INO, [])
    polling = pool.submit(reader.poll, 10.0)
    created = pool.submit(writer.mkdir, b"d")
    assert polling.result(10).inos == [ROOT_INO]
    assert is_held(realm, created)
    reader.poll()
    assert created.result(10).nlink == 2


@pytest.mark.parametrize("kind", ["resolve", "attrs", "list", "mutate"])
def test_what_an_answer_shows_is_promised(realm: DirectoryRealm, pool: ThreadPoolExecutor, kind: str) -> None:
    writer = realm.user(ALICE)
    file = writer.create(b"f")
    reader = Listener(realm.user(ALICE))
    client = reader.user.client
    asked: dict[str, Callable[[], object]] = {
        "resolve": lambda: client.resolve(ROOT_INO, [b"f"]),
        "attrs": lambda: client.attrs([file.ino]),
        "list": lambda: client.list_page(ROOT_INO),
        "mutate": lambda: client.apply([SetAttr(file.ino, mode=0o600)], feed=reader.told.feed),
    }
    asked[kind]()
    changed = pool.submit(writer.do, SetAttr(file.ino, mode=0o640))
    assert is_held(realm, changed)
    assert reader.poll().inos == [file.ino]
    reader.poll()
    changed.result(10)


def test_a_name_that_is_not_there_is_promised_with_its_directory(
    realm: DirectoryRealm, pool: ThreadPoolExecutor
) -> None:
    reader, writer = Listener(realm.user(ALICE)), realm.user(ALICE)
    assert reader.user.client.resolve(ROOT_INO, [b"new"]).errno == "ENOENT"
    created = pool.submit(writer.create, b"new")
    assert is_held(realm, created)
    reader.poll()
    reader.poll()
    created.result(10)


def test_two_that_create_in_one_directory_at_once_hear_each_other(
    realm: DirectoryRealm, pool: ThreadPoolExecutor
) -> None:
    mounts = [Listener(realm.user(ALICE)) for _ in range(2)]
    ended = threading.Event()

    def listen(mount: Listener) -> None:
        while not ended.is_set():
            mount.poll(0.05)

    def create(mount: Listener, number: int) -> None:
        for count in range(10):
            mount.user.client.list_page(ROOT_INO)
            mount.user.create(b"%d.%d" % (number, count))

    listening = [pool.submit(listen, mount) for mount in mounts]
    creating = [pool.submit(create, mount, number) for number, mount in enumerate(mounts)]
    for done in creating:
        done.result(30)
    ended.set()
    for done in listening:
        done.result(10)


def test_a_reply_that_was_lost_is_given_again_only_when_all_know(
    realm: DirectoryRealm, pool: ThreadPoolExecutor
) -> None:
    """The first request's thread is still there; the second one waits by itself."""
    reader, writer = Listener(realm.user(ALICE)), Listener(realm.user(ALICE))
    reader.user.client.resolve(ROOT_INO, [])
    channel = writer.user.client._channel
    message = Mutations(0, [Create(ROOT_INO, b"d", 0o040755)], feed=writer.told.feed)

    def send() -> Mutated:
        number = f"{writer.user.session:x}.77"
        return channel.call("POST", "/v1/mutations", message, Mutated, request_id=number)

    first = pool.submit(send)
    assert is_held(realm, first)
    again = pool.submit(send)
    wait_until(lambda: realm.server._promises._waits == 2)
    assert not again.done()
    reader.poll()
    reader.poll()
    assert first.result(10).unpromised == []
    # What has changed since the first answer is not known any more.
    assert again.result(10).results == first.result().results
    assert len(again.result().unpromised) == 2


def test_a_commit_that_was_made_before_waits_too(realm: DirectoryRealm, pool: ThreadPoolExecutor) -> None:
    reader, writer = Listener(realm.user(ALICE)), realm.user(ALICE)
    file, grant = writer.open_new(b"f")
    reader.user.client.attrs([file.ino])
    op = commit(file, grant, 10, [], keep=0)
    first = pool.submit(writer.do, op)
    assert is_held(realm, first)
    again = pool.submit(writer.do, op)
    wait_until(lambda: realm.server._promises._waits == 2)
    assert not again.done()
    reader.poll()
    reader.poll()
    assert again.result(10) == first.result(10)


def test_a_session_that_is_silent_costs_its_lease(tmp_path: Path) -> None:
    realm = DirectoryRealm(tmp_path, lease_seconds=0.3)
    realm.listen()
    reader, writer = Listener(realm.user(ALICE)), realm.user(ALICE)
    reader.user.client.resolve(ROOT_INO, [])
    began = time.monotonic()
    reader.poll()
    writer.mkdir(b"d")
    assert time.monotonic() - began >= 0.3
    wait_until(lambda: not realm.server.feed._rows.sessions)
    assert reader.poll().is_new
    realm.close()


def test_after_a_restart_changes_wait_for_the_sessions_that_were_there(
    realm: DirectoryRealm, pool: ThreadPoolExecutor
) -> None:
    reader, writer = Listener(realm.user(ALICE)), realm.user(ALICE)
    realm.restart()
    realm.listen()
    reader.user.feed.find()
    created = pool.submit(writer.mkdir, b"d")
    assert is_held(realm, created)
    assert writer.names() == [b"d"]
    assert reader.poll().is_new
    assert not created.done()
    reader.poll()
    created.result(10)
    reader.user.feed.leave()
    realm.restart()
    writer.mkdir(b"e")


def test_who_leaves_is_asked_no_more(realm: DirectoryRealm) -> None:
    reader, writer = Listener(realm.user(ALICE)), realm.user(ALICE)
    reader.user.client.resolve(ROOT_INO, [])
    reader.user.feed.leave()
    writer.mkdir(b"d")
    assert realm.server.feed._rows.sessions == []


def test_a_feed_that_has_begun_since_does_not_leave(realm: DirectoryRealm) -> None:
    reader = Listener(realm.user(ALICE))
    channel = reader.user.feed._channel()
    channel.call("POST", "/v1/feed/leave", LeaveFeed(reader.told.feed + 1), msgspec.Struct)
    assert not reader.poll().is_new


def test_too_many_that_wait_are_sent_away_and_come_again(
    realm: DirectoryRealm, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = Listener(realm.user(ALICE)), realm.user(ALICE)
    reader.user.client.resolve(ROOT_INO, [])
    monkeypatch.setattr(promises, "WAITING_MAX", 0)
    message = Mutations(0, [Create(ROOT_INO, b"d", 0o040755)])
    with pytest.raises(Unavailable):
        writer.client._channel.mutate("/v1/mutations", lambda _: message, Mutated, deadline_seconds=0.0)
    assert writer.names() == [b"d"]


def test_a_held_poll_ends_with_the_server(realm: DirectoryRealm, pool: ThreadPoolExecutor) -> None:
    reader = Listener(realm.user(ALICE))
    polling = pool.submit(reader.poll, 10.0)
    wait_until(lambda: any(feed.wake for feed in realm.server._promises._feeds.values()))
    realm.server.feed.close()
    assert polling.result(5).inos == []


def test_an_answer_does_not_wait_for_acknowledgements_of_the_network(realm: DirectoryRealm) -> None:
    assert realm.server.feed._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_poll_that_has_seen_too_much_is_refused(realm: DirectoryRealm) -> None:
    reader = Listener(realm.user(ALICE))
    with pytest.raises(BadMessage):
        reader.poll(seen=7)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/feed", {}, 400),
        ("POST", "/v1/feed", {"DFS-Request": "1", "DFS-Ticket": "bm9uZQ=="}, 401),
        ("POST", "/v1/feed", {"DFS-Request": "1", "DFS-Ticket": "%%%"}, 401),
        ("POST", "/v1/else", {}, 404),
        ("GET", "/v1/feed", {}, 404),
    ],
)
def test_what_cannot_be_opened_is_refused(
    realm: DirectoryRealm, method: str, path: str, headers: Mapping[str, str], status: int
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", realm.server.feed.at().port)
    connection.request(method, path, b"x" if method == "POST" else None, dict(headers))
    answer = connection.getresponse()
    assert answer.status == status
    assert msgspec.json.decode(answer.read(), type=Problem).status == status
    connection.close()


def test_a_poll_that_is_too_large_is_refused(realm: DirectoryRealm) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", realm.server.feed.at().port)
    connection.request("POST", "/v1/feed", b"x" * 10_000)
    assert connection.getresponse().status == 413
    connection.close()
