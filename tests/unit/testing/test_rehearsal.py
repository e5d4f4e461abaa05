"""An app that is rehearsed: what it sends is kept, and runs when the test says so."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from celeriac import Celery, _state, chain, chord, group
from celeriac.exceptions import TaskRevokedError
from celeriac.testing.rehearsal import Rehearsal

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture(scope="module")
def app() -> Celery:
    made = Celery("stage", broker=NOWHERE, backend=NOWHERE, set_as_current=False, message_seal_key="k" * 40)

    @made.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @made.task(name="total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @made.task(name="send_on", rate_limit="1/h", queue="slow lane")
    def send_on(times: int) -> None:
        for _ in range(times):
            add.delay(1, 1)

    @made.task(name="for_ever")
    def for_ever() -> None:
        made.send_task("for_ever")

    @made.task(name="fail", bind=True, max_retries=2)
    def fail(self: Any, patience: bool) -> None:
        error = KeyError("no such thing")
        if patience:
            raise self.retry(exc=error, countdown=300)
        raise error

    return made


@pytest.fixture
def rehearsal(app: Celery) -> Iterator[Rehearsal]:
    with Rehearsal(app) as made:
        yield made


def test_nothing_runs_before_it_is_told_to(app: Celery, rehearsal: Rehearsal) -> None:
    result = app.tasks["add"].apply_async((1,), {"y": 2}, priority=7, headers={"tenant": "acme"}, expires=90)
    (call,) = rehearsal.sent
    assert (call.task, call.id, call.args, call.kwargs, call.priority) == ("add", result.id, (1,), {"y": 2}, 7)
    assert (call.queue, call.countdown_s, call.retries, call.parent_id) == ("celery", 0, 0, None)
    assert call.headers["tenant"] == "acme"
    assert call.expires is not None
    assert result.state == "PENDING"
    assert repr(rehearsal.waiting) == "[<Sent: add(1, y=2) to celery>]"
    assert rehearsal.run_until_idle() == 1
    assert (result.get(), rehearsal.waiting) == (3, [])


def test_whoever_waits_for_a_result_too_early_is_told_what_to_do(app: Celery, rehearsal: Rehearsal) -> None:
    result = app.tasks["add"].delay(1, 2)
    with pytest.raises(RuntimeError, match=r"add\(1, 2\) to celery> waits to be run: call run_until_idle"):
        result.get(timeout=60)


def test_what_tasks_send_runs_too_whatever_its_queue_and_rate(app: Celery, rehearsal: Rehearsal) -> None:
    first, second = app.tasks["send_on"].delay(2), app.tasks["send_on"].delay(1)
    assert rehearsal.run_until_idle() == 5
    assert [call.parent_id for call in rehearsal.sent_of("add")] == [first.id, first.id, second.id]
    assert rehearsal.sent_of(app.tasks["send_on"])[0].queue == "slow lane"


def test_whole_canvases_run(app: Celery, rehearsal: Rehearsal) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    chained = chain(add.s(1, 2), add.s(3), add.s(4)).delay()
    joined = chord(group(add.s(n, n) for n in range(20)), total.s()).delay()
    assert rehearsal.run_until_idle() == 3 + 21
    assert (chained.get(), joined.get()) == (10, 380)


def test_time_passes_for_what_waits(app: Celery, rehearsal: Rehearsal) -> None:
    add = app.tasks["add"]
    late, later = add.apply_async((1, 1), countdown=3600), add.apply_async((2, 2), countdown=7200)
    expiring = add.apply_async((3, 3), countdown=3000, expires=3100)
    assert rehearsal.run_until_idle() == 0
    rehearsal.advance(timedelta(hours=1))
    assert rehearsal.run_until_idle() == 1
    assert (late.state, later.state, expiring.state) == ("SUCCESS", "PENDING", "REVOKED")
    (waiting,) = rehearsal.waiting
    assert waiting.countdown_s == pytest.approx(3600, abs=60)
    assert rehearsal.sent[1].countdown_s == pytest.approx(7200, abs=60)
    with pytest.raises(ValueError, match="time only passes"):
        rehearsal.advance(-1)


def test_waits_can_be_skipped(app: Celery, rehearsal: Rehearsal) -> None:
    failed = app.tasks["fail"].delay(True)
    with pytest.raises(KeyError, match="no such thing"):
        rehearsal.run_until_idle(skip_waits=True)
    assert [call.retries for call in rehearsal.sent] == [0, 1, 2]
    assert failed.state == "FAILURE"


def test_errors_need_not_raise(app: Celery, rehearsal: Rehearsal) -> None:
    result = app.tasks["fail"].delay(False)
    assert rehearsal.run_until_idle(raise_errors=False) == 1
    assert [(run.task, run.id, repr(run.exception)) for run in rehearsal.failed] == [
        ("fail", result.id, "KeyError('no such thing')")
    ]
    assert rehearsal.run_until_idle() == 0  # that error is an old one


def test_what_is_revoked_does_not_run(app: Celery, rehearsal: Rehearsal) -> None:
    result = app.tasks["add"].delay(1, 2)
    result.revoke()
    assert rehearsal.run_until_idle() == 0
    with pytest.raises(TaskRevokedError):
        result.get()


def test_calls_of_others_tasks_are_left_to_them(app: Celery, rehearsal: Rehearsal) -> None:
    app.send_task("theirs", (1,), countdown=5)
    assert rehearsal.run_until_idle(skip_waits=True) == 0
    assert [call.task for call in rehearsal.waiting] == ["theirs"]


def test_an_endless_round_ends(app: Celery, rehearsal: Rehearsal) -> None:
    app.send_task("for_ever")
    with pytest.raises(RuntimeError, match="more than 50 runs, and no end: the last ones were sent for for_ever"):
        rehearsal.run_until_idle(max_runs=50)


def test_the_app_is_its_own_again_afterwards(app: Celery) -> None:
    parts, current = app._parts, _state.remember_apps()
    with Rehearsal(app) as rehearsal:
        app.tasks["add"].delay(1, 2)
        rehearsal.run_until_idle()
        assert _state.remember_apps() == current
    assert app._parts is parts
    assert _state.remember_apps() == current
    with Rehearsal(app) as another:
        assert another.sent == another.waiting == []
    with pytest.raises(RuntimeError, match="begun already"):
        another.__enter__()
