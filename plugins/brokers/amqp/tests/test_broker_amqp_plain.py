"""The short way for plain calls and the general way say the same of any message."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.spec import Head, Payload, Route
from celeriac_broker_amqp import message, plain, table

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
OURS = ["x-celeriac-results", "x-celeriac-attempts", "x-celeriac-spared"]
OWN = st.dictionaries(
    st.sampled_from(["mine", "task", "eta", "x-delivery-count", "stamps", *OURS]),
    st.one_of(TEXTS, st.integers(0, 5), st.none(), st.lists(st.none(), max_size=2), st.just({"a": 1})),
    max_size=3,
)


def make_headers(texts: list[str], parent: str | None, ignore: bool | None) -> dict[str, Any]:
    task, task_id, root, args, kwargs, origin = texts
    return {
        "lang": "py", "task": task, "id": task_id, "shadow": None, "eta": None, "expires": None, "group": None,
        "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": root, "parent_id": parent,
        "argsrepr": args, "kwargsrepr": kwargs, "origin": origin, "ignore_result": ignore,
        "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
    }  # fmt: skip


HEADERS = st.builds(
    make_headers, st.lists(TEXTS, min_size=6, max_size=6), st.none() | TEXTS, st.sampled_from([None, True, False])
)


@given(HEADERS, OWN)
def test_a_plain_call_is_written_as_any_table_is(headers: dict[str, Any], own: dict[str, Any]) -> None:
    headers.update(own)
    written = plain.write_plain(headers)
    if not own:
        assert written is not None
    assert written is None or written == table.write_table(headers)[4:]


@pytest.mark.parametrize(
    "change",
    [
        {"lang": "js"}, {"task": 5}, {"id": b"x"}, {"eta": "2030"}, {"group": "g"}, {"retries": 1},
        {"stamps": {"a": 1}}, {"timelimit": [None, 5]}, {"ignore_result": 1}, {"parent_id": 5},
        {"replaced_task_nesting": 1}, {"argsrepr": None},
    ],
)  # fmt: skip
def test_what_is_not_plain_goes_the_general_way(change: dict[str, Any]) -> None:
    headers = {**make_headers(["t", "i", "r", "a", "k", "o"], None, None), **change}
    assert plain.write_plain(headers) is None
    assert plain.write_plain(dict(reversed(headers.items()))) is None


@given(HEADERS, OWN)
def test_both_ways_read_the_same(headers: dict[str, Any], own: dict[str, Any]) -> None:
    headers.update(own)
    check_both(table.write_table(headers))


@given(HEADERS, OWN, st.data())
def test_both_ways_read_the_same_of_damaged_tables(
    headers: dict[str, Any], own: dict[str, Any], draw: st.DataObject
) -> None:
    headers.update(own)
    data = bytearray(table.write_table(headers))
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    check_both(bytes(data[: draw.draw(st.integers(len(data) - 5, len(data)))]))


@given(HEADERS, OWN)
def test_a_later_entry_of_the_same_name_counts(headers: dict[str, Any], own: dict[str, Any]) -> None:
    data = table.write_table(headers) + table.write_table(own)[4:]
    check_both((len(data) - 4).to_bytes(4, "big") + data[4:])


def check_both(data: bytes) -> None:
    """Read a table the short way, where it can be, and the general way."""
    raw = b"\0\1q" + (0).to_bytes(8, "big") + b"\x20\x00" + data
    payload: Payload | None = None
    try:
        payload = message.unpack(raw)
    except ValueError:
        pass  # then the general way must refuse it too
    head, marks = message.scan(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(message, "read_plain", lambda data, pos: None)
        try:
            assert message.unpack(raw) == payload
        except ValueError:
            assert payload is None
        general, general_marks = message.scan(raw)
    if isinstance(head, Head) and isinstance(general, Head):
        assert head.timelimit in (general.timelimit, None if general.timelimit == [None, None] else ...)
        general.timelimit = head.timelimit
        assert (marks or message.Marks(0, 0, None)) == (general_marks or message.Marks(0, 0, None))
    assert head == general or isinstance(general, type(head))
    if payload is not None:
        assert payload.route == Route("q")
