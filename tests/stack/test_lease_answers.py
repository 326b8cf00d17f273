"""Under a lease: what is answered late, or not at all, makes nobody believe what has changed meanwhile."""

import errno
import threading
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from cache.metadata import Asked
from clients.session import Answer, Wire
from tests.support.stack import Client, Stack
from tests.support.times import wait_until
from tests.support.vfs import WatchedWire, raises
from wire.errors import ReplyLost, Unavailable
from wire.messages.directory import ROOT_INO, Attr, Mutated


def test_a_directory_whose_making_was_answered_late_is_asked_about(
    leased: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = leased
    wire, send = one._wire, one._wire.send

    def late(method: str, url: str, *more: Any) -> Answer:
        answer = send(method, url, *more)
        if url.endswith("/v1/mutations"):
            monkeypatch.setattr(wire, "send", send)
            two.write("/folder/file", b"content")
        return answer

    monkeypatch.setattr(wire, "send", late)
    ino = one.mkdir("/folder").ino
    assert one.vfs.lookup(ino, b"file", None).size == 7


class HeldBack:
    """The next answer from ``path`` to a client: it has ``come`` to him, and is not heard until
    ``let_go``."""

    def __init__(self, client: Client, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.come, self.let_go = threading.Event(), threading.Event()
        send = client._wire.send

        def hold(
            method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
        ) -> Answer:
            answer = send(method, url, headers, body, silence_seconds)
            if url.endswith(path) and not self.come.is_set():
                self.come.set()
                assert self.let_go.wait(20)
            return answer

        monkeypatch.setattr(client._wire, "send", hold)


def test_an_answer_that_was_on_its_way_during_a_change_is_not_believed(
    leased: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = leased
    one.write("/file", b"content")
    ino = one.walk("/file").ino
    answer = HeldBack(two, "/v1/attrs", monkeypatch)
    reader = threading.Thread(target=two.vfs.getattr, args=(ino, None))
    reader.start()
    assert answer.come.wait(20)
    one.write("/file", b"longer content")
    answer.let_go.set()
    reader.join()
    assert two.vfs.getattr(ino, None).size == len(b"longer content")


def test_what_a_change_is_not_promised_is_not_believed_for_a_moment(
    leased: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = leased
    directory, cache = one.proxy.directory, one.vfs._names._cache
    apply, changed = directory.apply, cache.changed
    believed: list[int] = []

    def unpromised(*words: Any) -> Mutated:
        mutated = apply(*words)
        inos = [attr.ino for result in mutated.results for attr in result.touched]
        return msgspec.structs.replace(mutated, unpromised=inos)

    def note(attr: Attr, asked: Asked) -> None:
        changed(attr, asked)
        believed.append(attr.ino)

    monkeypatch.setattr(directory, "apply", unpromised)
    monkeypatch.setattr(cache, "changed", note)
    made = one.mkdir("/new")
    assert believed == [made.ino]
    assert cache.get_attr(ROOT_INO) is None


def test_who_does_not_hear_of_his_own_change_believes_nothing_of_before(stack: Stack) -> None:
    """Others are told of a change by their feeds, who has made it by the answer."""

    def lose(_method: str, url: str) -> None:
        if url.endswith("/v1/mutations"):
            raise ReplyLost("the answer was lost")

    way = WatchedWire()
    one = stack.client(promised=True, deadline_seconds=0.2, wrap=way.wrap)
    with raises(errno.ENOENT):
        one.walk("/new")
    hear, way.after = way.after, lose
    with raises(errno.ETIMEDOUT):
        one.mkdir("/new")
    way.after = hear
    assert one.walk("/new").nlink == 2


class Late:
    """A way to the realm on which changes stand still while ``is_late``, until they are ``let_go``."""

    def __init__(self, inner: Wire) -> None:
        self._inner = inner
        self._held: list[tuple[str, str, Mapping[str, str], bytes, float]] = []
        self.is_late = False

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
    ) -> Answer:
        if self.is_late and url.endswith("/v1/mutations"):
            self._held.append((method, url, headers, body, silence_seconds))
            raise ReplyLost("nothing was heard of it")
        return self._inner.send(method, url, headers, body, silence_seconds)

    def let_go(self) -> None:
        """The first attempt arrives, and is answered to nobody."""
        self._inner.send(*self._held[0])


def test_a_change_that_is_made_after_it_was_given_up_is_told_to_who_gave_it_up(stack: Stack) -> None:
    ways: list[Late] = []

    def wrap(inner: Wire) -> Wire:
        ways.append(Late(inner))
        return ways[0]

    one = stack.client(promised=True, deadline_seconds=0.5, wrap=wrap)
    ways[0].is_late = True
    with raises(errno.ETIMEDOUT):
        one.vfs.mkdir(ROOT_INO, b"new", 0o755, None)
    ways[0].is_late = False
    wait_until(lambda: bool(one.vfs.is_leased))
    with raises(errno.ENOENT):
        one.vfs.lookup(ROOT_INO, b"new", None)
    assert one.names() == []
    ways[0].let_go()
    assert one.vfs.lookup(ROOT_INO, b"new", None).nlink == 2
    assert one.names() == ["new"]


def test_without_its_feed_a_client_asks_each_time(stack: Stack) -> None:
    def no_way(_method: str, url: str) -> None:
        if "/v1/feed" in url:
            raise Unavailable("no way leads there")

    way = WatchedWire()
    way.before = no_way
    one = stack.client()
    two = stack.client(promised=True, started=False, wrap=way.wrap)
    two.start()
    one.write("/file", b"content")
    assert two.read("/file") == b"content"
    one.write("/file", b"new content")
    assert two.read("/file") == b"new content"
    assert not two.vfs._names.mark()
