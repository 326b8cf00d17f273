"""A request as the loop hands it on, and what an operation may answer."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Later:
    """The answer is what ``run`` returns, in a thread of its own: it may have to wait for very long."""

    run: "Callable[[], Answer]"


Answer = bytes | memoryview | Later | None
"""What follows the header of the answer; None: there is no answer at all."""

DONE = b""
"""The answer that says no more than that it was done."""


@dataclass(slots=True)
class Request:
    """The header's fields that operations look at, and what follows it. ``room`` is the thread's: an answer
    may be put there."""

    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    body: memoryview
    room: memoryview


Methods = dict[int, Callable[[Request], Answer]]
"""By opcode. They raise OSError, whose errno is the answer, and Malformed."""

MethodsAtOnce = dict[int, Callable[[int, int, memoryview], bytes | None]]
"""By opcode: what can be answered out of memory, given the request's number, the inode and what follows the
header; None: not this time, it is to be carried out like any other request. They never wait, not for a lock
either that somebody holds for longer than a look, and raise nothing but Malformed. Nobody reads the next
request before they are answered. Of what they do no other worker need know, or it is on the slate."""
