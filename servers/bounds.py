"""What the numbers among a service's options may be: ``dfs serve`` and ``dfs up --set`` refuse the rest."""

from typing import Annotated

from msgspec import Meta

SECONDS_MAX = 1e9
"""Thirty years. Much more, or an infinity, is more than a thread can wait or 64 bits of nanoseconds hold."""

INTEGER_MAX = 2**63 - 1
"""What a database holds."""

Count = Annotated[int, Meta(ge=1, le=INTEGER_MAX)]

Bytes = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]

Seconds = Annotated[float, Meta(ge=0.0, le=SECONDS_MAX)]
"""Zero: not at all, or at once."""

Period = Annotated[float, Meta(ge=0.01, le=SECONDS_MAX)]
"""What is done again and again, or for how long something holds: not all the time, and not never."""
