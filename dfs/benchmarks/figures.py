"""From times to figures: rates, percentiles, medians, ratios. No input or output here."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec


class Unit(StrEnum):
    """What a figure counts. A megabyte is 10**6 bytes."""

    MEGABYTES = "MB/s"
    OPERATIONS = "op/s"
    SECONDS = "s"


@dataclass(frozen=True)
class Sample:
    """One run of one workload: ``amount`` is in megabytes or operations, whichever the unit counts."""

    seconds: float
    amount: float
    latencies_ns: Sequence[int]


class Against(msgspec.Struct, frozen=True):
    """What another directory reaches. ``ratio`` says how many times as fast the first directory is as this
    one, whatever the unit: above 1 is faster. It is the median of the rounds' own ratios, because the runs of
    a round are neighbours in time; it need not be the quotient of the two medians.
    """

    value: float
    ratio: float


class Figure(msgspec.Struct, frozen=True):
    """One row of the report.

    ``value`` is the median of the rounds, in ``unit``; the percentiles are of all operations of all rounds.
    ``against`` has the other directories in the order in which they were named.
    """

    name: str
    threads: int
    unit: Unit
    value: float
    p50_ms: float
    p99_ms: float
    against: list[Against] = []


def percentile(ordered: Sequence[int], percent: float) -> int:
    """The smallest of the ordered values that is not below ``percent`` % of them (nearest rank).

    Raises ValueError without values."""
    if not ordered:
        raise ValueError("no values, no percentile")
    rank = math.ceil(len(ordered) * percent / 100)
    return ordered[max(rank, 1) - 1]


def value(sample: Sample, unit: Unit) -> float:
    """The sample's rate, or its seconds."""
    return sample.seconds if unit is Unit.SECONDS else sample.amount / sample.seconds


def speed_ratio(ours: float, theirs: float, unit: Unit) -> float:
    """How many times as fast ``ours`` is."""
    return theirs / ours if unit is Unit.SECONDS else ours / theirs


def summarise(
    name: str, threads: int, unit: Unit, samples: Sequence[Sample], *others: Sequence[Sample]
) -> Figure:
    """The figure of one workload from its rounds; each of ``others`` has as many."""
    ours = [value(sample, unit) for sample in samples]
    ordered = sorted(latency for sample in samples for latency in sample.latencies_ns)
    return Figure(
        name,
        threads,
        unit,
        statistics.median(ours),
        percentile(ordered, 50) / 1e6,
        percentile(ordered, 99) / 1e6,
        [_compare(ours, [value(sample, unit) for sample in other], unit) for other in others],
    )


def _compare(ours: Sequence[float], theirs: Sequence[float], unit: Unit) -> Against:
    ratios = [speed_ratio(a, b, unit) for a, b in zip(ours, theirs, strict=True)]
    return Against(statistics.median(theirs), statistics.median(ratios))
