"""The pickle serializer writes kombu's bytes and keeps the contract."""

from __future__ import annotations

import pickle
import threading
from datetime import datetime
from decimal import Decimal
from typing import Any

import kombu.serialization
import pytest

from celeriac.testing.serializer_suite import SerializerConformance
from celeriac_serializer_pickle.serializer import PickleSerializer


class TestPickle(SerializerConformance):
    plugin = "celeriac_serializer_pickle"
    name = "pickle"
    content_type = "application/x-python-serialize"
    content_encoding = "binary"
    unsafe = True
    extras = (datetime(2026, 1, 2), Decimal("1.5"), {1, 2}, (1, 2), b"\xff", 1 + 2j)

    @staticmethod
    def unknown() -> Any:
        return threading.Lock()

    @staticmethod
    def is_harmless(data: bytes) -> bool:
        # No opcode that imports a name, so nothing can be called.
        return not any(
            code in data for code in (b"c", b"\x93", b"i", b"\x82", b"\x83", b"\x84", b"b", b"R", b"o", b"\x81")
        )


VALUES = [None, [1, "x"], {"a": (1, 2)}, datetime(2026, 1, 2), ValueError("x", 1)]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_the_bytes_are_those_of_kombu(value: Any) -> None:
    data = PickleSerializer().dumps(value)
    assert data == kombu.serialization.dumps(value, "pickle")[2]
    back = kombu.serialization.loads(data, "application/x-python-serialize", "binary", force=True)
    assert repr(back) == repr(PickleSerializer().loads(data)) == repr(value)


class Rogue:
    def __reduce__(self) -> Any:
        return int, ("not a number",)


class Unwilling:
    def __reduce__(self) -> Any:
        raise RuntimeError("no")


def test_whatever_loading_raises_is_a_value_error() -> None:
    for data in (pickle.dumps(Rogue()), b"cnowhere\nnothing\n.", b"", b"\x80\x04."):
        with pytest.raises(ValueError):
            PickleSerializer().loads(data)


@pytest.mark.parametrize("value", [lambda: None, Unwilling()], ids=["a local function", "an unwilling object"])
def test_what_cannot_be_pickled_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError):
        PickleSerializer().dumps(value)
