"""The fields of a crontab: texts, numbers and collections, read into sets of numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
NAMES: Final = {name: number for number, name in enumerate(DAYS)} | {
    name: number for number, name in enumerate(MONTHS, start=1)
}

_PART = re.compile(r"(?:(?P<all>\*)|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<step>\d+))?")


class ParseException(ValueError):
    """A field of a crontab that cannot be read; the text says which part, and what may stand there."""


class Bounds(NamedTuple):
    """What a field may hold: its name, and the least and greatest number."""

    name: str
    least: int
    most: int


MINUTE: Final = Bounds("minute", 0, 59)
HOUR: Final = Bounds("hour", 0, 23)
DAY_OF_WEEK: Final = Bounds("day_of_week", 0, 6)
DAY_OF_MONTH: Final = Bounds("day_of_month", 1, 31)
MONTH_OF_YEAR: Final = Bounds("month_of_year", 1, 12)


class crontab_parser:
    """Reads one field's text.

    Groups are separated by commas; each is `*`, `*/n`, `a`, `a-b` or `a-b/n`. A range may wrap (`22-3`, `fri-mon`).
    Days and months may be names, of which the first three letters count. `*/n` counts from the least number.

    Args:
        max_: How many numbers the field has.
        min_: Its least number.
    """

    def __init__(self, max_: int = 60, min_: int = 0) -> None:
        self._bounds = Bounds("field", min_, max_ + min_ - 1)

    def parse(self, spec: str) -> set[int]:
        """The numbers that the text means.

        Raises:
            ParseException: It cannot be read.
        """
        return set(parse_field(spec, self._bounds))


def read_field(value: Any, bounds: Bounds) -> frozenset[int]:
    """The numbers of a field that was given as a number, a text or a collection of numbers.

    Raises:
        ValueError: A number out of bounds, or a text that cannot be read.
        TypeError: Neither number, text nor collection.
    """
    if isinstance(value, int):
        numbers: Iterable[Any] = (value,)
    elif isinstance(value, str):
        return parse_field(value, bounds)
    elif isinstance(value, Iterable):
        numbers = tuple(value)
    else:
        raise TypeError(
            f"crontab: {bounds.name} must be a number, a text or a collection of numbers, "
            f"not {type(value).__name__}: {value!r}"
        )
    found = frozenset(numbers)
    wrong = [number for number in found if not isinstance(number, int) or not bounds.least <= number <= bounds.most]
    if wrong or not found:
        raise ValueError(
            f"crontab: {bounds.name}={value!r}: {wrong[0] if wrong else 'no number'!r} is not "
            f"between {bounds.least} and {bounds.most}"
        )
    return frozenset(int(number) for number in found)


def parse_field(text: str, bounds: Bounds) -> frozenset[int]:
    """See `crontab_parser`."""
    found: set[int] = set()
    for part in text.split(","):
        found.update(_parse_part(part.strip(), text, bounds))
    return frozenset(found)


def _parse_part(part: str, text: str, bounds: Bounds) -> list[int]:
    match = _PART.fullmatch(part)
    if match is None:
        raise ParseException(
            f"crontab: {bounds.name}={text!r}: {part!r} is none of *, */n, a, a-b, a-b/n (several with commas between)"
        )
    everything, first, last, step = match["all"], match["first"], match["last"], match["step"]
    if everything:
        numbers = list(range(bounds.least, bounds.most + 1))
    else:
        begin = _number(first, text, bounds)
        end = begin if last is None else _number(last, text, bounds)
        if step is not None and last is None:
            raise ParseException(f"crontab: {bounds.name}={text!r}: a step needs a range ({first}-{bounds.most}/n)")
        numbers = (
            list(range(begin, end + 1))
            if begin <= end
            else [*range(begin, bounds.most + 1), *range(bounds.least, end + 1)]
        )
    if step is not None:
        if int(step) == 0:
            raise ParseException(f"crontab: {bounds.name}={text!r}: the step of {part!r} must be at least 1")
        numbers = numbers[:: int(step)]
    return numbers


def _number(word: str, text: str, bounds: Bounds) -> int:
    if word.isdecimal():
        number = int(word)
    else:
        known = NAMES.get(word[:3].lower()) if len(word) >= 3 else None
        if known is None:
            raise ParseException(f"crontab: {bounds.name}={text!r}: {word!r} is neither a number nor a day or month")
        number = known
    if not bounds.least <= number <= bounds.most:
        hint = " (Sunday is 0)" if bounds is DAY_OF_WEEK and number == 7 else ""
        raise ParseException(
            f"crontab: {bounds.name}={text!r}: {word} is not between {bounds.least} and {bounds.most}{hint}"
        )
    return number
