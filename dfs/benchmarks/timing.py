"""Times operations, in one thread or in several at once.

The stamps of a thread follow each other without a gap: an operation's latency includes fetching its item, so
that walking through a directory counts. Several threads share Python's interpreter lock; that is in the
figures of all directories alike.
"""

import math
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

from dfs.benchmarks.figures import Sample

T = TypeVar("T")


def timed(
    shares: Sequence[Iterable[T]], operation: Callable[[T], object], seconds_max: float = math.inf
) -> Sample:
    """Calls ``operation`` with every item, a thread a share, for at most about ``seconds_max``.

    The amount is the number of operations. Raises what an operation raised; that, or an interrupt, ends all
    threads after the operation that they are in."""
    gate = threading.Barrier(len(shares))
    stop = threading.Event()

    def work(share: Iterable[T]) -> "array[int]":
        gate.wait()
        stamps = array("q", [time.perf_counter_ns()])
        until = stamps[0] + seconds_max * 1e9
        try:
            for item in share:
                operation(item)
                now = time.perf_counter_ns()
                stamps.append(now)
                if now > until or stop.is_set():
                    break
        except BaseException:
            stop.set()
            raise
        return stamps

    with ThreadPoolExecutor(len(shares)) as pool:
        futures = [pool.submit(work, share) for share in shares]
        try:
            tracks = [future.result() for future in futures]
        finally:
            stop.set()
            gate.abort()
    return sample_of(tracks)


def sample_of(tracks: Sequence[Sequence[int]]) -> Sample:
    """The sample of several threads' stamps, in ns: the clock runs from the first start to the last end."""
    begin = min(track[0] for track in tracks)
    end = max(track[-1] for track in tracks)
    latencies = array("q", (later - earlier for track in tracks for earlier, later in pairwise(track)))
    return Sample(max(end - begin, 1) / 1e9, len(latencies), latencies)
