"""Serializers that a program registered with kombu are the app's, too; kombu's own are left to our plugins."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import pytest
from kombu.serialization import register, unregister

from celeriac import Celery
from celeriac.exceptions import PluginNotFound, SecurityError
from celeriac.kernel.registered import find_registered
from celeriac.messaging.protocol import EncodeError


@pytest.fixture
def literal() -> Iterator[str]:
    register("house", repr, lambda data: ast.literal_eval(data.decode()), "application/x-house", "utf-8")
    yield "house"
    unregister("house")


def make_app(**settings: Any) -> Celery:
    place = f"memory://registered-{id(settings)}"
    return Celery("registered", broker=place, backend=place, set_as_current=False, **settings)


def test_a_call_and_its_result_travel_by_a_registered_serializer(literal: str) -> None:
    app = make_app(task_serializer=literal, accept_content=["house"], result_serializer="json")

    @app.task(name="take")
    def take(values: Any) -> Any:
        return values

    payload = app.make_payload("take", [{1, 2}], {}, "i", {})
    assert (payload.content_type, payload.content_encoding) == ("application/x-house", "utf-8")
    assert payload.body.startswith(b"[[{1, 2}]")
    assert app.codec.decode(payload.body, payload.content_type) == [
        [{1, 2}],
        {},
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
    ]
    assert take.apply(({3},)).get() == {3}


def test_it_may_be_accepted_by_its_content_type(literal: str) -> None:
    assert make_app(accept_content=["application/x-house"]).codec.decode(b"{1: 2}", "application/x-house") == {1: 2}
    with pytest.raises(SecurityError, match="x-house"):
        make_app().codec.decode(b"1", "application/x-house")


def test_whatever_its_functions_raise_is_said_in_our_words(literal: str) -> None:
    app = make_app(task_serializer=literal, accept_content=["house"])
    with pytest.raises(ValueError, match="not valid application/x-house"):
        app.codec.decode(b"(((((", "application/x-house")

    class Odd:
        def __repr__(self) -> str:
            raise KeyError("no")

    with pytest.raises(EncodeError, match="arguments of t cannot be serialized as house"):
        app.make_payload("t", [Odd()], {}, "i", {})


def test_kombus_own_pickle_is_no_way_around_our_rule() -> None:
    assert find_registered("pickle") is None
    with pytest.raises(PluginNotFound, match="no-such"):
        make_app().codec.serializer("no-such")
