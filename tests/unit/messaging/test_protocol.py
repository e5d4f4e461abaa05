"""Calls to payloads and back."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from celeriac import Celery
from celeriac.messaging.codec import Codec, ContentDisallowed
from celeriac.messaging.protocol import EncodeError, Message, make_payload, read_call
from celeriac.spec.data import Payload, Route

ROUTE = Route("celery", "", "direct", "celery")
# The headers of protocol 2, in the order in which Celery 5.7 writes them.
HEADERS = [
    "lang",
    "task",
    "id",
    "shadow",
    "eta",
    "expires",
    "group",
    "group_index",
    "retries",
    "timelimit",
    "root_id",
    "parent_id",
    "argsrepr",
    "kwargsrepr",
    "origin",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
]


@pytest.fixture
def codec() -> Codec:
    return Celery("t", broker="memory://", set_as_current=False).codec


def payload_of(body: Any, headers: dict[str, Any] | None = None) -> Payload:
    return Payload(json.dumps(body).encode(), "application/json", "utf-8", headers or {}, {}, ROUTE)


def test_a_message_has_every_header_of_protocol_2(codec: Codec) -> None:
    payload = make_payload(Message("proj.add", "id-1", (2, 3), {"z": None}, priority=4, reply_to="oid"), codec, ROUTE)
    assert list(payload.headers) == HEADERS
    assert payload.headers["argsrepr"] == "(2, 3)"
    assert payload.headers["kwargsrepr"] == "{'z': None}"
    assert payload.headers["root_id"] == "id-1"
    assert payload.headers["timelimit"] == [None, None]
    assert payload.headers["stamps"] == {}
    assert "gen" in payload.headers["origin"]
    assert payload.properties == {"correlation_id": "id-1", "reply_to": "oid", "delivery_mode": 2, "priority": 4}
    assert json.loads(payload.body) == [
        [2, 3],
        {"z": None},
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
    ]


def test_a_call_comes_back_as_it_went(codec: Codec) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    payload = make_payload(Message("t", "i", [1, "ä", moment], {"k": b"\xff"}), codec, ROUTE)
    args, kwargs, embed, headers = read_call(payload, codec)
    assert (args, kwargs) == ([1, "ä", moment], {"k": b"\xff"})
    assert embed["chain"] is None
    assert headers["id"] == "i"


def test_users_headers_stand_beside_the_known_ones_and_unknown_options_are_properties(codec: Codec) -> None:
    message = Message("t", "i", (), {}, headers={"tenant": 7}, properties={"x": 1})
    payload = make_payload(message, codec, ROUTE)
    assert payload.headers["tenant"] == 7
    assert payload.properties["x"] == 1


def test_eta_and_expires_are_iso_texts_and_the_broker_is_not_asked_to_drop_the_call(codec: Codec) -> None:
    soon = datetime.now(timezone.utc) + timedelta(seconds=60)
    payload = make_payload(Message("t", "i", (), {}, eta=soon, expires=soon), codec, ROUTE)
    assert datetime.fromisoformat(payload.headers["eta"]) == soon
    assert payload.due == pytest.approx(soon.timestamp())
    assert datetime.fromisoformat(payload.headers["expires"]) == soon
    assert "expiration" not in payload.properties


@pytest.mark.parametrize(("given", "sent"), [(10, "10000"), (0.5, "500"), (-1, "0"), ("250", "250")])
def test_an_expiration_is_given_in_seconds_as_for_celery(codec: Codec, given: Any, sent: str) -> None:
    message = Message("t", "i", (), {}, properties={"expiration": given})
    assert make_payload(message, codec, ROUTE).properties["expiration"] == sent


@pytest.mark.parametrize("method", ["gzip", "bzip2", "xz"])
def test_a_body_can_be_compressed(codec: Codec, method: str) -> None:
    payload = make_payload(Message("t", "i", ["a" * 10_000], {}, compression=method), codec, ROUTE)
    assert len(payload.body) < 1000
    assert payload.headers["compression"].startswith("application/x-")
    assert read_call(payload, codec)[0] == ["a" * 10_000]


def test_arguments_that_cannot_be_serialized_are_refused_by_name(codec: Codec) -> None:
    with pytest.raises(EncodeError, match=r"proj\.add cannot be serialized as json"):
        make_payload(Message("proj.add", "i", [object()], {}), codec, ROUTE)


def test_protocol_1_is_read(codec: Codec) -> None:
    body = {"task": "proj.add", "id": "i1", "args": [1, 2], "kwargs": {}, "retries": 3, "eta": None, "chord": None}
    args, kwargs, embed, headers = read_call(payload_of(body), codec)
    assert (args, kwargs) == ([1, 2], {})
    assert (headers["task"], headers["id"], headers["retries"]) == ("proj.add", "i1", 3)
    assert embed == {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def test_headers_of_protocol_2_with_a_body_of_protocol_1_are_read(codec: Codec) -> None:
    args, _, _, headers = read_call(payload_of({"args": [9]}, {"task": "t", "id": "i"}), codec)
    assert args == [9]
    assert headers["task"] == "t"


@pytest.mark.parametrize("body", [None, 3, "text", [], [1], [1, 2, 3], [[], [], {}], {"args": 3}, {"task": 5}])
def test_a_body_that_is_no_call_is_a_value_error(codec: Codec, body: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_call(payload_of(body), codec)


def test_content_that_is_not_accepted_is_refused(codec: Codec) -> None:
    payload = Payload(b"", "application/x-python-serialize", "binary", {"task": "t", "id": "i"}, {}, ROUTE)
    with pytest.raises(ContentDisallowed, match="accept_content is"):
        read_call(payload, codec)


def test_protocol_1_is_written_if_it_is_wanted_and_read_as_it_was_meant() -> None:
    app = Celery("t", broker="memory://", set_as_current=False, task_protocol=1)
    message = Message("proj.add", "id-1", [2], {"y": 3}, group="g", group_index=1, retries=2, timelimit=(9, 5))
    payload = make_payload(message, app.codec, ROUTE)
    assert json.loads(payload.body) == {
        "task": "proj.add", "id": "id-1", "args": [2], "kwargs": {"y": 3}, "group": "g", "group_index": 1,
        "retries": 2, "eta": None, "expires": None, "utc": True, "callbacks": None, "errbacks": None,
        "timelimit": [9, 5], "taskset": "g", "chord": None,
    }  # fmt: skip
    args, kwargs, embed, headers = read_call(payload, app.codec)
    assert (args, kwargs, headers["retries"]) == ([2], {"y": 3}, 2)
    assert not any(embed.values())
    message = app.amqp.create_task_message("id-2", "proj.add", (1,), {"y": 2})
    assert message.body["id"] == "id-2"


def test_in_protocol_1_the_steps_of_a_chain_are_callbacks_of_each_other() -> None:
    app = Celery("t", broker="memory://", set_as_current=False, task_protocol=1)

    def step(name: str, **options: Any) -> dict[str, Any]:
        return {"task": name, "args": [], "kwargs": {}, "options": options, "subtask_type": None, "immutable": False}

    join = {**step("celery.chord"), "subtask_type": "chord", "kwargs": {"header": [step("h")], "body": step("body")}}
    chain = [step("last"), join, step("second", link=[step("aside")], chain=[step("third")])]  # the next one is last
    embed = {"callbacks": [step("own")], "errbacks": None, "chain": chain, "chord": None}
    before = json.dumps(embed)
    body = json.loads(make_payload(Message("first", "id", [], {}, embed), app.codec, ROUTE).body)
    own, second = body["callbacks"]
    aside, third = second["options"]["link"]
    (joined,) = third["options"]["link"]
    assert [one["task"] for one in (own, second, aside, third)] == ["own", "second", "aside", "third"]
    assert "chain" not in second["options"]
    assert joined["kwargs"]["header"] == [step("h")]
    assert joined["kwargs"]["body"]["options"]["link"] == [step("last")]
    assert json.dumps(embed) == before, "the caller's signatures stay as they are"
