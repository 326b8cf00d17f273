"""Promises: who is told of a change, and how long the change waits for him."""

import threading

import pytest

from servers.directory.promises import Author, Bounds, Change, Promises
from tests.support.times import Clock
from wire.errors import BadMessage
from wire.messages.directory import Poll, Told

LEASE = 10.0
READER, WRITER, OTHER = 1, 2, 3
BOUNDS = Bounds()


class Desk:
    """Promises on a clock that stands, and sessions that poll."""

    def __init__(self, bounds: Bounds = BOUNDS, before: dict[int, float] | None = None) -> None:
        self.clock = Clock()
        self.promises = Promises(LEASE, bounds, before, self.clock)
        self.feeds: dict[int, Told] = {}

    def poll(self, session: int, seen: int | None = None, is_clean: bool = True) -> Told:
        """The answer, at once."""
        last = self.feeds.get(session, Told(0, 0.0))
        poll = Poll(last.feed, last.last if seen is None else seen, is_clean)
        if self.promises.hear(session, poll):
            told = self.promises.tell(session, poll.feed, None)
        else:
            told = self.promises.join(session)
        assert told is not None
        self.feeds[session] = told
        return told

    def read(self, session: int, *inos: int, change: int = 1) -> list[int]:
        """What is not promised."""
        return self.promises.give(session, self.promises.begin(), dict.fromkeys(inos, change))

    def author(self, session: int) -> Author:
        """At the feed that it is at."""
        return Author(session, self.feeds[session].feed if session in self.feeds else 0)

    def change(self, session: int, *inos: int, at: int = 2) -> Change:
        """A change that is made and told."""
        with self.promises.changing(self.author(session)) as change:
            stamped = dict.fromkeys(inos, at)
            self.promises.tell_change(change, stamped, stamped)
        return change


def is_known(change: Change) -> bool:
    return change.waiting.event.is_set()


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    for session in (READER, WRITER, OTHER):
        desk.poll(session)
    return desk


def test_a_change_waits_for_those_who_were_promised_the_inode(desk: Desk) -> None:
    desk.read(READER, 7, 8)
    desk.read(OTHER, 8)
    change = desk.change(WRITER, 7)
    assert not is_known(change)
    assert desk.poll(OTHER).inos == []
    assert desk.poll(READER).inos == [7]
    assert not is_known(change)
    desk.poll(READER)
    assert is_known(change)


def test_a_promise_is_broken_once(desk: Desk) -> None:
    desk.read(READER, 7)
    desk.change(WRITER, 7)
    desk.poll(READER)
    desk.poll(READER)
    assert is_known(desk.change(WRITER, 7, at=3))
    assert desk.poll(READER).inos == []


def test_who_has_begun_a_new_feed_since_is_told_of_his_own_change(desk: Desk) -> None:
    """He has given it up, and heard no answer."""
    desk.read(WRITER, 7)
    with desk.promises.changing(desk.author(WRITER)) as change:
        desk.feeds.pop(WRITER)
        desk.poll(WRITER)
        desk.promises.tell_change(change, {7: 2}, {7: 2})
    assert change.unpromised == [7]
    assert not is_known(change)
    assert desk.poll(WRITER).inos == [7]
    desk.poll(WRITER)
    assert is_known(change)


def test_the_writer_itself_is_not_asked_and_keeps_its_promise(desk: Desk) -> None:
    desk.read(WRITER, 7)
    assert is_known(desk.change(WRITER, 7))
    assert not is_known(desk.change(OTHER, 7, at=3))
    assert desk.poll(WRITER).inos == [7]


def test_a_second_change_waits_for_the_message_about_the_first(desk: Desk) -> None:
    desk.read(READER, 7)
    desk.change(WRITER, 7)
    second = desk.change(WRITER, 7, at=3)
    assert not is_known(second)
    assert desk.poll(READER).inos == [7]
    desk.poll(READER)
    assert is_known(second)


def test_a_change_waits_for_the_last_of_two_messages_about_an_inode(desk: Desk) -> None:
    desk.read(READER, 7)
    desk.change(WRITER, 7)
    desk.read(READER, 7, change=2)
    desk.change(WRITER, 7, at=3)
    assert desk.poll(READER).inos == [7, 7]
    desk.poll(READER, seen=1)
    third = desk.change(WRITER, 7, at=4)
    assert not is_known(third)
    desk.poll(READER, seen=2)
    assert is_known(third)


def test_messages_come_again_until_they_are_seen(desk: Desk) -> None:
    desk.read(READER, 7, 8)
    desk.change(WRITER, 7)
    desk.change(WRITER, 8)
    assert desk.poll(READER).inos == [7, 8]
    again = desk.poll(READER, seen=1)
    assert (again.inos, again.last) == ([8], 2)
    with pytest.raises(BadMessage):
        desk.poll(READER, seen=3)


def test_a_change_waits_for_a_silent_session_until_its_lease_is_over(desk: Desk) -> None:
    desk.read(READER, 7)
    desk.clock.now += 4
    desk.poll(READER)
    change = desk.change(WRITER, 7)
    desk.clock.now += 9.9
    desk.promises.expire()
    assert not is_known(change)
    desk.clock.now += 0.1
    desk.promises.expire()
    assert is_known(change)
    assert desk.poll(READER).is_new


def test_who_polls_and_does_nothing_is_waited_for_two_leases_at_most(desk: Desk) -> None:
    desk.read(READER, 7)
    change = desk.change(WRITER, 7)
    for _ in range(4):
        desk.clock.now += 4
        desk.poll(READER, seen=0, is_clean=False)
    desk.clock.now += 4
    desk.promises.expire()
    assert is_known(change)


def test_nothing_is_promised_to_a_session_without_a_feed() -> None:
    desk = Desk()
    assert desk.read(READER, 7) == []
    assert desk.promises.counts() == (0, 0)


def test_what_changed_while_the_answer_was_made_is_not_promised(desk: Desk) -> None:
    began = desk.promises.begin()
    desk.change(WRITER, 7)
    assert desk.promises.give(READER, began, {7: 1, 8: 1}) == [7]
    assert desk.promises.give(READER, began, {7: 2}) == []


def test_who_reads_longer_than_changes_are_remembered_is_promised_nothing() -> None:
    desk = Desk(Bounds(recent_max=2))
    desk.poll(READER)
    began = desk.promises.begin()
    for ino in (7, 8, 9):
        desk.change(WRITER, ino)
    assert desk.promises.give(READER, began, {6: 1}) == [6]
    assert desk.read(READER, 6) == []


def test_changes_that_are_told_in_another_order_do_not_go_back(desk: Desk) -> None:
    later = desk.change(WRITER, 7, at=5)
    earlier = desk.change(OTHER, 7, at=4)
    assert (later.unpromised, earlier.unpromised) == ([], [7])
    assert desk.promises.give(READER, desk.promises.begin(), {7: 4}) == [7]


def test_a_new_worker_takes_over_promises_and_messages(desk: Desk) -> None:
    desk.read(READER, 7, 8)
    first = desk.change(WRITER, 7)
    del desk.feeds[READER]
    told = desk.poll(READER)
    assert (told.is_new, told.inos) == (True, [7])
    second = desk.change(WRITER, 8)
    assert not is_known(first)
    assert not is_known(second)
    desk.poll(READER)
    assert is_known(first)
    assert not is_known(second)


def test_what_the_feed_before_has_seen_says_nothing_to_the_new_one(desk: Desk) -> None:
    old = desk.feeds[READER]
    del desk.feeds[READER]
    new = desk.poll(READER)
    assert new.feed != old.feed
    assert not desk.promises.hear(READER, Poll(old.feed, 0, True))


def test_a_feed_that_leaves_is_waited_for_no_more(desk: Desk) -> None:
    desk.read(READER, 7)
    change = desk.change(WRITER, 7)
    desk.promises.leave(READER, desk.feeds[READER].feed + 1)
    assert not is_known(change)
    desk.promises.leave(READER, desk.feeds[READER].feed)
    assert is_known(change)
    assert desk.promises.is_gone(READER)


def test_the_newer_poll_wins(desk: Desk) -> None:
    roused = []
    number = desk.feeds[READER].feed
    assert desk.promises.tell(READER, number, lambda: roused.append(1)) is None
    assert desk.promises.tell(READER, number, lambda: roused.append(2)) is None
    assert roused == [1]
    desk.read(READER, 7)
    desk.change(WRITER, 7)
    assert roused == [1, 2]


def test_the_oldest_promises_are_broken_when_there_are_too_many() -> None:
    desk = Desk(Bounds(promises_max=3))
    desk.poll(READER)
    desk.poll(WRITER)
    desk.read(READER, 1, 2, 3)
    desk.read(READER, 4, 5)
    told = desk.poll(READER).inos
    assert len(told) == 2
    assert set(told) < {1, 2, 3}
    assert desk.promises.counts() == (2, 3)
    assert not is_known(desk.change(WRITER, told[0]))


def test_a_session_that_is_behind_ends_as_a_ghost_for_which_everybody_waits() -> None:
    desk = Desk(Bounds(messages_max=4))
    desk.poll(READER)
    desk.poll(WRITER)
    desk.read(READER, *range(10))
    first = desk.change(WRITER, 0)
    changes = [first, *(desk.change(WRITER, ino) for ino in range(1, 5)), desk.change(WRITER, 99)]
    assert not any(map(is_known, changes))
    told = desk.poll(READER)
    assert (told.is_new, told.inos) == (True, [])
    assert not any(map(is_known, changes))
    desk.poll(READER, is_clean=False)
    assert not any(map(is_known, changes))
    desk.poll(READER)
    assert all(map(is_known, changes))


def test_a_session_that_is_half_behind_is_promised_nothing_more() -> None:
    desk = Desk(Bounds(messages_max=4))
    desk.poll(READER)
    desk.read(READER, 1, 2, 3)
    desk.change(WRITER, 1, 2, 3)
    assert desk.read(READER, 7) == [7]
    desk.poll(READER)
    desk.poll(READER)
    assert desk.read(READER, 7) == []


def test_after_a_start_changes_wait_until_all_who_were_there_are_clean() -> None:
    desk = Desk(before={READER: LEASE, OTHER: LEASE})
    change = desk.change(WRITER, 7)
    desk.poll(READER)
    desk.poll(READER)
    assert not is_known(change)
    desk.poll(OTHER)
    desk.promises.leave(OTHER, desk.feeds[OTHER].feed)
    assert is_known(change)
    assert is_known(desk.change(WRITER, 7))


def test_after_a_start_changes_wait_for_a_lease_at_most() -> None:
    desk = Desk(before={READER: LEASE})
    change = desk.change(WRITER, 7)
    desk.clock.now += LEASE
    desk.promises.expire()
    assert is_known(change)


def test_a_change_of_nothing_waits_for_nobody() -> None:
    desk = Desk(before={READER: LEASE})
    assert is_known(desk.change(WRITER))


def test_a_reply_that_is_given_again_waits_for_all_that_was_told_or_is_being_told(desk: Desk) -> None:
    desk.read(READER, 7)
    done = threading.Event()

    def ask_again() -> None:
        desk.promises.wait_for_all(desk.author(WRITER))
        done.set()

    with desk.promises.changing(desk.author(WRITER)) as change:
        asking = threading.Thread(target=ask_again)
        asking.start()
        desk.promises.tell_change(change, {7: 2}, {7: 2})
        assert not done.is_set()
    desk.poll(READER)
    assert not done.is_set()
    desk.poll(READER)
    asking.join()
    assert done.is_set()
    assert desk.promises.give(WRITER, 0, {7: 2}) == [7]


def test_waiting_ends_by_time_without_anybody_polling() -> None:
    promises = Promises(0.05, Bounds())
    promises.join(READER)
    promises.give(READER, promises.begin(), {7: 1})
    with promises.changing(Author(WRITER, 0)) as change:
        promises.tell_change(change, {7: 2}, {})
    promises.wait(change.waiting)
    assert is_known(change)
    assert promises.is_gone(READER)


def test_a_ghost_is_waited_for_until_its_lease_is_over() -> None:
    desk = Desk(Bounds(messages_max=1))
    desk.poll(READER)
    desk.read(READER, 7, 8)
    desk.clock.now += 4
    desk.poll(READER)
    change = desk.change(WRITER, 7, 8)
    desk.clock.now += 9.9
    desk.promises.expire()
    assert not is_known(change)
    desk.clock.now += 0.1
    desk.promises.expire()
    assert is_known(change)
