"""What is remembered of what the kernel knows: names, and of which version its pages are."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.copies import CopyStore
from mount.bindings.native.inodes import Inodes
from mount.bindings.native.notifications import ALL, NONE
from mount.nodes import Node
from wire.messages.directory import ROOT_INO, Attr

FOLDER, FILE, OTHER = 2, 3, 4
PROGRAM = 77
"""The thread of a program."""


def attr(ino: int = FILE, version: int = 1, size: int = 10) -> Attr:
    """Of a regular file."""
    return Attr(ino, 0o100644, 1, 0, 0, 0, size, 0, 0, 0, version, version, False)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A file that shows version 1."""
    copies = CopyStore(tmp_path / "cache", 2**30)
    node = Node(copies.open(FILE), attr())
    node.accept(attr())
    return node


class Kernel:
    """What was dropped, in order."""

    def __init__(self, does: bool = True) -> None:
        self.dropped: list[tuple[int, int]] = []
        self._does = does

    def drop(self, ino: int, offset: int) -> bool:
        """As Notifications.drop."""
        self.dropped.append((ino, offset))
        return self._does


# Names


def test_the_path_is_made_of_the_last_names() -> None:
    inodes = Inodes()
    inodes.looked_up(FOLDER, ROOT_INO, b"folder", 0)
    inodes.looked_up(FILE, FOLDER, b"file", 1)
    assert inodes.path(FILE) == (ROOT_INO, [b"folder", b"file"])
    assert inodes.path(FILE, steps=1) == (FOLDER, [b"file"])
    inodes.renamed((FOLDER, b"file"), (ROOT_INO, b"elsewhere"), exchanged=False)
    assert inodes.path(FILE) == (ROOT_INO, [b"elsewhere"])
    inodes.removed(ROOT_INO, b"elsewhere")
    assert inodes.path(FILE) == (FILE, [])


def test_what_is_not_known_is_opened_by_its_number() -> None:
    assert Inodes().path_to_open(FILE, PROGRAM) == (FILE, [])


def test_an_exchange_and_a_replacement() -> None:
    inodes = Inodes()
    inodes.looked_up(FILE, ROOT_INO, b"a", 1)
    inodes.looked_up(OTHER, ROOT_INO, b"b", 1)
    inodes.renamed((ROOT_INO, b"a"), (ROOT_INO, b"b"), exchanged=True)
    assert (inodes.path(FILE)[1], inodes.path(OTHER)[1]) == ([b"b"], [b"a"])
    inodes.renamed((ROOT_INO, b"a"), (ROOT_INO, b"b"), exchanged=False)
    assert (inodes.path(FILE), inodes.path(OTHER)) == ((FILE, []), (ROOT_INO, [b"b"]))


def test_a_name_that_is_told_of_another_inode_is_the_others() -> None:
    inodes = Inodes()
    inodes.looked_up(FILE, ROOT_INO, b"a", 1)
    inodes.looked_up(OTHER, ROOT_INO, b"a", 1)
    assert inodes.path(FILE) == (FILE, [])


def test_while_two_names_are_believed_the_program_has_to_say_again_which() -> None:
    inodes = Inodes()
    inodes.looked_up(FILE, ROOT_INO, b"old", 1)
    inodes.looked_up(FILE, ROOT_INO, b"new", 1)
    assert inodes.path_to_open(FILE, PROGRAM) is None
    inodes.stale(FILE, PROGRAM)
    inodes.looked_up(FILE, ROOT_INO, b"new", 1, pid=PROGRAM)
    assert inodes.path_to_open(FILE, PROGRAM) == (ROOT_INO, [b"new"])
    assert inodes.path_to_open(FILE, PROGRAM) is None, "the next time it may be by the old one"


def test_who_comes_again_without_a_name_gets_the_inode() -> None:
    inodes = Inodes()
    inodes.looked_up(FILE, ROOT_INO, b"old", 1)
    inodes.looked_up(FILE, ROOT_INO, b"new", 1)
    inodes.stale(FILE, PROGRAM)
    assert inodes.path_to_open(FILE, PROGRAM) == (FILE, [])


def test_a_name_that_was_not_to_be_believed_leaves_no_doubt() -> None:
    inodes = Inodes()
    inodes.looked_up(FILE, ROOT_INO, b"one", 1, seconds=0.0)
    inodes.looked_up(FILE, ROOT_INO, b"two", 1, seconds=0.0)
    assert inodes.path_to_open(FILE, PROGRAM) == (ROOT_INO, [b"two"])


def test_after_a_wrong_path_none_of_its_names_is_relied_on() -> None:
    inodes = Inodes()
    inodes.looked_up(FOLDER, ROOT_INO, b"folder", 0)
    inodes.looked_up(FILE, FOLDER, b"file", 1)
    inodes.stale(FILE, PROGRAM)
    assert inodes.path(FILE) == (FILE, [])
    assert inodes.path(FOLDER) == (FOLDER, [])


def test_a_circle_of_names_is_no_endless_path() -> None:
    inodes = Inodes()
    inodes.looked_up(FOLDER, OTHER, b"in other", 0)
    inodes.looked_up(OTHER, FOLDER, b"in folder", 0)
    assert inodes.path(FOLDER)[1]


def test_memory_is_bounded_by_what_the_kernel_knows() -> None:
    inodes = Inodes()
    for number in range(3):
        inodes.looked_up(FILE, ROOT_INO, b"%d" % number, 1)
    inodes.forget([(FILE, 2)])
    assert len(inodes) == 1
    assert inodes.forget([(FILE, 1), (OTHER, 5)]) == ([FILE], [(ROOT_INO, b"2")])
    assert len(inodes) == 0
    assert not inodes._folders


def test_the_room_of_what_is_forgotten_is_given_back() -> None:
    inodes = Inodes()
    for number in range(1000):
        inodes.looked_up(FILE + number, ROOT_INO, b"%d" % number, 1)
    full = sys.getsizeof(inodes._records)
    for number in range(999):
        inodes.forget([(FILE + number, 1)])
    assert sys.getsizeof(inodes._records) < full // 50
    assert inodes.path(FILE + 999) == (ROOT_INO, [b"999"])


def test_memory_is_given_back_when_most_of_many_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mount.bindings.native.inodes.MANY", 100)
    left = []
    inodes = Inodes(on_much_less=lambda: left.append(len(inodes)))
    for number in range(100):
        inodes.looked_up(FILE + number, ROOT_INO, b"%d" % number, 1)
    for number in range(100):
        inodes.forget([(FILE + number, 1)])
    assert left == [24], "not for what is left then"


NAMES = st.sampled_from([(parent, name) for parent in (1, 2) for name in (b"a", b"b", b"c")])
INOS = st.integers(3, 6)
STEPS = st.one_of(
    st.builds(lambda ino, name: lambda inodes: inodes.looked_up(ino, *name, 1), INOS, NAMES),
    st.builds(lambda ino, count: lambda inodes: inodes.forget([(ino, count)]), INOS, st.integers(1, 2)),
    st.builds(lambda a, b, x: lambda inodes: inodes.renamed(a, b, exchanged=x), NAMES, NAMES, st.booleans()),
    st.builds(lambda name: lambda inodes: inodes.removed(*name), NAMES),
    st.builds(lambda ino: lambda inodes: inodes.stale(ino, PROGRAM), INOS),
)


@given(st.lists(STEPS, max_size=30))
def test_each_name_is_of_one_inode_and_known_both_ways(steps: list[Callable[[Inodes], None]]) -> None:
    inodes = Inodes()
    for step in steps:
        step(inodes)
        records = inodes._records.items()
        named = {ino: (record.folder.ino, record.name) for ino, record in records if record.folder}
        known = {(f.ino, name): ino for f in inodes._folders.values() for name, ino in f.inos.items()}
        assert {name: ino for ino, name in named.items()} == known
        assert all(folder.inos for folder in inodes._folders.values())


# Pages


def test_the_first_open_drops_and_the_next_one_keeps(node: Node) -> None:
    inodes, kernel = Inodes(), Kernel()
    assert inodes.opened(node, kernel.drop)
    assert kernel.dropped == [(FILE, ALL)]
    assert inodes.opened(node, kernel.drop)
    inodes.closed(node)
    inodes.closed(node)
    assert inodes.opened(node, kernel.drop)
    assert kernel.dropped == [(FILE, ALL)]


def test_another_version_drops_the_pages_of_the_one_before(node: Node) -> None:
    inodes, kernel = Inodes(), Kernel()
    inodes.opened(node, kernel.drop)
    node.accept(attr(version=2))
    assert inodes.opened(node, kernel.drop)
    assert kernel.dropped == [(FILE, ALL), (FILE, ALL)]


def test_what_moved_and_came_back_is_dropped(node: Node) -> None:
    inodes, kernel = Inodes(), Kernel()
    inodes.opened(node, kernel.drop)
    node.discard()
    assert inodes.opened(node, kernel.drop)
    assert len(kernel.dropped) == 2


def test_what_moves_while_pages_are_dropped_is_not_said_to_be_the_version(node: Node) -> None:
    inodes, kernel = Inodes(), Kernel()

    def drop(ino: int, offset: int) -> bool:
        node.accept(attr(version=2))
        return True

    inodes.opened(node, drop)
    assert inodes.opened(node, kernel.drop)
    assert kernel.dropped == [(FILE, ALL)]


def test_a_commit_makes_the_pages_its_versions(node: Node) -> None:
    inodes, kernel = Inodes(), Kernel()
    inodes.opened(node, kernel.drop)
    node.copy.write(0, b"0123456789")
    node.copy.begin_commit(node.copy.snapshot_dirty(), b"0" * 16, {0: (b"0" * 32, 10)})
    node.copy.committed(2)
    inodes.committed(node)
    inodes.closed(node)
    assert inodes.opened(node, kernel.drop)
    assert kernel.dropped == [(FILE, ALL), (FILE, NONE)], "the size that was told is of the version before"


def test_pages_that_cannot_be_dropped_are_not_kept(node: Node) -> None:
    inodes, kernel = Inodes(), Kernel(does=False)
    assert not inodes.opened(node, kernel.drop)
    assert not inodes.opened(node, kernel.drop)


def test_what_is_uncommitted_at_the_last_close_is_doubted(node: Node) -> None:
    inodes, kernel = Inodes(), Kernel()
    inodes.opened(node, kernel.drop)
    node.copy.write(0, b"0123456789")
    inodes.closed(node)
    inodes.opened(node, kernel.drop)
    assert kernel.dropped == [(FILE, ALL), (FILE, ALL)]


def test_what_failed_to_be_written_is_doubted(node: Node) -> None:
    inodes, kernel = Inodes(), Kernel()
    inodes.opened(node, kernel.drop)
    inodes.doubted(FILE)
    inodes.opened(node, kernel.drop)
    assert kernel.dropped == [(FILE, ALL), (FILE, ALL)]


def test_attributes_of_another_version_are_dropped_though_the_pages_stay(node: Node) -> None:
    inodes, kernel = Inodes(), Kernel()
    inodes.opened(node, kernel.drop)
    inodes.told(FILE, 7)
    assert inodes.opened(node, kernel.drop)
    assert kernel.dropped == [(FILE, ALL), (FILE, NONE)]


# What rests


def is_told_otherwise(inodes: Inodes, node: Node) -> None:
    """The attributes in the kernel are another version's."""
    inodes.told(node.ino, 2)


def is_doubted(inodes: Inodes, node: Node) -> None:
    """A write has failed."""
    inodes.doubted(node.ino)


def has_moved(inodes: Inodes, node: Node) -> None:
    """What was written was given up."""
    with node.guard:
        node.discard()


def has_moved_on(inodes: Inodes, node: Node) -> None:
    """To another version."""
    node.accept(attr(version=2, size=20))


def is_forgotten(inodes: Inodes, node: Node) -> None:
    """The kernel has nothing of it."""
    inodes.forget([(node.ino, 1)])


def test_what_rests_is_opened_again_as_it_was(node: Node) -> None:
    inodes, kernel = Inodes(), Kernel()
    inodes.looked_up(FILE, ROOT_INO, b"file", 1)
    inodes.opened(node, kernel.drop)
    for _ in range(2):
        inodes.rests(FILE)
        assert not inodes.is_open(FILE)
        assert inodes.wakes(node)
        assert inodes.is_open(FILE)
    assert len(kernel.dropped) == 1


@pytest.mark.parametrize("does", [is_told_otherwise, is_doubted, has_moved, has_moved_on, is_forgotten])
def test_what_rests_is_not_opened_as_it_was_if_it(does: Callable[[Inodes, Node], None], node: Node) -> None:
    inodes = Inodes()
    inodes.looked_up(FILE, ROOT_INO, b"file", 1)
    inodes.opened(node, Kernel().drop)
    inodes.rests(FILE)
    does(inodes, node)
    assert not inodes.wakes(node)
    assert not inodes.is_open(FILE)
