"""What a mount believes: never anything older than what it has heard of."""

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache.lifetimes import ForSeconds
from cache.metadata import Asked, MetadataCache
from cache.new_folders import NewFolders
from tests.support.attributes import attr

FOREVER = ForSeconds(1e9)


def test_answers_are_believed_for_their_lifetime_from_the_question_on() -> None:
    now = [0.0]
    cache = MetadataCache(ForSeconds(2.0, lambda: now[0]))
    asked = cache.ask()
    now[0] = 1.0
    cache.put_attr(attr(1, 5), asked)
    cache.put_entry(attr(1, 5), b"name", 7, asked)
    now[0] = 1.5
    assert (
        cache.get_attr(1) == attr(1, 5)
        and cache.attr_seconds(1, 5) == 0.5
        and cache.attr_seconds(1, 4) == 0.0
    )
    assert cache.get_entry(1, b"name") == 7 and cache.entry_seconds(1, b"name", 7) == 0.5
    assert cache.entry_seconds(1, b"name", 8) == 0.0
    now[0] = 2.0
    assert cache.get_attr(1) is None and cache.get_entry(1, b"name") is None


class Rounds(ForSeconds):
    """A lease whose rounds the test decides. It may go on with what is heard at any moment."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.round = 1.0
        self.goes_on: Callable[[], None] = lambda: None

    def mark(self) -> float:
        """The round."""
        self.goes_on()
        return self.round


def test_what_nothing_was_heard_of_is_true_in_the_same_round_of_a_lease_only() -> None:
    lease = Rounds()
    cache = MetadataCache(lease)
    asked = cache.ask()
    for lease.round, is_known in ((1.0, True), (0.0, False), (2.0, False), (1.0, True)):
        assert (cache.unheard_since(asked, [1]) == asked) is is_known
    lease.round = 0.0
    assert cache.unheard_since(cache.ask(), [1]) is None, "it was asked for without a lease"


def test_what_is_heard_before_a_lease_goes_on_counts_for_who_looks_at_that_moment() -> None:
    lease = Rounds()
    cache = MetadataCache(lease)
    asked = cache.ask()
    assert cache.unheard_since(asked, [1]) == asked
    lease.goes_on = lambda: cache.doubt([1])
    assert cache.unheard_since(asked, [1]) is None, "nobody has waited for us while the lease was over"


def test_an_older_answer_replaces_nothing() -> None:
    cache = MetadataCache(FOREVER)
    asked = cache.ask()
    for change, known in ((5, 5), (4, 5), (7, 7)):
        cache.put_attr(attr(1, change), asked)
        assert cache.get_attr(1) == attr(1, known)


def test_an_entry_that_was_under_way_while_its_directory_changed_is_not_believed() -> None:
    cache = MetadataCache(FOREVER)
    asked = cache.ask()
    cache.put_attr(attr(1, 5), asked)
    cache.put_entry(attr(1, 4), b"old", 7, asked)
    cache.put_entry(attr(1, 5), b"new", 8, asked)
    cache.put_entry(attr(1, 6), b"none", 0, asked)
    assert [cache.get_entry(1, name) for name in (b"old", b"new", b"none")] == [None, 8, 0]
    cache.put_target(3, b"there")
    cache.drop_all()
    assert cache.get_target(3) is None and cache.get_entry(1, b"none") is None
    cache.put_attr(attr(1, 9), asked)
    assert cache.get_attr(1) is None, "it was asked for before everything was dropped"


def test_what_is_doubted_goes_and_what_was_asked_before_comes_too_late() -> None:
    cache = MetadataCache(FOREVER)
    asked = cache.ask()
    cache.put_attr(attr(1, 5), asked)
    cache.put_entry(attr(1, 5), b"name", 7, asked)
    cache.put_attr(attr(2, 5), asked)
    cache.doubt([1])
    assert cache.get_attr(1) is None and cache.get_entry(1, b"name") is None and cache.get_attr(2) is not None
    cache.put_attr(attr(1, 9), asked)
    cache.put_entry(attr(1, 9), b"name", 7, asked)
    cache.put_attr(attr(2, 6), asked)
    assert cache.get_attr(1) is None and cache.get_entry(1, b"name") is None
    assert cache.get_attr(2) == attr(2, 6), "nobody doubts that one"


def test_when_it_is_forgotten_what_was_heard_questions_from_before_are_not_believed() -> None:
    cache = MetadataCache(FOREVER, events_max=10)
    asked = cache.ask()
    for ino in range(1, 12):
        cache.doubt([ino])
    cache.put_attr(attr(1, 5), asked)
    cache.put_attr(attr(99, 5), asked)
    assert cache.get_attr(1) is None and cache.get_attr(99) is None
    cache.put_attr(attr(1, 5), cache.ask())
    assert cache.get_attr(1) is not None


def test_three_walks_leave_no_more_than_one() -> None:
    cache = MetadataCache(FOREVER, items_max=1000, kept=0)
    inos = range(1, 3001)
    for change in range(3):
        asked = cache.ask()
        for ino in inos:
            cache.put_attr(attr(ino, change), asked)
            cache.put_entry(attr(ino // 100, change), b"%d" % ino, ino, asked)
            cache.put_target(ino, b"target")
        assert cache.get_attr(3000) is not None
        assert sum(cache.get_attr(ino) is not None for ino in inos) == 1000
        assert sum(cache.get_entry(ino // 100, b"%d" % ino) is not None for ino in inos) in range(900, 1001)
        assert sum(cache.get_target(ino) is not None for ino in inos) == 1000
    cache.forget(inos, [])
    assert not any(cache.get_attr(ino) or cache.get_target(ino) for ino in inos)


def test_what_has_expired_goes_though_a_directory_before_it_has_no_name_left() -> None:
    now = [0.0]
    cache = MetadataCache(ForSeconds(1.0, lambda: now[0]))
    asked = cache.ask()
    for folder in (1, 2):
        cache.put_entry(attr(folder, 5), b"name", 7, asked)
    cache.drop_entry(1, b"name")
    now[0] = 2.0
    cache.put_attr(attr(3, 5), cache.ask())
    assert len(cache) == 1


def test_a_directory_with_more_names_than_are_kept_is_begun_anew() -> None:
    cache = MetadataCache(FOREVER, items_max=100)
    asked = cache.ask()
    for number in range(1, 251):
        cache.put_entry(attr(1, 5), b"%d" % number, number, asked)
    assert sum(cache.get_entry(1, b"%d" % number) is not None for number in range(1, 251)) == 50


def test_what_was_not_put_into_a_directory_of_ours_is_not_there() -> None:
    cache = MetadataCache(FOREVER)
    for ino in (1, 2):
        cache.changed(attr(ino, 5), cache.ask())
    cache.made_folder(attr(1, 5))
    cache.made_folder(attr(2, 4))  # it has changed since
    assert [cache.is_free(ino, b"name") for ino in (1, 2, 3)] == [True, False, False]
    assert cache.entry_seconds(1, b"name", 0) > 0
    cache.will_name(1, b"other")
    assert not cache.is_free(1, b"other"), "it may be there already"
    cache.entry_changed(1, b"made", 9, 5)
    cache.drop_entry(1, b"made")
    assert not cache.is_free(1, b"made"), "though it is not known any more what it stands for"
    cache.doubt([1])
    cache.put_attr(attr(1, 6), cache.ask())
    assert not cache.is_free(1, b"third")


def test_directories_of_ours_are_forgotten_when_they_are_too_many_names() -> None:
    folders = NewFolders(names_max=5)
    for ino in (1, 2):
        folders.begin(ino)
        folders.put(ino, b"name")
        folders.put(ino, b"name")
    assert folders.lacks(1, b"other") and not folders.lacks(1, b"name")
    folders.drop(2)
    for number in range(3):
        folders.put(1, b"%d" % number)
    assert folders.lacks(1, b"other")
    folders.begin(3)
    assert not folders.lacks(1, b"other")


NAMES = (b"a", b"b")


@dataclass
class Folder:
    """A directory as the server has it, at each change."""

    history: list[tuple[int, dict[bytes, int]]] = field(default_factory=lambda: [(1, {})])
    completed: int = 1
    """The latest change that this client has heard of."""
    names: dict[bytes, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 1))
    """The same for each name. A change that is not heard of yet has not returned to who has made it: until
    then what was before may be shown, though a later change of another name is known."""


@dataclass
class Question:
    asked: Asked
    ino: int
    answer: tuple[int, dict[bytes, int]] | None = None


@dataclass
class Change:
    """One of this client's own: carried out, and answered later."""

    asked: Asked
    ino: int
    name: bytes
    to: int
    change: int = 0


class NeverOld(RuleBasedStateMachine):
    """Questions, answers, changes here and elsewhere, in any order, each answer as late as may be."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = MetadataCache(FOREVER, items_max=4, events_max=2, kept=0)
        self.folders = {1: Folder(), 2: Folder(), 3: Folder()}
        self.clock = 1
        self.questions: list[Question] = []
        self.changes: list[Change] = []
        self.untold: list[tuple[int, int]] = []
        self.making = {ino: self.cache.ask() for ino in self.folders}
        """Those that this client has made, and whose making is not answered yet."""

    @rule(ino=st.sampled_from((1, 2, 3)))
    def making_is_answered(self, ino: int) -> None:
        if asked := self.making.pop(ino, None):
            self.cache.changed(attr(ino, 1), asked)
            self.cache.made_folder(attr(ino, 1))

    def _apply(self, ino: int, name: bytes, to: int) -> int:
        self.clock += 1
        _, names = self.folders[ino].history[-1]
        self.folders[ino].history.append((self.clock, {**names, name: to}))
        return self.clock

    @rule(ino=st.sampled_from((1, 2, 3)))
    def ask(self, ino: int) -> None:
        self.questions.append(Question(self.cache.ask(), ino))

    @rule(which=st.integers(0, 9))
    def server_answers(self, which: int) -> None:
        if open_ones := [question for question in self.questions if question.answer is None]:
            question = open_ones[which % len(open_ones)]
            question.answer = self.folders[question.ino].history[-1]

    @rule(which=st.integers(0, 9), has_names=st.booleans())
    def answer_arrives(self, which: int, has_names: bool) -> None:
        if answered := [question for question in self.questions if question.answer is not None]:
            question = answered[which % len(answered)]
            self.questions = [one for one in self.questions if one is not question]
            assert question.answer is not None
            change, names = question.answer
            self.cache.put_attr(attr(question.ino, change), question.asked)
            for name in NAMES if has_names else ():
                self.cache.put_entry(attr(question.ino, change), name, names.get(name, 0), question.asked)

    @rule(ino=st.sampled_from((1, 2, 3)), name=st.sampled_from(NAMES), to=st.integers(0, 3))
    def somebody_else_changes(self, ino: int, name: bytes, to: int) -> None:
        self.untold.append((ino, self._apply(ino, name, to)))

    @rule()
    def feed_tells(self) -> None:
        if self.untold:
            ino, change = self.untold.pop(0)
            self.cache.doubt([ino])
            folder = self.folders[ino]
            folder.completed = max(folder.completed, change)
            folder.names = {name: max(known, change) for name, known in folder.names.items()}

    @rule(ino=st.sampled_from((1, 2, 3)), name=st.sampled_from(NAMES), to=st.integers(0, 3))
    def begin_change(self, ino: int, name: bytes, to: int) -> None:
        if to:
            self.cache.will_name(ino, name)
        self.changes.append(Change(self.cache.ask(), ino, name, to))

    @rule(which=st.integers(0, 9))
    def server_changes(self, which: int) -> None:
        if begun := [change for change in self.changes if not change.change]:
            change = begun[which % len(begun)]
            change.change = self._apply(change.ino, change.name, change.to)

    @rule(which=st.integers(0, 9))
    def change_is_answered(self, which: int) -> None:
        if done := [change for change in self.changes if change.change]:
            change = done[which % len(done)]
            self.changes = [one for one in self.changes if one is not change]
            self.cache.changed(attr(change.ino, change.change), change.asked)
            self.cache.entry_changed(change.ino, change.name, change.to, change.change)
            folder = self.folders[change.ino]
            folder.completed = max(folder.completed, change.change)
            folder.names[change.name] = max(folder.names[change.name], change.change)

    @rule(ino=st.sampled_from((1, 2, 3)))
    def forget(self, ino: int) -> None:
        self.cache.forget([ino], [(ino, NAMES[0])])

    @invariant()
    def nothing_is_older_than_what_was_heard(self) -> None:
        for ino, folder in self.folders.items():
            believed = self.cache.get_attr(ino)
            assert believed is None or believed.change >= folder.completed
            for name in NAMES:
                to, heard = self.cache.get_entry(ino, name), folder.names[name]
                possible = {names.get(name, 0) for change, names in folder.history if change >= heard}
                assert to is None or to in possible
                assert 0 in possible or not self.cache.is_free(ino, name)


TestNeverOld = NeverOld.TestCase
TestNeverOld.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
