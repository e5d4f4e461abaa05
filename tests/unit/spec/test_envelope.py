"""The common envelope: what it does with what JSON has no word for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from celeriac.exceptions import PublishRejected
from celeriac.spec import Head, envelope
from celeriac.testing.broker_suite import make_payload


@pytest.mark.parametrize("header", ["half a character \ud800", {("a", "b"): 1}])
def test_what_json_has_no_word_for_is_refused_before_it_is_sent(header: Any) -> None:
    payload = make_payload("q")
    payload.headers["stamps"] = header
    with pytest.raises(PublishRejected, match="cannot be written as JSON"):
        envelope.pack(payload, "tag")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("half \ud800", "half \ufffd"),
        ("\udcff\udcfe other halves", "\ufffd\ufffd other halves"),
        ("\ud800\ud83d\ude00", "\ufffd\U0001f600"),
        (r"no escape: \udcff" + "\udcff", r"no escape: \udcff" + "\ufffd"),
    ],
)
def test_half_a_character_in_what_celerys_clients_show_of_arguments_is_read_as_unknown(written: str, read: str) -> None:
    document = json.loads(envelope.pack(make_payload("q"), "tag"))
    document["headers"].update(id="an-id", argsrepr=written)
    raw = json.dumps(document).encode()
    head = envelope.read_head(raw)
    assert isinstance(head, Head)
    assert head.id == "an-id"
    payload = envelope.unpack(raw)
    assert payload.headers["argsrepr"] == read
    assert payload.body == make_payload("q").body
