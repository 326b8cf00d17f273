"""What the numbers among a service's options may be: ``dfs serve`` and ``dfs up --set`` refuse the rest."""

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]

Bytes = Annotated[int, Meta(ge=0)]

Seconds = Annotated[float, Meta(ge=0.0)]
"""Zero: not at all, or at once."""

Period = Annotated[float, Meta(ge=0.01)]
"""What is done again and again, or for how long something holds: not all the time, and not never."""
