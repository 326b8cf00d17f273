"""Listings of a directory that changes meanwhile.

readdir(3): what is there from before the beginning until after the end is told exactly once; what comes or
goes meanwhile may be told or not.
"""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite

from mount import stream as streams
from mount.stream import Stream
from servers.directory import store
from tests.support.directory import DirectoryRealm, User, fails
from tests.support.stack import DIRECTORY, Stack
from wire.messages.directory import ROOT_INO, Create, Op, Rename, Unlink

OLD = [b"old-%d" % number for number in range(8)]
NAMES = [*OLD, b"new-0", b"new-1", b"new-2"]

names = st.sampled_from(NAMES)
changes = st.one_of(
    st.builds(lambda name: Create(ROOT_INO, name, 0o100644), names),
    st.builds(lambda name: Unlink(ROOT_INO, name), names),
    st.builds(
        lambda old, new, flags: Rename(ROOT_INO, old, ROOT_INO, new, flags),
        names,
        names,
        st.sampled_from([0, 0, 2]),
    ),
)


class Watched:
    """A directory that is listed in pages of two, and what readdir(3) lets the listing tell."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._told: list[bytes] = []
        page = user.client.list_page(ROOT_INO)
        self._cookies = {entry.name: entry.cookie for entry in page.entries}
        self._steady = set(self._cookies)  # there all the time
        self._ever = set(self._cookies)
        self._after = 0
        self._until = page.attr.change

    def change(self, op: Op) -> None:
        """Something happens, if it can."""
        with suppress(OSError):
            self._user.client.mutate([op])
        page = self._user.client.list_page(ROOT_INO)
        now = {entry.name: entry.cookie for entry in page.entries}
        assert list(now.values()) == sorted(set(now.values()))
        assert max(now.values(), default=0) <= page.attr.change
        made = now.keys() - self._cookies.keys()
        assert all(now[name] > max(self._cookies.values(), default=0) for name in made)
        assert all(now[name] == self._cookies[name] for name in now.keys() - made)
        self._steady &= now.keys()
        self._ever |= now.keys()
        self._cookies = now

    def read(self) -> bool:
        """A page; False at the end."""
        page = self._user.client.list_page(ROOT_INO, self._after, limit=2)
        self._told += [entry.name for entry in page.entries]
        if page.entries:
            self._after = page.entries[-1].cookie
        return page.more

    def check(self) -> None:
        """At the end."""
        assert {name for name in self._told if self._told.count(name) == 1} >= self._steady
        assert set(self._told) <= self._ever


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(changes, st.none()), max_size=30), st.booleans())
def test_what_is_there_all_the_time_is_told_exactly_once(happens: list[Op | None], restarts: bool) -> None:
    with TemporaryDirectory() as folder:
        realm = DirectoryRealm(Path(folder))
        user = realm.user(0)
        user.client.mutate([Create(ROOT_INO, name, 0o100644) for name in OLD])
        watched = Watched(user)
        more = True
        for what in happens:
            if what is not None:
                watched.change(what)
            else:
                more = more and watched.read()
                if restarts:
                    realm.restart()
        while more:
            more = watched.read()
        watched.check()
        realm.server.close()


def test_a_name_that_is_replaced_keeps_its_place(tmp_path: Path) -> None:
    realm = DirectoryRealm(tmp_path)
    user = realm.user(0)
    user.client.mutate([Create(ROOT_INO, name, 0o100644) for name in (b"a", b"b", b"c")])
    first = user.client.list_page(ROOT_INO, limit=2)
    user.client.mutate([Rename(ROOT_INO, b"c", ROOT_INO, b"a")])
    assert user.names() == [b"a", b"b"]
    assert user.client.list_page(ROOT_INO, first.entries[-1].cookie).entries == []
    realm.server.close()


def test_a_page_is_read_from_the_index(tmp_path: Path) -> None:
    realm = DirectoryRealm(tmp_path)
    statement = str(store._PAGE.compile(dialect=sqlite.dialect()))
    with closing(sqlite3.connect(tmp_path / "directory.db")) as database:
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", (1, 0, 9, 0))]
    assert plan == [
        "SEARCH entries USING COVERING INDEX entries_listed (parent=? AND cookie>?)",
        "SEARCH inodes USING INTEGER PRIMARY KEY (rowid=?)",
    ]
    realm.server.close()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A realm with some files; streams of it have small pages."""
    with Stack(tmp_path, files=1) as found:
        yield found


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two entries, then three at a time."""
    monkeypatch.setattr(streams, "FIRST_ENTRIES", 2)
    monkeypatch.setattr(streams, "PAGE_ENTRIES", 3)


def rest(stream: Stream) -> list[str]:
    """The names up to the end."""
    told = []
    while (entry := stream.peek()) is not None:
        told.append(entry.name.decode())
        stream.advance()
    return told


def test_who_renames_what_he_is_told_comes_to_an_end(stack: Stack, small_pages: None) -> None:
    client = stack.client()
    for name in "abcdefgh":
        client.write(name, b"")
    told = []
    for entry in client.vfs.readdir(ROOT_INO, None):
        told.append(entry.name.decode())
        client.rename(told[-1], told[-1] + "+")
    assert told == list("abcdefgh")
    assert client.names() == [f"{name}+" for name in "abcdefgh"]


def test_a_stream_goes_on_where_another_has_ended(stack: Stack, small_pages: None) -> None:
    one, two = stack.client(), stack.client()
    for name in "abcdefg":
        one.write(name, b"")
    stream = one.vfs.stream(ROOT_INO, None)
    stream.begin()
    for _ in "abcd":
        entry = stream.peek()
        stream.advance()
    assert entry is not None
    for name in "ace":
        two.unlink(name)
    two.write("h", b"")
    later = one.vfs.stream(ROOT_INO, None)
    later.go_to(entry.cookie)
    assert rest(later) == ["f", "g", "h"]
    assert rest(stream) == ["e", "f", "g"]  # as of the page that it had, and no younger name


def test_from_the_beginning_on_it_is_the_directory_as_it_is_now(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("a", b"")
    stream = one.vfs.stream(ROOT_INO, None)
    stream.begin()
    one.write("b", b"")
    stream.rewind()
    assert rest(stream) == ["a", "b"]
    two.write("c", b"")
    stream.rewind()
    assert rest(stream) == ["a", "b", "c"]


def test_a_short_directory_costs_one_call(stack: Stack) -> None:
    client = stack.client()
    client.write("a", b"")
    stream = client.vfs.stream(ROOT_INO, None)
    stream.begin()
    stack.away(DIRECTORY)
    stream.rewind()
    assert rest(stream) == ["a"]
    stack.back()


def test_a_directory_that_is_gone_is_stale(stack: Stack) -> None:
    client = stack.client()
    stream = client.vfs.stream(99999, None)
    with fails(errno.ESTALE):
        stream.begin()
