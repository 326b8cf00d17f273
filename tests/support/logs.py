"""Logs as witnesses: a warning, an error or a traceback that no test announced is a failure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_BEGINS = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
_ALARM = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^Traceback |^Exception |panicked at|\w+Warning: ", re.M)


def unexpected(logs: Iterable[Path], expected: Sequence[re.Pattern[str]]) -> list[str]:
    """The alarming records in ``logs`` that none of ``expected`` is found in, each with its file's name."""
    return [
        f"{log.name}: {record}"
        for log in logs
        for record in _records(log)
        if _ALARM.search(record) and not any(pattern.search(record) for pattern in expected)
    ]


def _records(log: Path) -> Iterator[str]:
    """A record is a line that begins with a time, and what follows it without one."""
    record: list[str] = []
    for line in log.read_text(errors="replace").splitlines():
        if _BEGINS.match(line) and record:
            yield "\n".join(record)
            record = []
        record.append(line)
    if record:
        yield "\n".join(record)
