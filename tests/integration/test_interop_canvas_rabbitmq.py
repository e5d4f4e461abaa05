"""Canvases in a mixed fleet on one RabbitMQ: celeriac and a real Celery, each calling what the other runs, and both;
with results in Redis, where chords are joined, and sent back to the caller (`rpc://`), where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.integration.test_interop_canvas import FAILURES, WAYS, Fleet, shapes

from celeriac.testing.services import RabbitMQService, RedisService

__all__ = ["shapes"]
pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.xdist_group("rabbitmq")]

JOINED = [
    "a|b",
    "a|group",
    "a|group|b|c",
    "group of a|group",
    "chord of chords",
    "chord, body a group",
    "chord|chord",
    "starmap",
    "replaced by a group|a",
    "part replaced by a chord",
]
ANSWERED = ["a|b", "group of chains", "chain of chains", "map", "replaced by a chain|a"]


@pytest.fixture(scope="module")
def joining(
    rabbitmq_service: RabbitMQService, redis_service: RedisService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    broker, backend = rabbitmq_service.fresh_url(), redis_service.fresh_url()
    with ExitStack() as stack:
        verbs = ("shapes", "growing", "failures", "callbacks", "linked", "stamped")
        made = Fleet(tmp_path_factory.mktemp("joining"), broker, backend, stack, shapes=JOINED, verbs=verbs)
        for library in ("celery", "celeriac"):
            made.start(library)
        yield made


@pytest.fixture(scope="module")
def answering(rabbitmq_service: RabbitMQService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with ExitStack() as stack:
        made = Fleet(
            tmp_path_factory.mktemp("answering"),
            rabbitmq_service.fresh_url(),
            "rpc://",
            stack,
            shapes=ANSWERED,
            failures=["a chain", "a member"],
            verbs=["shapes", "failures", "callbacks"],
        )
        for library in ("celery", "celeriac"):
            made.start(library)
        yield made


@pytest.mark.parametrize(("client", "queue"), WAYS)
def test_canvases_joined_in_redis_give_the_same_whoever_calls_and_whoever_runs(
    joining: Fleet, shapes: dict[str, Any], client: str, queue: str
) -> None:
    given = joining.ask(client, queue)
    assert given["shapes"] == {name: shapes[name] for name in JOINED}
    assert given["growing"] == [2, 9, 100, 101]
    assert given["failures"] == FAILURES
    assert given["linked"] == [1, 2, 3]
    joining.wait_for_errbacks(client, queue)


def test_stamps_are_seen_alike(joining: Fleet) -> None:
    seen = [joining.ask(client, queue)["stamped"] for client, queue in WAYS]
    assert seen == [seen[0]] * len(WAYS)
    assert seen[0][0]["customer"] in ("acme", ["acme"])


@pytest.mark.parametrize(("client", "queue"), WAYS[:2])
def test_canvases_whose_results_are_sent_back_give_the_same_across(
    answering: Fleet, shapes: dict[str, Any], client: str, queue: str
) -> None:
    given = answering.ask(client, queue)
    assert given["shapes"] == {name: shapes[name] for name in ANSWERED}
    assert given["failures"] == {"a chain": "ValueError", "a member": "ValueError"}
    answering.wait_for_errbacks(client, queue)
