"""Under a lease: what is known costs no question, and nothing that was changed elsewhere is shown."""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cache.metadata import Asked
from clients.session import Answer, Wire
from mount.tree import Changes
from tests.support.stack import DIRECTORY, Client, Stack
from tests.support.times import wait_until
from tests.support.vfs import raises
from wire.errors import ReplyLost, Unavailable
from wire.limits import LEASE_SECONDS, NAME_BYTES_MAX
from wire.messages.common import Caller
from wire.messages.directory import ROOT_INO, Attr, Mutated


@pytest.fixture
def pair(stack: Stack) -> tuple[Client, Client]:
    return stack.client(promised=True), stack.client(promised=True)


def paths_asked(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a client asks from now on, but for its feed."""
    asked: list[str] = []
    send = client._wire.send

    def note(
        method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
    ) -> Answer:
        if "/v1/feed" not in url and "/v1/locks/renew" not in url:
            asked.append(url)
        return send(method, url, headers, body, silence_seconds)

    monkeypatch.setattr(client._wire, "send", note)
    return asked


def test_what_is_known_is_not_asked_for_again(
    pair: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    one.mkdir("/folder")
    one.write("/folder/file", b"content")
    assert two.read("/folder/file") == b"content"
    parent, _ = two.parent("/folder/file")
    with raises(errno.ENOENT):
        two.vfs.lookup(parent, b"missing", None)
    asked = paths_asked(two, monkeypatch)
    assert two.read("/folder/file") == b"content"
    assert two.vfs.lookup(parent, b"file", None).size == 7
    assert two.vfs.getattr(parent, None).ino == parent
    with raises(errno.ENOENT):
        two.vfs.lookup(parent, b"missing", None)
    assert asked == []


def test_what_is_not_in_a_directory_of_ours_is_not_asked_for(
    pair: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    ino = one.mkdir("/folder").ino
    one.write("/folder/file", b"content")
    asked = paths_asked(one, monkeypatch)
    for name in (b"missing", b"missing", b"file.tmp"):
        with raises(errno.ENOENT):
            one.vfs.lookup(ino, name, None)
    assert one.vfs.name_seconds(ino, b"missing", 0) > 0, "the kernel need not ask again"
    assert asked == []
    with raises(errno.ENAMETOOLONG):
        one.vfs.lookup(ino, b"n" * (NAME_BYTES_MAX + 1), None)
    asked.clear()
    two.write("/folder/missing", b"it is there")
    assert one.vfs.lookup(ino, b"missing", None).size == 11
    with raises(errno.ENOENT):
        one.vfs.lookup(ino, b"other", None)
    assert len([url for url in asked if url.endswith("/v1/resolve")]) == 2, "it is not ours alone any more"


def test_a_directory_whose_making_was_answered_late_is_asked_about(
    pair: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
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


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.write("/folder/file", b"new content"),
        lambda one: one.append("/folder/file", b"more"),
        lambda one: one.unlink("/folder/file"),
        lambda one: one.rename("/folder/file", "/folder/other"),
        lambda one: one.rename("/other", "/folder/file"),
        lambda one: one.set("/folder/file", Changes(mode=0o600)),
        lambda one: one.link("/other", "/folder/new"),
        lambda one: one.link("/folder/file", "/new"),
        lambda one: one.mkdir("/folder/missing"),
        lambda one: one.write("/folder/missing", b""),
        lambda one: one.rename("/folder", "/moved"),
        lambda one: one.vfs.setxattr(one.walk("/folder/file").ino, b"user.a", b"1", 0, None),
    ],
)
def test_no_change_elsewhere_is_missed(
    pair: tuple[Client, Client], change: Callable[[Client], object]
) -> None:
    one, two = pair
    one.mkdir("/folder")
    one.write("/folder/file", b"content")
    one.write("/other", b"other")
    for path in ("/folder/missing", "/folder/new", "/new", "/moved"):
        with raises(errno.ENOENT):
            two.walk(path)
    before = shown(two)
    assert before == shown(one)
    change(one)
    assert shown(two) == shown(one) != before


def shown(client: Client) -> dict[str, object]:
    """The tree as a client shows it: by names, attributes and contents."""
    found: dict[str, object] = {}
    for path in ("/", "/folder", "/folder/file", "/folder/other", "/folder/missing", "/folder/new", "/new"):
        try:
            attr = client.walk(path)
            content = client.read(path) if stat.S_ISREG(attr.mode) else client.names(path)
            found[path] = attr, content, client.vfs.listxattr(attr.ino, None)
        except OSError as error:
            found[path] = error.errno
    return found


def test_two_that_change_one_directory_wait_for_each_other_and_both_end(pair: tuple[Client, Client]) -> None:
    one, two = pair
    names = [f"{number:02}" for number in range(30)]
    assert one.names() == two.names() == []

    def make(client: Client, prefix: str) -> None:
        for name in names:
            client.mkdir(f"/{prefix}{name}")
            client.names()

    threads = [threading.Thread(target=make, args=each) for each in ((one, "a"), (two, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        sorted(one.names())
        == sorted(two.names())
        == [f"a{name}" for name in names] + [f"b{name}" for name in names]
    )


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Stack]:
    """Its leases are short."""
    with Stack(tmp_path / "stack", lease_seconds=2.0) as made:
        yield made


def test_a_client_that_is_cut_off_believes_nothing_after_its_lease(impatient: Stack) -> None:
    one, two = impatient.client(promised=True), impatient.client(promised=True)
    one.write("/file", b"content")
    assert two.read("/file") == b"content"
    two.cut()
    assert two.read("/file") == b"content", "the lease goes on"
    one.write("/file", b"new content")
    with pytest.raises(OSError, match="down"):
        two.read("/file")


def test_who_left_is_not_waited_for(stack: Stack) -> None:
    one, two = stack.client(promised=True), stack.client(promised=True)
    one.write("/file", b"content")
    assert two.read("/file") == b"content"
    two.close()
    began = time.monotonic()
    one.write("/file", b"new content")
    assert time.monotonic() - began < LEASE_SECONDS / 2


def test_when_the_directory_is_back_nothing_old_is_believed(
    impatient: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = impatient
    one, two = stack.client(promised=True), stack.client(promised=True)
    one.write("/file", b"content")
    assert two.read("/file") == b"content"
    stack.away(DIRECTORY)
    stack.directory.close()
    stack.start_directory()
    one.write("/file", b"new content")
    assert two.read("/file") == b"new content"
    wait_until(lambda: two.vfs._names.mark() and one.vfs._names.mark())
    asked = paths_asked(two, monkeypatch)
    assert two.read("/file") == b"new content"
    assert two.read("/file") == b"new content"
    assert len(asked) <= 2


def test_who_may_not_walk_there_any_more_does_not(stack: Stack) -> None:
    one = stack.client(promised=True)
    one.mkdir("/folder")
    one.write("/folder/file", b"content")
    assert one.read("/folder/file") == b"content"
    one.set("/folder", Changes(mode=0o600))
    with raises(errno.EACCES):
        one.read("/folder/file")
    parent = one.walk("/folder").ino
    with raises(errno.EACCES):
        one.vfs.lookup(parent, b"file", None)


def opens_again(client: Client, ino: int, flags: int = os.O_RDONLY) -> bool:
    handle = client.vfs.open_again(ino, flags, None)
    if handle is not None:
        client.vfs.release(handle.number)
    return handle is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda other: other.write("/folder/file", b"new content"),
        lambda other: other.rename("/folder", "/elsewhere"),
        lambda other: other.unlink("/folder/file"),
        lambda other: other.set("/folder", Changes(mode=0o600)),
    ],
)
@pytest.mark.parametrize("is_elsewhere", [True, False])
def test_a_file_is_opened_by_its_number_until_something_changes(
    pair: tuple[Client, Client], change: Callable[[Client], object], is_elsewhere: bool
) -> None:
    one, two = pair
    one.mkdir("/folder")
    one.write("/folder/file", b"content")
    ino = two.walk("/folder/file").ino
    assert not opens_again(two, ino)
    for _ in range(2):  # the first one may have to ask
        assert two.read("/folder/file") == b"content"
    assert opens_again(two, ino) and opens_again(two, ino)
    assert not opens_again(two, ino, os.O_RDWR)
    assert not opens_again(two, ino, os.O_TRUNC)
    change(one if is_elsewhere else two)
    assert not opens_again(two, ino)


def test_a_file_is_not_opened_by_its_number_without_a_lease(impatient: Stack) -> None:
    one = impatient.client(promised=True)
    one.write("/file", b"content")
    assert one.read("/file") == b"content"
    ino = one.walk("/file").ino
    assert opens_again(one, ino)
    one.cut()
    wait_until(lambda: not one.vfs._names.mark())
    assert not opens_again(one, ino)


def test_a_writer_sees_what_others_do_to_his_file(pair: tuple[Client, Client]) -> None:
    one, two = pair
    one.write("/file", b"content")
    with one.opened("/file", os.O_RDWR) as handle:
        one.vfs.write(handle, 0, b"CON")
        two.set("/file", Changes(mode=0o640))
        attr = one.vfs.handle_attr(handle)
        assert (stat.S_IMODE(attr.mode), attr.size) == (0o640, 7)
    assert two.read("/file") == b"CONtent"


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
    pair: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
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


def test_without_its_feed_a_client_asks_each_time(stack: Stack) -> None:
    class NoFeed:
        def __init__(self, inner: Wire) -> None:
            self._inner = inner

        def send(
            self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
        ) -> Answer:
            if "/v1/feed" in url:
                raise Unavailable("no way leads there")
            return self._inner.send(method, url, headers, body, silence_seconds)

    one = stack.client()
    two = stack.client(promised=True, started=False, wrap=NoFeed)
    two.start()
    one.write("/file", b"content")
    assert two.read("/file") == b"content"
    one.write("/file", b"new content")
    assert two.read("/file") == b"new content"
    assert not two.vfs._names.mark()


class Deaf:
    """A way to the realm on which answers to changes are lost while ``is_deaf``."""

    def __init__(self, inner: Wire) -> None:
        self._inner = inner
        self.is_deaf = False

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
    ) -> Answer:
        answer = self._inner.send(method, url, headers, body, silence_seconds)
        if self.is_deaf and url.endswith("/v1/mutations"):
            raise ReplyLost("the answer was lost")
        return answer


def test_who_does_not_hear_of_his_own_change_believes_nothing_of_before(stack: Stack) -> None:
    """Others are told of a change by their feeds, who has made it by the answer."""
    ways: list[Deaf] = []

    def wrap(inner: Wire) -> Wire:
        ways.append(Deaf(inner))
        return ways[0]

    one = stack.client(promised=True, deadline_seconds=0.2, wrap=wrap)
    with raises(errno.ENOENT):
        one.walk("/new")
    ways[0].is_deaf = True
    with raises(errno.ETIMEDOUT):
        one.mkdir("/new")
    ways[0].is_deaf = False
    assert one.walk("/new").nlink == 2


def test_what_a_change_is_not_promised_is_not_believed_for_a_moment(
    pair: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pair
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


def test_who_has_a_file_open_sees_what_it_was_when_no_way_leads_to_it(stack: Stack) -> None:
    """It is not his, and another mount has taken its name away."""
    one = stack.client(promised=True)
    two = stack.client(promised=True, user="bob", uid=10002, gids=(10002,))
    one.write("/file", b"content")
    one.set("/file", Changes(mode=0o666))
    for flags in (os.O_RDONLY, os.O_RDWR):
        handle = two.open("/file", flags)
        one.unlink("/file")
        assert two.vfs.handle_attr(handle).size == 7
        two.vfs.release(handle)
        one.write("/file", b"content")
        one.set("/file", Changes(mode=0o666))


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


def test_a_directory_that_was_listed_is_listed_without_a_question(
    pair: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    for number in range(40):  # more than come with the beginning
        one.mkdir(f"/{number:02}")
    before = two.names()
    asked = paths_asked(two, monkeypatch)
    assert [entry.name for entry in two.vfs.readdir(ROOT_INO, None)] == [name.encode() for name in before]
    assert asked == []
    one.rename("/17", "/new")
    two.rmdir("/18")
    assert two.names() == one.names() == [name for name in before if name not in ("17", "18")] + ["new"]


def test_a_listing_that_is_known_is_not_for_who_may_not_read_the_directory(stack: Stack) -> None:
    root = stack.client(admin=True, uid=0, trusted=True, promised=True)
    other = Caller(20000, [20000])
    root.mkdir("/folder", 0o711)
    root.mkdir("/folder/inner")
    assert root.names("/folder") == root.names("/folder") == ["inner"]
    with raises(errno.EACCES):
        list(root.vfs.readdir(root.walk("/folder").ino, other))
