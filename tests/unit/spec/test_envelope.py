"""The common envelope: what it does with what JSON has no word for."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac.exceptions import PublishRejected
from celeriac.spec import envelope
from celeriac.testing.broker_suite import make_payload


@pytest.mark.parametrize("header", ["half a character \ud800", {("a", "b"): 1}])
def test_what_json_has_no_word_for_is_refused_before_it_is_sent(header: Any) -> None:
    payload = make_payload("q")
    payload.headers["stamps"] = header
    with pytest.raises(PublishRejected, match="cannot be written as JSON"):
        envelope.pack(payload, "tag")
