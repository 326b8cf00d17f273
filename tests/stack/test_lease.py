"""Under a lease: what is known costs no question, and nothing that was changed elsewhere is shown."""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from clients.session import Answer
from mount.tree import Changes
from tests.support.stack import DIRECTORY, Client, Stack
from tests.support.times import wait_until
from tests.support.vfs import raises
from wire.limits import LEASE_SECONDS, NAME_BYTES_MAX
from wire.messages.common import Caller
from wire.messages.directory import ROOT_INO


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
    leased: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = leased
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
    leased: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = leased
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
    leased: tuple[Client, Client], change: Callable[[Client], object]
) -> None:
    one, two = leased
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


def test_two_that_change_one_directory_wait_for_each_other_and_both_end(
    leased: tuple[Client, Client],
) -> None:
    one, two = leased
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
    leased: tuple[Client, Client], change: Callable[[Client], object], is_elsewhere: bool
) -> None:
    one, two = leased
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


def test_a_writer_sees_what_others_do_to_his_file(leased: tuple[Client, Client]) -> None:
    one, two = leased
    one.write("/file", b"content")
    with one.opened("/file", os.O_RDWR) as handle:
        one.vfs.write(handle, 0, b"CON")
        two.set("/file", Changes(mode=0o640))
        attr = one.vfs.handle_attr(handle)
        assert (stat.S_IMODE(attr.mode), attr.size) == (0o640, 7)
    assert two.read("/file") == b"CONtent"


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


def test_a_directory_that_was_listed_is_listed_without_a_question(
    leased: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = leased
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
