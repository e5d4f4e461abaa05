"""The json serializer writes kombu's bytes, reads them back, and keeps the contract."""

from __future__ import annotations

import sys
import types
import uuid
from collections import namedtuple
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any

import kombu.serialization
import pytest
from kombu.utils.json import register_type

from celeriac.testing.serializer_suite import SerializerConformance
from celeriac_serializer_json import serializer as module
from celeriac_serializer_json.serializer import JsonSerializer

Point = namedtuple("Point", "x y")


class Colour(IntEnum):
    RED = 1


class Shape(Enum):
    ROUND = "round"


class Celsius:
    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def __json__(self) -> Any:
        return {"degrees": self.degrees}


EXTENDED = [
    datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc),
    datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    datetime(2026, 1, 2),
    date(2026, 1, 2),
    time(3, 4),
    Decimal("1.50"),
    Decimal("NaN"),
    uuid.UUID(int=5),
    b"plain",
    b"\xff\x00",
    (1, 2),
    Point(1, 2),
    Colour.RED,
    Celsius(21.5),
    {1: "a", None: "b", False: "c", 2.5: "d"},
    [Decimal("1"), {"when": date(2026, 1, 2)}],
    float("inf"),
    2**70,
    "\ud800",
    1e16,
    "grün \N{SNOWMAN} \x7f \u2028",
]


def kombu_dumps(value: Any) -> bytes:
    written: str = kombu.serialization.dumps(value, "json")[2]
    return written.encode()


def kombu_loads(data: bytes) -> Any:
    return kombu.serialization.loads(data, "application/json", "utf-8", force=True)


class TestJson(SerializerConformance):
    plugin = "celeriac_serializer_json"
    name = "json"
    content_type = "application/json"
    content_encoding = "utf-8"
    unsafe = False
    extras = (
        datetime(2026, 1, 2, tzinfo=timezone.utc),
        date(2026, 1, 2),
        time(3, 4),
        Decimal("1.5"),
        uuid.UUID(int=5),
        b"\xff",
        b"x",
    )


@pytest.fixture
def json() -> JsonSerializer:
    return JsonSerializer()


@pytest.mark.parametrize("value", EXTENDED, ids=lambda value: repr(value)[:40])
def test_the_bytes_are_those_of_kombu(json: JsonSerializer, value: Any) -> None:
    assert json.dumps([value]) == kombu_dumps([value])


@pytest.mark.parametrize("value", EXTENDED, ids=lambda value: repr(value)[:40])
def test_kombu_s_bytes_are_read_as_kombu_reads_them(json: JsonSerializer, value: Any) -> None:
    data = kombu_dumps([value])
    assert repr(json.loads(data)) == repr(kombu_loads(data))


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[-Infinity]",
        "1e999",
        "9" * 40,
        '"\\ud800"',
        "-0.0",
        ' {"a": 1} ',
        '{"__type__": 1}',
        "1E5",
        '{"a":1,"a":2}',
    ],
)
def test_what_only_the_standard_library_reads_is_read_too(json: JsonSerializer, text: str) -> None:
    assert repr(json.loads(text.encode())) == repr(kombu_loads(text.encode()))


@pytest.mark.parametrize(
    "text",
    [
        '{"__type__": "nobody", "__value__": 1}',
        '{"__type__": "datetime", "__value__": 5}',
        '{"__type__": "decimal", "__value__": "x"}',
        '{"__type__": "uuid", "__value__": []}',
        '{"__type__": "uuid", "__value__": {"bytes": "x"}}',
        '{"__type__": [], "__value__": 1}',
        '{"__type__": "base64", "__value__": "a"}',
        '{"__type__": "bytes", "__value__": null}',
        "[" * 200_000,
        '[{"__type__": 1}' + "[" * 200_000,
        "9" * 5000,
        "\x00",
        "[1,]",
        "",
    ],
    ids=lambda text: text[:45],
)
def test_what_cannot_be_read_is_a_value_error(json: JsonSerializer, text: str) -> None:
    with pytest.raises(ValueError):
        json.loads(text.encode())


@pytest.mark.parametrize(
    "text", ['{"__type__": "date"}', '{"__type__": "date", "__value__": 1, "more": 2}', '"__type__"']
)
def test_only_exactly_the_two_keys_mark_an_extended_type(json: JsonSerializer, text: str) -> None:
    assert json.loads(text.encode()) == kombu_loads(text.encode())


def test_what_contains_itself_or_is_too_deep_or_too_long_is_a_value_error(json: JsonSerializer) -> None:
    circle: list[Any] = []
    circle.append(circle)
    deep: Any = None
    for _ in range(100_000):
        deep = [deep]
    for value in (circle, deep, 10**5000):
        with pytest.raises(ValueError):
            json.dumps(value)
    while deep:  # a list so deep is too much for Python's own clean-up in one go
        deep = deep[0]


@pytest.mark.parametrize("value", [{1, 2}, object(), Shape.ROUND, {(1, 2): 3}, range(3)], ids=repr)
def test_what_kombu_refuses_is_refused(json: JsonSerializer, value: Any) -> None:
    with pytest.raises(TypeError):
        json.dumps(value)
    with pytest.raises(kombu.serialization.EncodeError):
        kombu_dumps(value)


def test_types_registered_with_kombu_count(json: JsonSerializer, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = sys.modules["kombu.utils.json"]
    monkeypatch.setattr(tables, "_encoders", dict(tables._encoders))
    monkeypatch.setattr(tables, "_decoders", dict(tables._decoders))
    register_type(complex, "complex", lambda number: [number.real, number.imag], lambda pair: complex(*pair))
    assert json.dumps(1 + 2j) == kombu_dumps(1 + 2j)
    assert json.loads(json.dumps(1 + 2j)) == 1 + 2j


def test_extended_types_need_no_kombu(json: JsonSerializer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [kombu_dumps([value]) for value in EXTENDED]
    monkeypatch.delitem(sys.modules, "kombu.utils.json")
    assert [json.dumps([value]) for value in EXTENDED] == expected
    assert json.loads(json.dumps(Decimal("1.5"))) == Decimal("1.5")


def test_django_s_lazy_texts_are_texts(json: JsonSerializer, monkeypatch: pytest.MonkeyPatch) -> None:
    functional = types.ModuleType("django.utils.functional")

    class Promise:
        def __str__(self) -> str:
            return "später"

    functional.Promise = Promise  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "django.utils.functional", functional)
    assert json.loads(json.dumps([Promise()])) == ["später"]


def test_a_python_without_the_c_encoder_writes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.stdlib_encoder, "c_make_encoder", None)
    encode = module._make_encode()
    assert [encode([value]).encode() for value in EXTENDED] == [kombu_dumps([value]) for value in EXTENDED]
