"""What sessions believe by the rules of the feed, against all that can happen to polls, reads and changes."""

from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from servers.directory.promises import Author, Bounds, Change, Promises
from tests.support.times import Clock
from wire.messages.directory import Poll, Told

LEASE = 10.0
MARGIN = 0.9
SESSIONS = st.sampled_from([1, 2, 3])
INOS = st.sampled_from([11, 12, 13, 14])
BOUNDS = Bounds(promises_max=5, messages_max=4, recent_max=3)


@dataclass
class Read:
    """A question on its way: asked after so many messages were carried out, and what it saw."""

    asked: int
    began: int
    seen: dict[int, int] = field(default_factory=dict)


@dataclass
class Mount:
    """A session by the rules: it drops what it is told of, and every answer that was under way then."""

    session: int
    feed: int = 0
    seen: int = 0
    is_clean: bool = False
    until: float = 0.0
    """What it believes, it believes until then."""
    believed: dict[int, int] = field(default_factory=dict)
    steps: int = 0
    dropped: dict[int, int] = field(default_factory=dict)
    """Inode (0: all) to the step at which it was dropped last."""
    reads: list[Read] = field(default_factory=list)
    under_way: list[tuple[int, dict[int, int]]] = field(default_factory=list)
    """Answers that promise, with the step of the question."""
    polls: list[tuple[Poll, float]] = field(default_factory=list)

    def drop(self, ino: int) -> None:
        """Believes nothing of it, nor what is under way."""
        self.steps += 1
        self.dropped[ino] = self.steps
        self.believed.pop(ino, None)

    def may_believe(self, ino: int, asked: int) -> bool:
        """Whether an answer to a question of step ``asked`` counts."""
        return max(self.dropped.get(ino, 0), self.dropped.get(0, 0)) <= asked

    def believe(self, asked: int, promised: dict[int, int]) -> None:
        """An answer to a question of step ``asked``."""
        for ino, change in promised.items():
            if self.feed and self.may_believe(ino, asked):
                self.believed[ino] = max(change, self.believed.get(ino, 0))

    def take(self, told: Told, sent: float) -> None:
        """An answer to a poll."""
        if told.is_new:
            self.believed.clear()
            self.drop(0)
            self.is_clean = True
        for ino in told.inos:
            self.drop(ino)
        self.feed, self.seen = told.feed, told.last
        self.until = sent + MARGIN * LEASE


@dataclass
class Made:
    """A change that is in the database."""

    change: Change
    ino: int
    at: int
    asked: int
    is_told: bool = False
    is_given_up: bool = False
    """Nobody hears the answer."""


class Directory(RuleBasedStateMachine):
    """Time stands between the steps; ``truth`` is the database."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.promises = Promises(LEASE, BOUNDS, clock=self.clock)
        self.mounts = {session: Mount(session) for session in (1, 2, 3)}
        self.truth = dict.fromkeys((11, 12, 13, 14), 1)
        self.acknowledged = dict(self.truth)
        self.made: list[Made] = []
        self.given_up: list[tuple[Author, int]] = []
        """Changes that are not made yet, and of which inodes."""
        self.recorded: set[int] = set()

    @initialize()
    def all_are_clean(self) -> None:
        for session in self.mounts:
            self.poll(session, (True, True))
            self.poll(session, (True, True))

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 6.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(session=SESSIONS, fate=st.sampled_from([(True, True), (True, True), (True, False), (False, False)]))
    def poll(self, session: int, fate: tuple[bool, bool]) -> None:
        """It arrives, and its answer does; or not."""
        arrives, is_answered = fate
        mount = self.mounts[session]
        poll, sent = Poll(mount.feed, mount.seen, mount.is_clean), self.clock.now
        mount.polls.append((poll, sent))
        if arrives:
            told = self._answer(session, poll)
            if is_answered:
                mount.take(told, sent)

    def _answer(self, session: int, poll: Poll) -> Told:
        if not self.promises.hear(session, poll):
            self.recorded.add(session)
            return self.promises.join(session)
        told = self.promises.tell(session, poll.feed, None)
        assert told is not None
        return told

    @rule(session=SESSIONS, data=st.data())
    def an_old_poll_arrives_late(self, session: int, data: st.DataObject) -> None:
        polls = self.mounts[session].polls
        if polls:
            self._answer(session, data.draw(st.sampled_from(polls))[0])

    @rule(session=SESSIONS)
    def another_worker(self, session: int) -> None:
        """It knows nothing; what the kernel believes stays until the first answer."""
        mount = self.mounts[session]
        mount.feed = mount.seen = 0
        mount.is_clean = False
        mount.reads.clear()
        mount.under_way.clear()

    @rule(session=SESSIONS)
    def leave(self, session: int) -> None:
        mount = self.mounts[session]
        mount.believed.clear()
        mount.drop(0)
        self.promises.leave(session, mount.feed)
        mount.feed = mount.seen = 0
        mount.until = 0.0

    @rule(session=SESSIONS, inos=st.sets(INOS, min_size=1))
    def read(self, session: int, inos: set[int]) -> None:
        """All of it at once."""
        self.mounts[session].reads.clear()
        self.ask(session)
        self.answer(session, inos)

    @rule(session=SESSIONS)
    def ask(self, session: int) -> None:
        mount = self.mounts[session]
        mount.reads.append(Read(mount.steps, self.promises.begin()))

    @rule(session=SESSIONS)
    def look(self, session: int) -> None:
        for read in self.mounts[session].reads:
            read.seen = read.seen or dict(self.truth)

    @rule(session=SESSIONS, inos=st.sets(INOS, min_size=1))
    def answer(self, session: int, inos: set[int]) -> None:
        """The answer is made and arrives, in one step or never."""
        mount = self.mounts[session]
        if not mount.reads:
            return
        read = mount.reads.pop(0)
        seen = {ino: change for ino, change in (read.seen or self.truth).items() if ino in inos}
        unpromised = self.promises.give(session, read.began, seen)
        mount.believe(read.asked, {ino: at for ino, at in seen.items() if ino not in unpromised})

    @rule(session=SESSIONS, inos=st.sets(INOS, min_size=1))
    def promise(self, session: int, inos: set[int]) -> None:
        """As ``read``, and the answer is on its way still."""
        mount = self.mounts[session]
        began = self.promises.begin()
        seen = {ino: self.truth[ino] for ino in inos}
        unpromised = self.promises.give(session, began, seen)
        mount.under_way.append((mount.steps, {ino: at for ino, at in seen.items() if ino not in unpromised}))

    @rule(session=SESSIONS)
    def it_arrives(self, session: int) -> None:
        mount = self.mounts[session]
        if mount.under_way:
            asked, promised = mount.under_way.pop(0)
            mount.believe(asked, promised)

    @rule(session=SESSIONS, ino=INOS)
    def change_and_tell(self, session: int, ino: int) -> None:
        self.change(session, ino)
        self._tell(self.made[-1])

    @rule(session=SESSIONS, ino=INOS)
    def change(self, session: int, ino: int) -> None:
        """In the database, and not told yet. The session itself believes nothing of it meanwhile."""
        mount = self.mounts[session]
        mount.drop(ino)
        self._make(Author(session, mount.feed), ino, mount.steps)

    def _make(self, author: Author, ino: int, asked: int, *, is_given_up: bool = False) -> None:
        change = Change(author, self.promises.begin())
        self.truth[ino] = max(self.truth.values()) + 1
        self.made.append(Made(change, ino, self.truth[ino], asked, is_given_up=is_given_up))

    @rule(session=SESSIONS, ino=INOS)
    def give_up(self, session: int, ino: int) -> None:
        """A change has not come to the directory yet. Who made it waits no longer, and begins a new feed."""
        mount = self.mounts[session]
        self.given_up.append((Author(session, mount.feed), ino))
        mount.believed.clear()
        mount.drop(0)
        mount.feed = mount.seen = 0
        mount.until = 0.0

    @rule()
    def what_was_given_up_is_made(self) -> None:
        if self.given_up:
            author, ino = self.given_up.pop(0)
            self._make(author, ino, 0, is_given_up=True)

    @rule(data=st.data())
    def tell(self, data: st.DataObject) -> None:
        waiting = [made for made in self.made if not made.is_told]
        if waiting:
            self._tell(data.draw(st.sampled_from(waiting)))

    def _tell(self, made: Made) -> None:
        made.is_told = True
        shown = {made.ino: made.at}
        self.promises.tell_change(made.change, shown, shown)

    @rule()
    def directory_is_killed(self) -> None:
        """What was told to nobody is not acknowledged; who asks again gets its reply after all know."""
        before = dict.fromkeys(self.recorded, LEASE)
        self.promises = Promises(LEASE, BOUNDS, before, self.clock)
        for mount in self.mounts.values():
            mount.reads.clear()
        self.made.clear()

    @invariant()
    def nobody_believes_what_was_before_an_acknowledged_change(self) -> None:
        self.promises.expire()
        for made in [made for made in self.made if made.is_told and made.change.waiting.event.is_set()]:
            self.made.remove(made)
            self.acknowledged[made.ino] = max(self.acknowledged[made.ino], made.at)
            mount = self.mounts[made.change.author.session]
            if not made.is_given_up and made.ino not in made.change.unpromised:
                mount.believe(made.asked, {made.ino: made.at})
        for mount in self.mounts.values():
            if self.clock.now < mount.until:
                for ino, change in mount.believed.items():
                    assert change >= self.acknowledged[ino], f"session {mount.session} believes {ino}"


TestPromises = Directory.TestCase
