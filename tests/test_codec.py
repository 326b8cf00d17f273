"""Structs to bytes and back, by many threads."""

import subprocess
import sys

# In a process of its own: what goes wrong here ends it.
FIRST_MESSAGES = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Annotated

import msgspec

from wire.codec import decode, encode

THREADS = 4
sys.setswitchinterval(1e-6)
start = Barrier(THREADS)


def first(data, kind):
    start.wait()
    return decode(data, kind)


with ThreadPoolExecutor(THREADS) as threads:
    for number in range(30):
        fields = [(f"field_{index}", Annotated[int, msgspec.Meta(ge=0)], 0) for index in range(20)]
        inner = msgspec.defstruct(f"Inner{number}", fields)
        outer = msgspec.defstruct(f"Outer{number}", [("inner", list[inner])])
        message = outer([inner()])
        found = threads.map(first, [encode(message)] * THREADS, [outer] * THREADS)
        assert list(found) == [message] * THREADS
"""


def test_the_first_messages_of_a_kind_may_come_at_once() -> None:
    subprocess.run([sys.executable, "-c", FIRST_MESSAGES], check=True, timeout=60)
