"""A number on the command line: within its bounds, and a number."""

import math
from typing import Any

import click


class Number(click.FloatRange):
    """NaN is neither less nor more than anything, so bounds alone let it pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Raises BadParameter."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number
