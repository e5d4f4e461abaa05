"""What settings make of reading results: which serializers are accepted, what is remembered, how an outage is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celeriac import Celery, states
from celeriac.exceptions import BackendLost, ContentDisallowed, SecurityError
from celeriac.result import GroupResult
from celeriac_backend_memory.backend import MemoryBackend

MakeApp = Callable[..., Celery]


class Faulty(MemoryBackend):
    """Away for as many of the next calls as `away` says."""

    away = 0

    def __init__(self, url: str, settings: Any, host: Any) -> None:
        super().__init__("memory://result-settings", settings, host)

    def _require_own_process(self) -> None:
        super()._require_own_process()
        if self.away:
            self.away -= 1
            raise BackendLost("it is away")


@pytest.fixture
def make() -> Iterator[MakeApp]:
    apps = []

    def make_app(**settings: Any) -> Celery:
        app = Celery("settings", broker="memory://x", backend=Faulty, set_as_current=False, changes=settings)
        apps.append(app)
        return app

    yield make_app
    for app in apps:
        app.close()


def test_results_of_a_serializer_that_is_not_accepted_are_not_read(make: MakeApp) -> None:
    app = make(result_serializer="msgpack")
    app.backend.store_result("r-1", 5, states.SUCCESS)  # whoever writes need not read
    result = app.AsyncResult("r-1")
    for read in (lambda: result.get(timeout=30), lambda: result.state, lambda: GroupResult.restore("g", app=app)):
        with pytest.raises(ContentDisallowed, match=r"application/x-msgpack.*name it in result_accept_content"):
            read()
    assert issubclass(ContentDisallowed, SecurityError)


@pytest.mark.parametrize(
    "accepted",
    [
        {"result_accept_content": ["msgpack"]},
        {"result_accept_content": ["application/x-msgpack"], "accept_content": ["json"]},
        {"accept_content": ["json", "msgpack"]},
    ],
)
def test_those_that_are_accepted_are_read(make: MakeApp, accepted: dict[str, Any]) -> None:
    app = make(result_serializer="msgpack", **accepted)
    app.backend.store_result("r-2", 5, states.SUCCESS)
    assert app.AsyncResult("r-2").get(timeout=30) == 5


def test_a_list_for_results_replaces_the_one_for_messages(make: MakeApp) -> None:
    app = make(accept_content=["json"], result_accept_content=["yaml"])
    app.backend.store_result("r-3", 5, states.SUCCESS)
    with pytest.raises(ContentDisallowed, match="yaml"):
        app.AsyncResult("r-3").get(timeout=30)


@pytest.mark.parametrize(("most", "kept"), [(-1, set()), (0, {"c-1", "c-2", "c-3"}), (2, {"c-2", "c-3"})])
def test_as_many_successes_are_remembered_as_the_setting_says(make: MakeApp, most: int, kept: set[str]) -> None:
    app = make(result_cache_max=most)
    ids = ["c-1", "c-2", "c-3"]
    for task_id in (*ids, "failed"):
        state = states.FAILURE if task_id == "failed" else states.SUCCESS
        app.backend.store_result(task_id, ValueError(5) if task_id == "failed" else 5, state)
        assert app.backend.get_state(task_id) == state
    assert app.backend.plugin is not None
    app.backend.plugin.forget([*ids, "failed"])  # as if they had expired
    assert set(app.backend.find_many([*ids, "failed"])) == kept
    for task_id in ids:
        app.backend.forget(task_id)
    assert app.backend.find_many(ids) == {}


def test_an_outage_is_the_readers_unless_the_settings_say_to_try_again(make: MakeApp) -> None:
    app = make()
    plugin: Any = app.backend.plugin
    plugin.away = 1
    with pytest.raises(BackendLost):
        app.backend.get_state("o-1")
    plugin.away = 1
    with pytest.raises(BackendLost):
        app.backend.store_result("o-1", 5, states.SUCCESS)


def test_with_always_retry_it_is_waited_out_as_often_as_allowed(make: MakeApp) -> None:
    app = make(
        result_backend_always_retry=True,
        result_backend_base_sleep_between_retries_ms=1,
        result_backend_max_sleep_between_retries_ms=2,
        result_backend_max_retries=5,
    )
    plugin: Any = app.backend.plugin
    plugin.away = 5
    app.backend.store_result("o-2", 5, states.SUCCESS)
    plugin.away = 5
    assert app.backend.get_state("o-2") == states.SUCCESS
    plugin.away = 6
    with pytest.raises(BackendLost):
        app.backend.get_state("o-2")
    assert plugin.away == 0


def test_pauses_grow_up_to_the_longest_and_never_end_by_themselves(make: MakeApp) -> None:
    app = make(
        result_backend_always_retry=True,
        result_backend_base_sleep_between_retries_ms=100,
        result_backend_max_sleep_between_retries_ms=500,
    )
    pauses = app._parts._pauses_for_the_store()
    assert [next(pauses) for _ in range(6)] == [0.1, 0.2, 0.4, 0.5, 0.5, 0.5]
