"""Field tables: what is written is read again, by us and by py-amqp; garbage is refused and never breaks anything."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pytest
from amqp.serialization import dumps, loads
from hypothesis import given
from hypothesis import strategies as st

from celeriac_broker_amqp.table import MAX_DEPTH, BadTable, find_values, read_table, write_table

KEYS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)
MOMENTS = st.datetimes(
    min_value=datetime.datetime(1970, 1, 2),
    max_value=datetime.datetime(2200, 1, 1),
    timezones=st.just(datetime.timezone.utc),
).map(lambda moment: moment.replace(microsecond=0))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=60),
    MOMENTS,
    st.decimals(min_value=-1000, max_value=1000, places=3),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=8)


@given(TABLES)
def test_what_is_written_is_read_again(table: dict[str, Any]) -> None:
    data = write_table(table)
    assert read_table(data, 0) == (table, len(data))


@given(TABLES)
def test_py_amqp_reads_what_we_write(table: dict[str, Any]) -> None:
    (theirs,), _ = loads("F", write_table(table), 0)
    assert theirs == naive(table)


@given(TABLES)
def test_we_read_what_py_amqp_writes(table: dict[str, Any]) -> None:
    data = dumps("F", [table])
    assert read_table(data, 0)[0] == table


@given(TABLES, st.sampled_from(["task", "id", "eta", "stamps"]), VALUES)
def test_hopping_finds_the_same_as_reading(table: dict[str, Any], key: str, value: Any) -> None:
    table[key] = value
    found = find_values(write_table(table), 0, {b"task", b"id", b"eta", b"stamps"})
    expected = {name: table[name] for name in ("task", "id", "eta", "stamps") if table.get(name) is not None}
    assert {name.decode(): item for name, item in found.items()} == expected


@given(st.binary(max_size=200))
def test_garbage_is_refused_in_one_way(data: bytes) -> None:
    for read in (lambda: read_table(data, 0), lambda: find_values(data, 0, {b"task"})):
        try:
            read()
        except BadTable:
            pass  # the one way


@given(TABLES, st.data())
def test_a_damaged_table_is_read_or_refused(table: dict[str, Any], draw: st.DataObject) -> None:
    data = bytearray(write_table(table))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    for read in (lambda: read_table(bytes(data), 0), lambda: find_values(bytes(data), 0, {b"task", b"id"})):
        try:
            read()
        except BadTable:
            pass  # the one way


def test_types_that_only_other_clients_write_are_read() -> None:
    entries = (
        b"\x01at\x01" b"\x01bb\xff" b"\x01cB\xff" b"\x01ds\xff\xfe" b"\x01eU\xff\xfe" b"\x01fu\xff\xfe"
        b"\x01gi\xff\xff\xff\xff" b"\x01hL\xff\xff\xff\xff\xff\xff\xff\xff" b"\x01jf\x3f\x80\x00\x00"
        b"\x01kx\x00\x00\x00\x02\x00\xff" b"\x01lS\x00\x00\x00\x01\xff"
    )  # fmt: skip
    data = len(entries).to_bytes(4, "big") + entries
    assert read_table(data, 0)[0] == {
        "a": True, "b": -1, "c": 255, "d": -2, "e": -2, "f": 65534,
        "g": 2**32 - 1, "h": -1, "j": 1.0, "k": b"\x00\xff", "l": b"\xff",
    }  # fmt: skip


def test_a_table_nested_without_end_is_refused() -> None:
    data = b""
    for _ in range(MAX_DEPTH + 10):
        entry = b"\x01aF" + len(data).to_bytes(4, "big") + data
        data = entry
    with pytest.raises(BadTable, match="deep"):
        read_table(len(data).to_bytes(4, "big") + data, 0)


def test_a_length_that_lies_allocates_nothing() -> None:
    with pytest.raises(BadTable, match="at most"):
        read_table(b"\xff\xff\xff\xff", 0)
    with pytest.raises(BadTable):
        find_values(b"\x00\x00\x00\x08\x04taskS\xff\xff\xff", 0, {b"task"})


@pytest.mark.parametrize("value", [object(), 2**64, Decimal("NaN"), {1, 2}, {"a": object()}, {1: "a"}, [{None: 2}]])
def test_a_value_without_a_word_in_amqp_is_named(value: object) -> None:
    with pytest.raises(ValueError, match="my-header"):
        write_table({"my-header": value})
    with pytest.raises(ValueError, match="texts"):
        write_table({1: value})  # type: ignore[dict-item]


def naive(value: Any) -> Any:
    """py-amqp drops the zone of timestamps."""
    if isinstance(value, datetime.datetime):
        return value.replace(tzinfo=None)
    if isinstance(value, dict):
        return {key: naive(item) for key, item in value.items()}
    if isinstance(value, list):
        return [naive(item) for item in value]
    return value
