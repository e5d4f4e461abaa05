"""What dispatchers of events, and those who hear them, do while the broker is away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from celeriac import Celery
from celeriac.cli.top import _hearing
from celeriac.events import State
from celeriac.exceptions import OperationalError
from celeriac.testing.kit import eventually
from celeriac.testing.services import RedisService


@pytest.fixture
def redis(private_service: Any) -> RedisService:
    """A server that comes and goes."""
    return private_service(RedisService())  # type: ignore[no-any-return]


@pytest.fixture
def app(redis: RedisService) -> Iterator[Celery]:
    app = Celery(broker=redis.url, set_as_current=False)
    yield app
    app.close()


def test_events_wait_for_a_broker_that_is_away_the_newest_of_them(
    app: Celery, redis: RedisService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celeriac.events.dispatcher.BUFFERED", 3)
    dispatcher = app.events.Dispatcher(hostname="me@here")
    dispatcher.send("task-progress", number=-1)  # it knows the broker
    redis.stop()
    for number in range(5):
        dispatcher.send("task-progress", number=number)
    assert dispatcher.dropped == 2
    other = app.events.Dispatcher(hostname="me@here", groups=["task"])
    other.extend_buffer(dispatcher)
    other.send("worker-note", number=7)  # not of its groups
    other.disable()
    other.send("task-progress", number=8)
    other.enable()
    with pytest.raises(OperationalError):
        app.events.Dispatcher(buffer_while_offline=False).send("task-progress", number=9)
    with pytest.raises((TypeError, ValueError)):
        dispatcher.send("task-progress", number=object())  # which takes none of the others along
    redis.start()
    heard: list[Any] = []
    with app.events.Receiver(handlers={"*": heard.append}) as receiver:
        receiver.open()

        def until(count: int) -> list[int]:
            eventually(lambda: receiver.drain(0.2) or len(heard) >= count)
            return [event["number"] for event in heard]

        dispatcher.send("task-progress", number=5)
        assert until(4) == [2, 3, 4, 5]
        clocks = [event["clock"] for event in heard]
        assert clocks == sorted(clocks)
        dispatcher.flush()  # there is nothing any more
        other.flush()
        assert until(7) == [2, 3, 4, 5, 2, 3, 4]


def test_who_watches_hears_again_when_the_broker_is_back(app: Celery, redis: RedisService) -> None:
    cluster, dispatcher = State(), app.events.Dispatcher()

    def is_heard() -> int:
        dispatcher.send("task-progress", uuid="t")
        return cluster.event_count

    with _hearing(app, cluster):
        eventually(is_heard)
        redis.stop()
        redis.start()
        cluster.clear()
        eventually(is_heard)
