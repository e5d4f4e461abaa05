"""The serializer keeps the contract of its kind; what is its own is tested below."""

from __future__ import annotations

import pytest

from celeriac.testing.serializer_suite import SerializerConformance
from celeriac_serializer_literal.serializer import LiteralSerializer


class TestLiteral(SerializerConformance):
    plugin = "celeriac_serializer_literal"
    name = "literal"
    content_type = "application/x-python-literal"
    content_encoding = "utf-8"
    unsafe = False
    extras = ((1, (2, b"3")), {1: {2, 3}}, set())


@pytest.mark.parametrize("value", [object(), float("nan"), frozenset({1})], ids=["object", "nan", "frozenset"])
def test_what_is_no_literal_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="Python literal"):
        LiteralSerializer().dumps(value)
