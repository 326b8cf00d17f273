"""Checking passwords: how much of it at once, and how often somebody may guess.

Invariant: a guess is counted, durably, before the password is looked at. So neither many guesses at
once nor a crash in between gives anybody a guess that is not counted. A right one takes the count back.
"""

import errno
import hashlib
import hmac
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from servers.auth import store
from wire.errors import SlowDown, Unavailable, fail
from wire.messages.auth import KeyDerivation
from wire.passwords import derive

PASSWORD_CHARACTERS_MIN = 8
WORKING_MAX = 2
"""Derivations at a time: each takes its share of memory."""
WAITING_MAX = 8
"""Requests that derive or wait for it; others keep their threads for what is quick."""

FREE_GUESSES = 3
WAIT_SECONDS_MAX = 60
GUESSES_KEPT_SECONDS = 3600.0
"""Wrong guesses are forgotten after so long a silence, in which more could have been made than are gained."""


class Passwords:
    """Derives with these parameters of Argon2id, for a limited number of requests at a time."""

    def __init__(self, memory_kib: int, iterations: int) -> None:
        self._memory_kib = memory_kib
        self._iterations = iterations
        self._waiting = threading.BoundedSemaphore(WAITING_MAX)
        self._working = threading.BoundedSemaphore(WORKING_MAX)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """The right to derive. Raises Unavailable if too many wait for it."""
        if not self._waiting.acquire(blocking=False):
            raise Unavailable("too many people are logging in at the moment")
        try:
            with self._working:
                yield
        finally:
            self._waiting.release()

    def new_derivation(self) -> KeyDerivation:
        """How a password that is set now will be derived."""
        # One lane: requests run side by side already.
        return KeyDerivation(os.urandom(16), self._iterations, 1, self._memory_kib)


def verifier_of(password: str, derivation: KeyDerivation) -> bytes:
    """What is stored of a password."""
    proof, _token_key = derive(password, derivation)
    return hashlib.sha256(proof).digest()


def check(password: str, derivation: KeyDerivation, verifier: bytes) -> tuple[bool, bytes]:
    """Whether it is the password, and the key of the login's token. Always takes the same time."""
    proof, token_key = derive(password, derivation)
    return hmac.compare_digest(hashlib.sha256(proof).digest(), verifier), token_key


def check_new(password: str) -> None:
    """Raises EINVAL for a password that is too short."""
    if len(password) < PASSWORD_CHARACTERS_MIN:
        raise fail(errno.EINVAL, f"a password has at least {PASSWORD_CHARACTERS_MIN} characters")


def count_guess(connection: Connection, name: str, now: float) -> None:
    """Counts a guess as wrong, until it turns out to be right. Raises SlowDown if it comes too early."""
    wrong, at = store.wrong_guesses(connection, name)
    elapsed = max(0.0, now - at)  # also when the clock was set back
    if elapsed > GUESSES_KEPT_SECONDS:
        wrong = 0
    if wrong >= FREE_GUESSES:
        wait = min(2 ** min(wrong - FREE_GUESSES, 10), WAIT_SECONDS_MAX)
        if elapsed < wait:
            left = wait - elapsed
            raise SlowDown(f"too many wrong passwords; try again in {math.ceil(left)} s", left)
    store.set_wrong_guesses(connection, name, wrong + 1, now)


def uncount_guess(connection: Connection, name: str) -> None:
    """Takes back the count of a request that was carried out before: it resets nothing, so that
    repeating somebody's login buys no guesses."""
    wrong, at = store.wrong_guesses(connection, name)
    store.set_wrong_guesses(connection, name, max(0, wrong - 1), at)
