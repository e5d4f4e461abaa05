"""Calls that a type checker must accept. Checked by `test_typing.py`, never run."""

from __future__ import annotations

import datetime
from typing import Any

from typing_extensions import assert_type

from celeriac import Celery, Task, chain, group, shared_task, signals
from celeriac.contrib.abortable import AbortableAsyncResult, AbortableTask
from celeriac.exceptions import Retry
from celeriac.result import AsyncResult, EagerResult, GroupResult
from celeriac.utils.log import get_task_logger

app = Celery("typed", broker="memory://", backend="memory://", task_serializer="json")
several = Celery("typed", broker=["redis://a", "redis://b"], set_as_current=False)
app.conf.update(task_default_queue="q")
app.conf.task_serializer = "yaml"
logger = get_task_logger(__name__)


@app.task
def add(x: int, y: int = 1) -> int:
    return x + y


@app.task(bind=True, max_retries=5)
def bound(self: Any, name: str) -> list[str]:
    return [name]


@app.task(bind=True, autoretry_for=(OSError,), retry_backoff=True)
def fetch(self: Task[..., Any], url: str) -> bytes:
    try:
        logger.info("try %d of %s", self.request.retries, url)
        return b""
    except KeyError as exc:
        raise self.retry(exc=exc, countdown=3)  # noqa: B904 # retry raises by itself


@app.task(name="named", rate_limit="10/m")
def named(flag: bool, *, key: str) -> None:
    return None


@app.task(rate_limit="5/s", rate_limit_scope="cluster", rate_limit_key="{tenant}", rate_limit_group="api")
def limited(tenant: str) -> int:
    return len(tenant)


class Limited(Task[[str], int]):
    rate_limit = 10
    rate_limit_scope = "cluster"


@app.task()
def called_with_nothing() -> float:
    return 1.5


@shared_task
def shared(x: int) -> str:
    return str(x)


@shared_task(bind=True, ignore_result=True)
def shared_and_bound(self: Any, x: int) -> dict[str, int]:
    return {"x": x}


assert_type(add(1, 2), int)
assert_type(add.delay(1), AsyncResult[int])
assert_type(add.delay(1, y=2).get(timeout=1), int)
assert_type(add.apply_async((1, 2), countdown=3), AsyncResult[int])
assert_type(add.apply_async([1], {"y": 2}, task_id="i", expires=datetime.datetime.now()), AsyncResult[int])
assert_type(add.AsyncResult("id"), AsyncResult[int])
assert_type(bound.delay("a").get(), list[str])
assert_type(fetch.delay("http://here").get(), bytes)
assert_type(add.apply((1,)), EagerResult[int])
assert_type(add.apply((1,)).get(), int)
assert_type(called_with_nothing.delay().get(), float)
assert_type(shared(1), str)
assert_type(shared.delay(1), AsyncResult[str])
assert_type(shared_and_bound.delay(1).get(), dict[str, int])
assert_type(app.send_task("any.name", [1], queue="q").id, str)
named.delay(True, key="k")
named.apply_async((True,), {"key": "k"}, queue="q", priority=3, headers={"tenant": "a"}, retry=False)
add.s(1, 2).apply_async(queue="q")
result = group(add.s(n, n) for n in range(3))()
assert isinstance(result, GroupResult)
chain(add.s(1, 1), add.s(2)).apply_async()
(add.s(1, 1) | add.s(2)).delay()


class Own(Task[[int], str]):
    def run(self, n: int) -> str:
        return str(n)

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        logger.error("%s failed", task_id)


assert_type(Own().delay(3), AsyncResult[str])


@app.task(base=Own)
def of_own(x: int) -> int:
    return x


@app.task(bind=True, base=AbortableTask)
def patient(self: AbortableTask) -> bool:
    return self.is_aborted()


AbortableAsyncResult("id").abort()


@signals.task_failure.connect
def note(sender: Any = None, task_id: str = "", exception: BaseException | None = None, **_: Any) -> None: ...


def again(task: Task[..., Any]) -> None:
    try:
        task.retry()
    except Retry as stop:
        logger.info("%s", stop.when)


with app as same:
    same.close()
