"""What a worker does when something within its turn goes wrong: it goes on, or ends in good order."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Queue
from kombu.common import Broadcast

from celeriac import Celery, chord, signals, states
from celeriac.exceptions import (
    CeleriacError,
    ChordError,
    PluginBroken,
    PoolBroken,
    PublishRejected,
    TransportUnreachable,
    WorkerShutdown,
    WorkerTerminate,
)
from celeriac.spec import JobReport
from celeriac.testing.broker_suite import make_payload
from celeriac.testing.kit import eventually
from celeriac.worker import consumer
from celeriac.worker import worker as worker_module
from celeriac.worker.worker import Worker


class Run:
    """A worker that runs in a thread; `code` is its exit code, or what it raised."""

    def __init__(self, app: Celery, **options: Any) -> None:
        ready = threading.Event()
        self.code: Any = None
        options = {"pool": "threads", "concurrency": 1, **options}
        self.worker: Any = Worker(app, on_ready=lambda worker: ready.set(), **options)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert ready.wait(60)

    def _run(self) -> None:
        try:
            self.code = self.worker.run()
        except BaseException as exc:
            self.code = exc

    def end(self, within_s: float = 60) -> Any:
        self.thread.join(within_s)
        assert not self.thread.is_alive(), "it does not end"
        return self.code


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    name = request.node.name
    app = Celery(broker=f"memory://{name}", backend=f"memory://{name}", set_as_current=False)
    app.task(name="kit.task")(lambda: "done")
    yield app
    app.close()


PROTOCOL_1 = {"task": "kit.task", "id": "one", "args": [], "kwargs": {}}


def test_a_consumer_that_lacks_verbs_ends_the_worker_at_its_start(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    class Poor:
        poll_interval_s = None

        def receive(self, limit: int) -> list[Any]:
            return []

        def close(self) -> None:
            pass

    worker = Worker(app, pool="solo")
    monkeypatch.setattr(type(app.transport), "consumer", lambda *_, **__: Poor())
    with pytest.raises(PluginBroken, match="the Poor it made lacks settle, flush, renew, resize"):
        worker.run()


def test_B26_odd_times_in_a_message_set_it_aside_and_cost_nobody_else_anything(app: Celery) -> None:
    odd: list[dict[str, Any]] = [
        {"timelimit": "ab"},
        {"timelimit": [None, float("inf")]},
        {"eta": {"at": 5}},
        {"expires": ["soon"]},
    ]
    payloads = [make_payload("celery", headers={"timelimit": [5.0]})]
    for fields in odd:  # of protocol 1, which has them in the body
        payload = make_payload("celery", json.dumps({**PROTOCOL_1, **fields}).encode())
        payload.headers.clear()
        payloads.append(payload)
    run = Run(app)
    transport: Any = app.make_transport()
    transport.send(payloads)
    assert app.send_task("kit.task").get(timeout=60) == "done"
    letters = eventually(lambda: len(found := transport.browse_dead("celery")) == 5 and found, within_s=60)
    assert all(letter.reason.startswith("malformed: ") for letter in letters)
    assert run.worker.link.epoch == 1, "the link is the first one still"
    run.worker.stop()
    assert run.end() == 0


def test_a_receiver_that_ends_the_worker_when_a_message_comes_does_not_keep_it_from_ending(app: Celery) -> None:
    """The message is a flight by then, so the pool must have its job."""

    def end(**_: Any) -> None:
        raise WorkerShutdown(0)

    signals.task_received.connect(end)
    try:
        run = Run(app)
        result = app.send_task("kit.task")
        assert run.end() == 0
    finally:
        signals.task_received.disconnect(end)
    assert result.state == states.SUCCESS or app.transport.depth("celery") == 1, "it has run, or it is back"


def test_a_receiver_that_ends_the_worker_when_one_run_has_ended_loses_no_other_s_end(app: Celery) -> None:
    def end(**_: Any) -> None:
        raise WorkerShutdown(0)

    run = Run(app, concurrency=2)
    loop = run.worker.loop
    gate = threading.Event()
    app.task(name="wait")(lambda: gate.wait(90))
    calls = [app.send_task("wait") for _ in range(2)]
    eventually(lambda: len(loop.running()) == 2, within_s=60)
    ends: list[JobReport] = [JobReport(token, "timed_out", detail="1") for token in loop.flights.tokens()]
    signals.task_failure.connect(end)
    try:
        with pytest.raises(WorkerShutdown):
            loop.endings.digest(ends)
    finally:
        signals.task_failure.disconnect(end)
    assert len(loop.flights) == 0
    gate.set()
    run.worker.stop()
    assert run.end() == 0
    assert [call.state for call in calls] == [states.FAILURE] * 2


def test_messages_that_end_without_a_run_do_not_wait_for_the_loop_s_next_look(app: Celery) -> None:
    for _ in range(200):
        app.send_task("kit.task", expires=-1)
    last = app.send_task("kit.task")
    run = Run(app)
    assert last.get(timeout=60) == "done", "at one message a second it would take three minutes"
    run.worker.stop()
    assert run.end() == 0


def threads_of_workers() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(("celeriac-slot", "celeriac-re"))}


def test_a_worker_that_is_stopped_while_it_waits_for_its_broker_ends_at_once(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, heard = threading.Event(), threading.Event()
    app.conf.update(broker_connection_retry=True, broker_connection_retry_on_startup=True)

    def ping(timeout_s: float) -> str:
        asked.set()
        raise TransportUnreachable("nobody is there")

    def hear(**_: Any) -> None:
        heard.set()

    transport = app.make_transport()
    monkeypatch.setattr(type(transport), "ping", lambda self, timeout_s: ping(timeout_s))
    monkeypatch.setattr(worker_module, "START_PAUSE_S", 1e6)
    signals.worker_shutdown.connect(hear)
    codes: list[int] = []
    worker = Worker(app, pool="threads")
    thread = threading.Thread(target=lambda: codes.append(worker.run()), daemon=True)
    try:
        thread.start()
        assert asked.wait(60)
        worker.stop()
        thread.join(60)
    finally:
        signals.worker_shutdown.disconnect(hear)
    assert (codes, heard.is_set()) == ([0], True)


def explode(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("nobody foresaw it")


def planted_in(module: str) -> Any:
    """A function of this module that raises what its author did not foresee."""
    names: dict[str, Any] = {"__name__": module}
    exec("def fail(*_, **__):\n    raise ZeroDivisionError('nobody foresaw it')", names)
    return names["fail"]


def test_B25_a_broker_plugin_s_unforeseen_errors_are_told_with_its_name_and_do_not_end_the_worker(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "LONGEST_SURPRISE_PAUSE_S", 0.01)
    run = Run(app)
    kind = type(run.worker.link.consumer)
    receive, fail, left = (
        kind.receive,
        planted_in("celeriac_broker_memory.transport"),
        [3 * worker_module.MAX_SURPRISES],
    )

    def stumble(self: Any, limit: int) -> Any:
        left[0] -= 1
        return receive(self, limit) if left[0] < 0 else fail()

    monkeypatch.setattr(kind, "receive", stumble)
    assert app.send_task("kit.task").get(timeout=60) == "done"
    run.worker.stop()
    assert run.end() == 0
    assert "Unexpected error in plugin broker:memory (celeriac-broker-memory " in caplog.text
    assert "Lost the broker" not in caplog.text


def test_a_pool_that_fails_to_take_jobs_ends_the_worker_and_their_messages_come_again(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could say which of them will ever be answered for."""
    run = Run(app)
    monkeypatch.setattr(type(run.worker.pool), "submit", planted_in("celeriac_pool_threads.pool"))
    app.send_task("kit.task")
    error = run.end()
    assert isinstance(error, PoolBroken)
    assert "plugin pool:threads (celeriac-pool-threads " in str(error)
    assert app.transport.depth("celery") == 1


@pytest.mark.parametrize("returned", [7, [7]])
@pytest.mark.parametrize("verb", ["receive", "collect"])
def test_a_plugin_that_returns_what_is_not_due_is_named_and_its_verb_too(
    app: Celery, verb: str, returned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "LONGEST_SURPRISE_PAUSE_S", 0.01)
    run = Run(app)
    who, due = ("broker:memory", "Delivery") if verb == "receive" else ("pool:threads", "JobReport")
    kind = type(run.worker.link.consumer if verb == "receive" else run.worker.pool)
    monkeypatch.setattr(kind, verb, lambda *_: returned)
    error = run.end(60)
    assert isinstance(error, PluginBroken)
    assert f"plugin {who} (celeriac-" in str(error)
    what = "7, which is no list" if returned == 7 else f"a list with 7 in it, which is no {due}"
    assert f"is broken: its {verb} returned {what}. " in str(error)


def test_a_plugin_that_fails_as_the_worker_starts_is_named(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(app, pool="threads")
    monkeypatch.setattr("celeriac_pool_threads.pool.ThreadsPool.start", planted_in("celeriac_pool_threads.pool"))
    with pytest.raises(CeleriacError, match=r"plugin pool:threads \(.*ZeroDivisionError: nobody foresaw it") as caught:
        worker.run()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_a_user_s_code_raises_below_a_plugin_is_not_the_plugin_s_fault(app: Celery) -> None:
    app.make_transport()
    fail = planted_in("users_program")
    through: dict[str, Any] = {"__name__": "celeriac_broker_memory.transport"}
    exec("def call(inner):\n    inner()", through)
    core: dict[str, Any] = {"__name__": "celeriac.signals", "fail": fail}
    exec("def call():\n    fail()", core)
    for inner, is_blamed in ((fail, True), (core["call"], False)):
        with pytest.raises(ZeroDivisionError) as caught:
            through["call"](inner)
        assert (app.kernel.culprit(caught.value) is not None) == is_blamed


def test_a_worker_that_fails_at_its_start_leaves_no_ghost_behind(app: Celery) -> None:
    """In a process that lives on: slots, heartbeats, and a lease that is renewed for nobody."""
    before = threads_of_workers()
    with pytest.raises(ZeroDivisionError):
        Worker(app, pool="threads", on_ready=explode).run()
    eventually(lambda: threads_of_workers() <= before, within_s=60)


def test_a_worker_that_cannot_go_on_gives_back_what_it_has_and_leaves_no_ghost(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threads_of_workers()
    gate = threading.Event()
    app.task(name="wait")(lambda: gate.wait(90))
    run = Run(app)
    app.send_task("wait")
    eventually(lambda: run.worker.loop.running(), within_s=60)
    monkeypatch.setattr(run.worker.loop, "turn", explode)
    assert isinstance(run.end(), ZeroDivisionError)
    assert app.transport.depth("celery") == 1, "it was running, and has another try"
    gate.set()
    eventually(lambda: threads_of_workers() <= before, within_s=60)


@pytest.mark.parametrize(("wish", "code"), [(WorkerTerminate, 1), (WorkerShutdown, 0)])
def test_a_worker_is_ended_coldly_or_warmly_as_it_is_told_from_within(
    app: Celery, monkeypatch: pytest.MonkeyPatch, wish: type[BaseException], code: int
) -> None:
    gate = threading.Event()
    app.task(name="wait")(lambda: gate.wait(90))
    run = Run(app)
    app.send_task("wait")
    eventually(lambda: run.worker.loop.running(), within_s=60)
    turn, told = run.worker.loop.turn, threading.Event()

    def tell() -> None:
        turn()
        told.set()
        raise wish(0)  # also while it ends

    monkeypatch.setattr(run.worker.loop, "turn", tell)
    run.worker._sleeper.wake()
    assert told.wait(60)
    if code == 0:
        gate.set()
    assert run.end() == code
    gate.set()


def test_B26_headers_that_are_called_as_something_of_ours_cost_nobody_anything(app: Celery) -> None:
    for name in ("update", "get", "_children", "_emit"):
        app.send_task("kit.task", headers={name: [1]}, expires=-1)
        app.send_task("kit.task", headers={name: [1]})
    run = Run(app)
    assert app.send_task("kit.task").get(timeout=60) == "done"
    assert run.worker.link.epoch == 1, "the link is the first one still"
    run.worker.stop()
    assert run.end() == 0


def test_a_task_whose_rate_is_none_in_an_hour_has_no_limit_as_in_celery(app: Celery) -> None:
    app.task(name="free", rate_limit="0/h")(lambda: "done")
    run = Run(app)
    assert [app.send_task("free").get(timeout=60) for _ in range(3)] == ["done"] * 3
    run.worker.stop()
    assert run.end() == 0


def test_what_follows_and_has_nowhere_to_go_costs_its_own_delivery_and_nobody_else_s(app: Celery) -> None:
    run = Run(app)
    transport: Any = app.make_transport()
    nowhere = app.signature("kit.task", exchange="nowhere", exchange_type="direct", routing_key="x")
    result = app.send_task("kit.task", link=nowhere)
    (letter,) = eventually(lambda: transport.browse_dead("celery"), within_s=60)
    assert (letter.reason, letter.attempt) == ("what follows from it has nowhere to go", 1)
    assert result.get(timeout=60) == "done"
    assert run.worker.link.epoch == 1, "the link is the first one still"
    run.worker.stop()
    assert run.end() == 0


@pytest.mark.parametrize("acks_late", [True, False])
def test_who_waits_for_what_has_nowhere_to_go_is_told(app: Celery, acks_late: bool) -> None:
    """The step that cannot be sent, those after it, its errback, and the chord around them."""
    heard: list[Any] = []
    app.task(name="first", acks_late=acks_late)(lambda: 1)
    app.task(name="hear")(heard.append)
    app.task(name="body")(lambda values: values)
    run = Run(app)

    def steps() -> Any:
        away = app.signature("away", exchange="nowhere", exchange_type="direct", routing_key="x")
        return app.signature("first") | away.on_error(app.signature("hear")) | app.signature("after")

    after = steps().apply_async()
    with pytest.raises(PublishRejected, match="nowhere"):
        after.get(timeout=60)
    away = after.parent
    assert (away.state, away.parent.state) == (states.FAILURE, states.SUCCESS)
    assert eventually(lambda: heard, within_s=60) == [away.id]
    with pytest.raises(ChordError, match="nowhere"):
        chord([app.signature("first"), steps()], app.signature("body")).apply_async().get(timeout=60)
    assert run.worker.link.epoch == 1, "the link is the first one still"
    run.worker.stop()
    assert run.end() == 0


def test_of_endless_names_of_unknown_tasks_only_some_are_kept(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "UNKNOWN_TOLD", 3)
    run = Run(app)
    for n in range(10):
        app.send_task(f"unknown.{n}")
    eventually(lambda: run.worker.loop.endings.given_back >= 10, within_s=60)
    assert len(run.worker.loop._told_unknown) <= 3
    run.worker.stop()
    assert run.end() == 0


def test_a_command_for_a_time_limit_that_is_no_number_changes_nothing(app: Celery) -> None:
    run = Run(app)
    wanted = {"task_name": "kit.task", "hard": "soon", "soft": None}
    (reply,) = app.control.broadcast("time_limit", wanted, reply=True, limit=1, timeout=60)
    assert "two numbers of seconds" in str(reply)
    assert app.tasks["kit.task"].time_limit is None
    assert app.send_task("kit.task").get(timeout=60) == "done"
    run.worker.stop()
    assert run.end() == 0


class Panic(BaseException):
    """What some extension modules raise: no `Exception`."""


@pytest.mark.parametrize("trouble", [KeyError, Panic])
def test_a_store_s_plugin_that_can_write_no_failure_costs_the_message_that_failed_and_nobody_else_s(
    app: Celery, monkeypatch: pytest.MonkeyPatch, trouble: type[BaseException]
) -> None:
    kind: Any = type(app.backend.plugin)
    encode = kind.encode

    def odd(self: Any, document: Any, serializer: Any) -> bytes:
        if document["status"] == states.FAILURE:
            raise trouble("of the plugin's own")
        return encode(self, document, serializer)  # type: ignore[no-any-return]

    monkeypatch.setattr(kind, "encode", odd)
    app.task(name="fail")(lambda: 1 / 0)
    run = Run(app)
    app.send_task("fail")
    transport: Any = app.make_transport()
    (letter,) = eventually(lambda: transport.browse_dead("celery"), within_s=60)
    assert trouble is Panic or "ZeroDivisionError" in letter.reason, letter.reason
    assert app.send_task("kit.task").get(timeout=60) == "done"
    assert run.worker.link.epoch == 1, "the link is the first one still"
    run.worker.stop()
    assert run.end() == 0


def test_a_chord_s_body_a_part_s_callback_and_the_errback_of_what_never_ran_reach_all_who_listen(app: Celery) -> None:
    """As callbacks and steps do: the broker knows no queue of that name."""
    app.conf.task_queues = [Queue("celery"), Broadcast("news")]
    heard: list[Any] = []
    app.task(name="hear")(heard.append)
    run = Run(app)
    hear = app.signature("hear").set(queue="news")
    chord([app.signature("kit.task").set(link=[hear])], hear).apply_async()
    assert eventually(lambda: len(heard) == 2 and sorted(map(str, heard)), within_s=60) == ["['done']", "done"]
    payload = app.make_payload("kit.task", (), {}, "odd", {"link_error": hear})
    payload.headers["timelimit"] = [1.0]
    app.make_transport().send([payload])
    eventually(lambda: "odd" in heard, within_s=60)
    run.worker.stop()
    assert run.end() == 0
