"""`query_task` finds a call wherever in the worker it is, also when only its result has still to be stored."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from celeriac import Celery
from celeriac.exceptions import BackendLost
from celeriac.testing.kit import eventually
from celeriac.testing.threaded import start_worker


def test_what_has_ended_is_ready_until_its_store_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery("q", broker="memory://query", backend=f"sqlite:///{tmp_path}/results.db", set_as_current=False)
    gate = threading.Event()

    @app.task(name="t")
    def task(wait: bool) -> str:
        if wait:
            gate.wait(30)
        return "out"

    store, is_away = app.backend.plugin.store, True

    def store_or_fail(results: Any) -> None:
        if is_away:
            raise BackendLost("away")
        store(results)

    with start_worker(app, pool="threads", perform_ping_check=False) as worker:
        monkeypatch.setattr(app.backend.plugin, "store", store_or_fail)
        ended, running = task.delay(False), task.delay(True)

        def query(*ids: str) -> dict[str, Any]:
            (answer,) = app.control.inspect(timeout=60, limit=1).query_task(*ids).values()
            return dict(answer)

        eventually(lambda: {id: state for id, (state, _) in query(ended.id, running.id).items()}
                   == {ended.id: "ready", running.id: "active"})  # fmt: skip
        state, shown = query(ended.id)[ended.id]
        assert (state, shown["id"], shown["state"], shown["hostname"]) == (
            "ready",
            ended.id,
            "SUCCESS",
            worker.hostname,
        )
        is_away = False
        gate.set()
        assert ended.get(timeout=60) == running.get(timeout=60) == "out"
        eventually(lambda: query(ended.id, running.id) == {})
