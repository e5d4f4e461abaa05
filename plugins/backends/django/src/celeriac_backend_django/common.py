"""What both backends need: Django brought up, ids that fit, times, errors of Django's made ours."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, Final, TypeVar

import django
from django.apps import apps
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured as DjangoMisconfigured

from celeriac.exceptions import ImproperlyConfigured, SettingError
from celeriac.states import READY_STATES, SUCCESS

T = TypeVar("T")

PLAIN_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
#: What one statement inserts, but for what is longer by itself: MySQL hangs up on statements that are too long.
SIZE_PER_STATEMENT: Final = 2**18
#: Bytes that MySQL's client escapes, and more than the rest of a statement has.
_ESCAPED: Final = (b"\0", b"\n", b"\r", b"\x1a", b'"', b"'", b"\\")
_SQL_BYTES: Final = 16_384


def bring_up(name: str) -> None:
    """Make sure that Django is set up.

    Raises:
        ImproperlyConfigured: There is no project to set up.
    """
    try:
        if not django_settings.configured or not apps.ready:
            django.setup()
    except DjangoMisconfigured as exc:
        raise ImproperlyConfigured(
            f"result_backend = {name!r} needs a Django project: {exc} Set DJANGO_SETTINGS_MODULE "
            "before the app is made."
        ) from exc


def fitting_id(text: str) -> str:
    """An id as a column or a cache's key takes it: as it is, or its hash (R11)."""
    if PLAIN_ID.fullmatch(text):
        return text
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def replaces(old: str, new: str) -> bool:
    """R3: a success is final, and what is ready is not undone by what is not."""
    return old != SUCCESS and (old not in READY_STATES or new in READY_STATES)


def winners(states: Iterable[tuple[str, str, Any]]) -> dict[str, Any]:
    """What would stand if these `(task id, state, value)` were written one by one: task id → value."""
    kept: dict[str, tuple[str, Any]] = {}
    for task_id, state, value in states:
        if task_id not in kept or replaces(kept[task_id][0], state):
            kept[task_id] = state, value
    return {task_id: kept[task_id][1] for task_id in sorted(kept)}


def in_statements(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """The items, in order, in as many lists as fit into one statement each."""
    some: list[T] = []
    size = 0
    for item in items:
        more = size_of(item)
        if some and size + more > SIZE_PER_STATEMENT:
            yield some
            some, size = [], 0
        some.append(item)
        size += more
    if some:
        yield some


def statement_size(*texts: bytes) -> int:
    """How many bytes MySQL's client sends for a statement with these: each of some characters becomes two."""
    return _SQL_BYTES + sum(len(text) + sum(map(text.count, _ESCAPED)) for text in texts)


def lifetime(expires: Any) -> timedelta | None:
    """`result_expires` as a timedelta; None when results are kept for ever.

    Raises:
        SettingError: Neither a number nor a timedelta.
    """
    if isinstance(expires, timedelta):
        return expires or None
    try:
        return timedelta(seconds=float(expires)) if expires else None
    except (TypeError, ValueError):
        raise SettingError(
            f"django backend: result_expires is {expires!r}; give seconds or a timedelta", setting="result_expires"
        ) from None
