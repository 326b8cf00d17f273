"""Whole listings, kept by the change of their directory (cache.folders)."""

from cache.folders import FolderCache
from tests.support.attributes import attr
from wire.messages.directory import Entry


def entries(*cookies: int) -> list[Entry]:
    return [Entry(b"%d" % cookie, attr(cookie, 1), cookie) for cookie in cookies]


def names(folders: FolderCache, ino: int, change: int) -> list[int] | None:
    found = folders.get(ino, change)
    return None if found is None else [int(entry.name) for entry in found]


def test_a_listing_is_there_when_its_last_page_has_come() -> None:
    folders = FolderCache()
    folders.put_page(7, 5, 0, entries(1, 2), more=True)
    assert names(folders, 7, 5) is None
    folders.put_page(7, 5, 2, entries(3), more=False)
    assert names(folders, 7, 5) == [1, 2, 3]
    assert names(folders, 7, 6) is None
    found = folders.get(7, 5)
    assert found is not None and {entry.attr.change for entry in found} == {0}


def test_pages_of_two_states_and_pages_with_a_gap_are_no_listing() -> None:
    folders = FolderCache()
    folders.put_page(7, 5, 0, entries(1, 2), more=True)
    folders.put_page(7, 6, 2, entries(3), more=False)
    assert names(folders, 7, 5) is names(folders, 7, 6) is None
    folders.put_page(7, 5, 3, entries(4), more=False)
    assert names(folders, 7, 5) is None


def test_two_who_list_at_the_same_time_tell_each_name_once() -> None:
    folders = FolderCache()
    for _ in range(2):
        folders.put_page(7, 5, 0, entries(1, 2), more=True)
    for _ in range(2):
        folders.put_page(7, 5, 2, entries(3), more=False)
    assert names(folders, 7, 5) == [1, 2, 3]


def test_what_was_used_longest_ago_goes_and_what_is_too_large_is_not_kept() -> None:
    folders = FolderCache(entries_max=8)
    for ino in (1, 2, 3, 4):
        folders.put_page(ino, 5, 0, entries(10 * ino, 10 * ino + 1), more=False)
    assert names(folders, 1, 5) == [10, 11]
    folders.put_page(5, 5, 0, entries(50), more=False)
    assert names(folders, 1, 5) == [10, 11] and names(folders, 2, 5) is None
    folders.put_page(6, 5, 0, entries(60, 61), more=True)
    folders.put_page(6, 5, 61, entries(62), more=False)
    assert names(folders, 6, 5) is None
