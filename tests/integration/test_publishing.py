"""A send whose outcome is not known: an error in time, the id kept, and a second try that says it is one (B2, N7)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from tests.integration.conftest import wait_until

from celeriac import Celery, Signature
from celeriac.canvas.launch import SEND_AT_ONCE
from celeriac.exceptions import OperationalError, PublishUncertain
from celeriac.spec import QueueSpec
from celeriac.testing.faults import DOWN, FaultProxy
from celeriac.testing.kit import Bench

pytestmark = pytest.mark.services

#: For a send that shall be confirmed, however busy the machine.
CALM_S = 60.0

BROKERS = [
    pytest.param("redis_url"),
    pytest.param("amqp_url", marks=pytest.mark.xdist_group("rabbitmq")),
]


@pytest.fixture(params=BROKERS)
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def proxy(url: str) -> Iterator[FaultProxy]:
    with FaultProxy(url) as wire:
        yield wire


def test_N7_a_call_whose_confirm_was_lost_can_be_sent_again_and_says_so(url: str, proxy: FaultProxy) -> None:
    app = Celery("sender", broker=proxy.url, set_as_current=False)
    app.conf.publish_timeout = CALM_S
    app.send_task("t", task_id="first")
    proxy.swallow(DOWN)
    app.producer._timeout_s = 1.0
    started = time.monotonic()
    with pytest.raises(PublishUncertain) as caught:
        app.send_task("t", task_id="second")
    assert time.monotonic() - started < CALM_S, "an error within the deadline, not a wait for ever"
    assert caught.value.task_ids == ["second"]
    app.producer._timeout_s = CALM_S
    with Celery("reader", broker=url, set_as_current=False) as reader:
        wait_until(lambda: reader.transport.depth("celery") == 2, what="the one that nobody confirmed")
        proxy.heal()
        (result,) = app.send_again(caught.value)
        assert result.id == "second"
        bench = Bench()
        consumer = reader.transport.consumer([QueueSpec("celery")], owner="r@here", poller=bench, window=8)
        taken = bench.take(consumer, 3)
        tries = [
            (payload.headers["id"], payload.headers.get("x-celeriac-publish-try"))
            for payload in (reader.transport.unpack(delivery.raw) for delivery in taken)
        ]
        consumer.close()
    assert tries == [("first", None), ("second", None), ("second", 2)]
    app.close()


def test_N6_the_first_send_after_the_broker_was_away_is_confirmed_or_an_error(url: str, proxy: FaultProxy) -> None:
    app = Celery("sender", broker=proxy.url, set_as_current=False)
    app.conf.publish_timeout = CALM_S
    app.send_task("t", task_id="before")
    confirmed = ["before"]
    for number in range(3):
        proxy.cut()
        try:
            app.send_task("t", task_id=f"after {number}")
            confirmed.append(f"after {number}")
        except OperationalError:
            pass  # said, so nobody takes it for sent
    with Celery("reader", broker=url, set_as_current=False) as reader:
        assert len(confirmed) >= 2
        wait_until(lambda: reader.transport.depth("celery") >= len(confirmed))
    app.close()


def test_publish_many_says_which_calls_were_taken_when_the_broker_fails_on_the_way(url: str, proxy: FaultProxy) -> None:
    app = Celery("sender", broker=proxy.url, set_as_current=False)
    app.conf.publish_timeout = CALM_S

    def calls() -> Iterator[Signature]:
        for number in range(2 * SEND_AT_ONCE + 1):
            if number == SEND_AT_ONCE + 3:
                proxy.swallow(DOWN)
                app.producer._timeout_s = 4.0
            yield app.signature("t", task_id=f"call {number}")

    with pytest.raises(PublishUncertain) as caught:
        app.publish_many(calls())
    assert [result.id for result in caught.value.accepted] == [f"call {n}" for n in range(SEND_AT_ONCE)]
    assert caught.value.task_ids == [f"call {n}" for n in range(SEND_AT_ONCE, 2 * SEND_AT_ONCE)]
    app.producer._timeout_s = CALM_S
    with Celery("reader", broker=url, set_as_current=False) as reader:
        wait_until(lambda: reader.transport.depth("celery") == 2 * SEND_AT_ONCE, what="those that nobody confirmed")
    proxy.heal()
    assert len(app.send_again(caught.value)) == SEND_AT_ONCE
    results = app.publish_many([app.signature("t", task_id="last"), app.signature("t") | app.signature("u")])
    assert results[0].id == "last"
    assert results[1].parent is not None
    with Celery("reader", broker=url, set_as_current=False) as reader:
        wait_until(lambda: reader.transport.depth("celery") == 3 * SEND_AT_ONCE + 2, what="all of them")
    app.close()
