"""Types of option values that several commands share."""

from __future__ import annotations

import math
import os
from typing import Any, Final

import click

from celeriac.log.lines import LEVEL_NUMBERS, parse_level


class Seconds(click.FloatRange):
    """A number of seconds; `nan` and `inf` are none."""

    name = "number of seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return number


#: A pause; a limit, of which 0 is none; how long to wait for answers (the system takes milliseconds, in 31 bits).
PAUSE: Final = Seconds(0, min_open=True)
LIMIT: Final = Seconds(0)
WAIT: Final = Seconds(0, 2_000_000)


class Words(click.ParamType):  # type: ignore[type-arg] # generic from click 8.5 on
    """`a,b,c` as a list."""

    name = "a,b,c"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """Split at commas; a list stays one."""
        return value if isinstance(value, list) else [word.strip() for word in value.split(",") if word.strip()]


class Level(click.ParamType):  # type: ignore[type-arg] # generic from click 8.5 on
    """A log level."""

    name = "|".join(LEVEL_NUMBERS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Its number."""
        try:
            return parse_level(value)
        except ValueError as exc:
            self.fail(f"{exc}.", param, ctx)


class Slots(click.ParamType):  # type: ignore[type-arg] # generic from click 8.5 on
    """A number of slots, or `auto` for one per processor."""

    name = "number|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        if isinstance(value, str) and value.lower() == "auto":
            return count_processors()
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value!r} is neither a number above 0 nor 'auto'.", param, ctx)
        return number


def count_processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
