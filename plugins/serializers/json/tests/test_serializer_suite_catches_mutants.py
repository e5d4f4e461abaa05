"""The serializers' suite is worth its name: each serializer below breaks a promise, and the named test finds it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from celeriac.testing.serializer_suite import SerializerConformance
from celeriac_serializer_json.serializer import JsonSerializer


class Texting(JsonSerializer):
    """Makes text instead of bytes."""

    def dumps(self, obj: Any) -> Any:
        return super().dumps(obj).decode()


class Approximate(JsonSerializer):
    """Takes whole numbers for floats."""

    def loads(self, data: bytes) -> Any:
        value = super().loads(data)
        return float(value) if type(value) is int else value


class Latin(JsonSerializer):
    """Loses what Latin-1 has no letter for."""

    def loads(self, data: bytes) -> Any:
        value = super().loads(data)
        return value.encode("latin-1", "replace").decode("latin-1") if type(value) is str else value


class Describing(JsonSerializer):
    """Sends a description of what it does not know."""

    def dumps(self, obj: Any) -> bytes:
        try:
            return super().dumps(obj)
        except TypeError:
            return super().dumps(repr(obj))


class Fragile(JsonSerializer):
    """Lets its parser's own errors out."""

    def loads(self, data: bytes) -> Any:
        try:
            return super().loads(data)
        except ValueError as exc:
            raise EOFError("unexpected end") from exc


class Mislabelled(JsonSerializer):
    """Says that it writes something else."""

    content_type = "text/plain"


MUTANTS: list[tuple[type[JsonSerializer], str]] = [
    (Texting, "test_plain_values_come_back_as_they_were"),
    (Approximate, "test_plain_values_come_back_as_they_were"),
    (Latin, "test_plain_values_come_back_as_they_were"),
    (Describing, "test_what_it_does_not_know_is_refused"),
    (Fragile, "test_B26_any_bytes_give_a_value_or_a_value_error"),
    (Mislabelled, "test_it_declares_what_it_was_said_to_declare"),
]


@pytest.mark.parametrize(("mutant", "clause"), MUTANTS, ids=lambda value: getattr(value, "__name__", value))
def test_the_suite_finds_a_serializer_that_breaks_a_promise(mutant: type[JsonSerializer], clause: str) -> None:
    with pytest.raises((AssertionError, EOFError, pytest.fail.Exception)):
        _run(mutant(), clause)


@pytest.mark.parametrize("clause", sorted({clause for _, clause in MUTANTS}))
def test_the_same_tests_pass_with_a_serializer_that_keeps_them(clause: str) -> None:
    _run(JsonSerializer(), clause)


def _run(serializer: JsonSerializer, clause: str) -> None:
    """Call one test of the suite as pytest would, once for each of its parameters."""

    class Suite(SerializerConformance):
        plugin = "celeriac_serializer_json"
        name = "json"
        content_type = "application/json"
        content_encoding = "utf-8"
        unsafe = False

    test: Callable[..., Any] = getattr(Suite(), clause)
    rows = [mark.args[1] for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    for value in rows[0] if rows else [None]:
        given = {"serializer": serializer, "value": value}
        test(**{name: given[name] for name in inspect.signature(test).parameters})
