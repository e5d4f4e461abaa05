"""The state that Redis plugins offer keeps its contract, also between a broker and a backend of one database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celeriac.exceptions import BackendLost, TransportLost, TransportUnreachable
from celeriac.spec import Change, SharedState
from celeriac.testing.kit import KitHost, make_by_hook, make_transport
from celeriac.testing.state_suite import StateConformance
from celeriac_support_redis.wire import connect, parse_url

Pair = tuple[SharedState, SharedState]


@pytest.fixture
def states(redis_url: str) -> Iterator[Pair]:
    """The broker's and the backend's."""
    transport = make_transport("celeriac_broker_redis", redis_url)
    arguments = {"url": redis_url, "settings": {}, "host": KitHost()}
    backend = make_by_hook("celeriac_backend_redis", "celeriac_make_backend", **arguments)
    yield transport.state(), backend.state()  # type: ignore[attr-defined]
    transport.close()
    backend.close()


class TestRedisState(StateConformance):
    @pytest.fixture
    def states(self, states: Pair) -> Pair:
        return states

    def test_versions_grow_even_if_the_database_is_emptied(self, states: Pair, redis_url: str) -> None:
        before = states[0].write("space", [Change("a", b"1")])
        wire = connect(parse_url(redis_url)[0])
        wire.call("FLUSHDB")
        wire.call("SCRIPT", "FLUSH")
        after = states[0].write("space", [Change("a", b"2")], given={"a": 0})
        assert before
        assert after
        assert after > before

    def test_a_key_of_another_kind_is_an_error_of_ours(self, states: Pair, redis_url: str) -> None:
        connect(parse_url(redis_url)[0]).call("SET", "celeriac.state.space", "x")
        with pytest.raises(TransportLost, match="WRONGTYPE"):
            states[0].write("space", [Change("a", b"1")])
        with pytest.raises(BackendLost, match="WRONGTYPE"):
            states[1].read("space")

    def test_a_cut_connection_costs_nothing_but_a_new_one(self, states: Pair, redis_url: str) -> None:
        states[0].write("space", [Change("a", b"1")])
        connect(parse_url(redis_url)[0]).call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert states[0].read("space").entries["a"].value == b"1"


def test_an_absent_server_is_an_error_of_ours() -> None:
    transport = make_transport("celeriac_broker_redis", "redis://127.0.0.1:1/0")
    with pytest.raises(TransportUnreachable):
        transport.state().read("space")  # type: ignore[attr-defined]
