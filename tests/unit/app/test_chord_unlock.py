"""The join of result backends that cannot count: a message that comes again until all parts are ready."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from celeriac import Celery, chord
from celeriac.exceptions import BackendLost, ChordError, TransportLost
from celeriac.testing.threaded import start_worker
from celeriac_backend_memory.backend import MemoryBackend


@pytest.fixture
def app(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    monkeypatch.setattr(MemoryBackend, "abilities", MemoryBackend.abilities - {"count"})
    name = request.node.name
    app = Celery(broker=f"memory://{name}", backend=f"memory://{name}", set_as_current=False)
    app.conf.update(result_chord_retry_interval=0.02, result_backend_max_retries=0)
    app.task(name="one")(lambda: 1)
    app.task(name="total")(sum)
    app.finalize()
    yield app
    app.close()


def failing(step: Any, left: list[Exception]) -> Any:
    """`step`, which fails with these at first when a slot calls it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if left and threading.current_thread().name.startswith("celeriac-slot"):
            raise left.pop()
        return step(*args, **kwargs)

    return call


def test_a_chord_outlives_an_outage_of_the_result_store(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    troubles: list[Exception] = [BackendLost("away")] * 3
    monkeypatch.setattr(MemoryBackend, "fetch", failing(MemoryBackend.fetch, troubles))
    with start_worker(app, pool="threads", perform_ping_check=False):
        assert chord([app.signature("one")] * 2)(app.signature("total")).get(timeout=60) == 2
    assert not troubles


def test_a_chord_outlives_an_outage_of_the_broker(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    troubles: list[Exception] = [TransportLost("away")] * 3
    monkeypatch.setattr(app, "publish_calls", failing(app.publish_calls, troubles))
    with start_worker(app, pool="threads", perform_ping_check=False):
        assert chord([app.signature("one")] * 2)(app.signature("total")).get(timeout=60) == 2
    assert not troubles


def test_a_body_that_cannot_be_called_has_failed(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "publish_calls", failing(app.publish_calls, [TypeError("no serializer takes it")]))
    with start_worker(app, pool="threads", perform_ping_check=False):
        result = chord([app.signature("one")] * 2)(app.signature("total"))
        with pytest.raises(ChordError, match=r"the body could not be called: .*no serializer takes it"):
            result.get(timeout=60)
