"""The figures for a person (a table) and for a program (JSON)."""

from collections.abc import Sequence

import msgspec
from rich.table import Table

from dfs.benchmarks.figures import Figure

WIDTH = 140
"""Columns for a table that is not shown on a terminal."""


def as_json(figures: Sequence[Figure]) -> str:
    """A list of objects with the fields of Figure."""
    return msgspec.json.format(msgspec.json.encode(figures), indent=2).decode()


def as_table(figures: Sequence[Figure], rounds: int, others: Sequence[str] = ()) -> Table:
    """One row a figure. ``others`` names the other directories."""
    table = Table(caption=_caption(rounds, others), caption_justify="left")
    table.add_column("workload")
    numbers = [""] if len(others) == 1 else [f" {number}" for number in range(1, len(others) + 1)]
    compared = [heading + number for number in numbers for heading in ("against", "ratio")]
    for heading in ("threads", "value", "unit", "p50 ms", "p99 ms", *compared):
        table.add_column(heading, justify="left" if heading == "unit" else "right", no_wrap=True)
    for figure in figures:
        table.add_row(*_cells(figure))
    return table


def _cells(figure: Figure) -> list[str]:
    row = [figure.name, str(figure.threads), digits(figure.value), figure.unit.value]
    row += [digits(figure.p50_ms), digits(figure.p99_ms)]
    for other in figure.against:
        row += [digits(other.value), digits(other.ratio)]
    return row


def digits(value: float) -> str:
    """Three digits that matter: 0.00512, 1.23, 45.6, 789, 12,345."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _caption(rounds: int, others: Sequence[str]) -> str:
    said = f"Median of {rounds} rounds. 1 MB is 10^6 bytes. Latencies: single operations of all rounds."
    if not others:
        return said
    return (
        f"{said}\nAgainst {', '.join(others)}, by turns. "
        "Ratio: how many times as fast; median of the rounds' ratios."
    )
