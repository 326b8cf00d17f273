"""Whose turn it is to wait for the kernel's next request.

Two threads that contend for the interpreter take twice the time of one: each gives it up at every system
call, the other one is woken, and so on. A program that opens and closes files has two requests under way
nearly all the time. So a binding's thread may *keep* the turn while it carries out what will be done in a
moment, and one thread is at work. Nobody reads meanwhile: whatever waits for a service, for another program,
or for the kernel to have something answered, says ``about_to_wait`` before.
"""

import threading
from collections.abc import Callable


class _Thread(threading.local):
    pass_on: Callable[[], None] | None = None


_thread = _Thread()


def keep(pass_on: Callable[[], None] | None) -> None:
    """From now on this thread has the turn, until it calls ``pass_on``; None: it has it no more."""
    _thread.pass_on = pass_on


def about_to_wait() -> None:
    """Passes the turn on, if this thread has it."""
    pass_on = _thread.pass_on
    if pass_on is not None:
        _thread.pass_on = None
        pass_on()
