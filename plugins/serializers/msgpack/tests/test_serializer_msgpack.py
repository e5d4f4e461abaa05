"""The msgpack serializer writes kombu's bytes and keeps the contract."""

from __future__ import annotations

from typing import Any

import kombu.serialization
import pytest

from celeriac.testing.serializer_suite import SerializerConformance
from celeriac_serializer_msgpack.serializer import MsgpackSerializer


class TestMsgpack(SerializerConformance):
    plugin = "celeriac_serializer_msgpack"
    name = "msgpack"
    content_type = "application/x-msgpack"
    content_encoding = "binary"
    unsafe = False
    extras = (b"\xff\x00", float("inf"), 2**64 - 1)


VALUES = [None, [1, "grün"], {"a": [1.5, b"\xff"]}, (1, 2), [[2, 3], {}, {"chain": None}], 2**64 - 1]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_the_bytes_are_those_of_kombu(value: Any) -> None:
    data = MsgpackSerializer().dumps(value)
    assert data == kombu.serialization.dumps(value, "msgpack")[2]
    back = kombu.serialization.loads(data, "application/x-msgpack", "binary", force=True)
    assert back == MsgpackSerializer().loads(data)


@pytest.mark.parametrize("value", [2**64, "\ud800"], ids=["too large", "half a character"])
def test_what_the_format_has_no_room_for_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError):
        MsgpackSerializer().dumps(value)


def test_a_map_with_a_list_as_key_is_a_value_error() -> None:
    with pytest.raises(ValueError):
        MsgpackSerializer().loads(b"\x81\x90\x01")
