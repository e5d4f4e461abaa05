"""Rate limits of one worker."""

from __future__ import annotations

from celeriac import Celery
from celeriac.testing.kit import eventually
from celeriac.testing.threaded import start_worker


def test_calls_that_wait_for_a_limit_do_not_wait_for_it_when_it_is_lifted() -> None:
    app = Celery(broker="memory://lifted", backend="memory://lifted", set_as_current=False)
    task = app.task(name="t", rate_limit="1/h")(lambda: "done")
    with start_worker(app, pool="threads", perform_ping_check=False) as worker:
        results = [task.delay() for _ in range(3)]
        eventually(lambda: worker.loop.promised() == 2, within_s=60)
        app.control.rate_limit("t", 0, reply=True, timeout=60, limit=1)
        assert [result.get(timeout=60) for result in results] == ["done"] * 3
        assert worker.loop.promised() == 0
        app.control.rate_limit("t", "1/h", reply=True, timeout=60, limit=1)
        assert task.delay().get(timeout=60) == "done", "nothing of the old limit is left"
    app.close()
