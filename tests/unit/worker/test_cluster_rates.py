"""Rates over all workers: slots are given out once, evenly, near ones only; who finds none comes back in turn."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest

from celeriac import Celery
from celeriac.app.rate_limits import cluster_wide, make_key_maker, trouble_with
from celeriac.exceptions import ImproperlyConfigured, OperationalError, TransportLost
from celeriac.spec.data import Delivery, Head, Settlement
from celeriac.spec.state import Change, SharedState, Snapshot
from celeriac.testing.broker_suite import make_payload
from celeriac.testing.kit import Bench, eventually
from celeriac.worker.admission import Admission
from celeriac.worker.clock import SYSTEM, Clock
from celeriac.worker.cluster_rates import (
    AHEAD_S,
    ASKED,
    HASTE,
    LAP_S,
    NEAR_S,
    PAUSE_S,
    RECOVERY_S,
    SPACE,
    Answer,
    ClusterRates,
    Line,
)
from celeriac.worker.plans import TaskPlan
from celeriac.worker.worker import Worker

NOW = 1_000_000.0


def test_slots_come_at_even_pace_and_no_farther_ahead_than_is_near() -> None:
    line = Line(None, NOW)
    taken = []
    while (slot := line.take(0.5)) is not None:
        taken.append(slot)
    assert taken == [NOW, NOW + 0.5, NOW + 1.0, NOW + 1.5, NOW + NEAR_S]
    later = Line(line.mark(), NOW + 1.0)
    assert later.take(0.5) == NOW + 2.5, "who comes later goes on where the first ended"
    assert Line(line.mark(), NOW + 600).take(0.5) == NOW + 600, "what was not used is not saved up"


def test_who_finds_no_slot_comes_back_about_as_fast_as_slots_come_up() -> None:
    line = Line(None, NOW)
    while line.take(0.5) is not None:
        pass
    first, second = line.defer(0.5), line.defer(0.5)
    assert first == NOW + NEAR_S + 0.5
    assert second is not None
    assert second - first == pytest.approx(HASTE * 0.5)
    deferred = 2
    while (again := line.defer(0.5)) is not None:
        deferred += 1
        assert again <= NOW + AHEAD_S
    assert deferred < 2 * AHEAD_S / 0.5, "there is an end to what is planned ahead"
    assert Line(None, NOW).defer(0.001) == NOW + PAUSE_S, "nobody asks again at once"


class Shaky:
    """A shared state that fails when told to, and in which others write when told to."""

    def __init__(self, state: SharedState) -> None:
        self._state = state
        self.fails = False
        self.meanwhile: Callable[[], object] | None = None

    def write(
        self, space: str, changes: Sequence[Change], *, given: Mapping[str, int] = MappingProxyType({})
    ) -> int | None:
        if self.meanwhile is not None:
            act, self.meanwhile = self.meanwhile, None
            act()
        return self._state.write(space, changes, given=given)

    def read(self, space: str, keys: Sequence[str] | None = None) -> Snapshot:
        if self.fails:
            raise TransportLost("the store is gone.")
        return self._state.read(space, keys)

    def version(self, space: str) -> int:
        return self._state.version(space)


class Desk:
    """The rates of one worker, and the plans of its tasks."""

    def __init__(self, app: Celery, clock: Clock = SYSTEM) -> None:
        state = app.shared_state
        assert state is not None
        self.app = app
        self.store = Shaky(state)
        self.transport = app.make_transport()
        self.woken = threading.Event()
        self.held = 0
        self.rates = ClusterRates(
            self.store, self.transport.unpack, lambda: app.codec, self.woken.set, lambda: self.held, clock
        )

    def plan(self, name: str) -> TaskPlan:
        return TaskPlan(self.app.tasks[name], None, None, announce=False)

    def message(self, *args: Any) -> bytes:
        """A call as it comes from the broker."""
        self.transport.send([make_payload("own", json.dumps([args, {}, {}]).encode())])
        consumer = self.transport.consumer(self.app.router.select(["own"]), owner="me", poller=Bench(), window=1)
        (delivery,) = consumer.receive(1)
        consumer.settle([Settlement(delivery.tag)])
        consumer.close()
        return delivery.raw

    def ask(self, name: str, count: int, raw: bytes = b"") -> list[Answer]:
        """Ask so often at once; the answers."""
        plan = self.plan(name)
        for number in range(count):
            assert self.rates.ask(Delivery(number, raw, Head(f"{number}", name), "own"), plan)
        answers: list[Answer] = []
        eventually(lambda: answers.extend(answer for _, answer in self.rates.answers()) or len(answers) == count)
        return answers


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    app = Celery("rates", broker=f"memory://{request.node.name}", set_as_current=False)
    limits: dict[str, Any] = {"rate_limit": "10/s", "rate_limit_scope": "cluster"}
    app.task(name="plain", **limits)(lambda: None)
    app.task(name="fast", rate_limit="1000/s", rate_limit_scope="cluster")(lambda: None)
    app.task(name="one", rate_limit_group="api", **limits)(lambda: None)
    app.task(name="two", rate_limit_group="api", **limits)(lambda: None)
    app.task(name="keyed", rate_limit_key="{tenant}", **limits)(lambda tenant, more=1: None)
    app.finalize()
    yield app
    app.close()


@pytest.fixture
def desk(app: Celery) -> Iterator[Desk]:
    desk = Desk(app)
    yield desk
    desk.rates.stop()


def starts(answers: Sequence[Answer]) -> list[float]:
    return sorted(answer.start for answer in answers if answer.start is not None)


def test_two_workers_that_ask_at_the_same_time_get_no_slot_twice(app: Celery, desk: Desk) -> None:
    other = Desk(app)
    began = time.time()
    there = desk.ask("plain", 10)
    here: list[Answer] = []
    other.store.meanwhile = lambda: there.extend(desk.ask("plain", 3))
    here = other.ask("plain", 4)
    other.rates.stop()
    found = starts(there + here)
    assert len(found) == 17
    assert all(start >= began + 0.1 * number for number, start in enumerate(found))
    assert desk.rates.taken + other.rates.taken == 17


def test_beyond_what_is_near_messages_go_back_for_a_while(desk: Desk) -> None:
    began = time.time()
    answers = desk.ask("plain", 60)
    took = starts(answers)
    assert 20 <= len(took) < 60
    assert took[-1] <= time.time() + NEAR_S
    again = [answer.again for answer in answers if answer.start is None]
    assert min(again) > began + NEAR_S
    assert desk.rates.info()["deferred"] == len(again)


def test_of_very_many_the_last_come_back_in_turn_and_not_all_at_once(desk: Desk) -> None:
    answers = desk.ask("plain", 950)
    again = [answer.again for answer in answers if answer.start is None]
    late = [when for when in again if when > time.time() + LAP_S - 1]
    assert len(set(again)) == len(again)
    assert max(late) < time.time() + AHEAD_S + LAP_S


def test_groups_share_a_limit_and_keys_do_not(desk: Desk) -> None:
    began = time.time()
    found = starts([answer for name in ("one", "two", "one", "two") for answer in desk.ask(name, 2)])
    assert all(start >= began + 0.1 * number for number, start in enumerate(found))
    for tenant in ("a", "b", "a", "x" * 1000, "\ud800\x00"):
        (answer,) = desk.ask("keyed", 1, desk.message(tenant))
        assert answer.start is not None
    state = desk.app.shared_state
    assert state is not None
    keys = set(state.read(SPACE).entries)
    assert keys > {"api", "keyed/a", "keyed/b"}
    assert len(keys) == 5
    assert all(len(key) < 200 and key.isprintable() for key in keys), "no key that a store may refuse"


def test_a_call_without_a_key_is_limited_with_all_others_that_have_none(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        desk.ask("keyed", 1, b"no message at all")
    state = desk.app.shared_state
    assert state is not None
    assert set(state.read(SPACE).entries) == {"keyed"}
    assert caplog.text.count("rate_limit_key of keyed has no key") == 1


def test_without_its_store_nothing_starts_and_with_it_all_goes_on(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.store.fails = True
    now = time.time()
    (answer,) = desk.ask("plain", 1)
    assert answer.start is None
    assert now + 1 <= answer.again <= time.time() + 3
    assert desk.rates.trouble == "the store is gone."
    desk.ask("plain", 1)
    assert caplog.text.count("cannot be looked up") == 1
    desk.store.fails = False
    (answer,) = desk.ask("plain", 1)
    assert answer.start is not None
    assert desk.rates.trouble == ""


def test_a_worker_that_cannot_keep_its_promises_makes_fewer_for_a_while(app: Celery) -> None:
    now = 0.0
    desk = Desk(app, SYSTEM._replace(monotonic=lambda: now))
    for _ in range(20):
        desk.rates.missed()
    assert 1 <= len(starts(desk.ask("fast", 20))) < 20
    desk.held = 1
    assert starts(desk.ask("fast", 5)) == [], "one is all that it holds"
    now = RECOVERY_S + 0.1
    assert starts(desk.ask("fast", 5)) != [], "one more is"
    desk.rates.stop()


def test_there_is_a_bound_to_what_waits_for_an_answer_and_what_is_dropped_gets_none(desk: Desk) -> None:
    plan = desk.plan("plain")
    gate = threading.Event()
    desk.store.meanwhile = lambda: gate.wait(30)
    for number in range(ASKED):
        assert desk.rates.ask(Delivery(number, b"", Head("", "plain"), "own"), plan)
    assert not desk.rates.ask(Delivery("more", b"", Head("", "plain"), "own"), plan)
    desk.rates.drop({1, 2, 3})
    assert len(desk.rates.clear()) == ASKED - 3
    gate.set()
    assert desk.ask("plain", 1)
    assert len(desk.rates) == 0


def test_a_promise_is_kept_once_and_ends_with_what_it_was_made_for(app: Celery) -> None:
    admission = Admission(can_delay=True, patience_s=1, rates=True)
    plan = TaskPlan(app.tasks["plain"], None, None, announce=False)
    message = Head("id", "plain")
    assert admission.judge(message, plan, 0).what == "ask"
    admission.promise("id")
    assert admission.promised == 1
    assert admission.judge(message, plan, 0).what == "run"
    assert admission.judge(message, plan, 0).what == "ask"
    admission.promise("id")
    assert admission.judge(Head("id", "plain", expires="2020-01-01T00:00:00"), plan, 0).what == "expired"
    assert admission.judge(message, plan, 0).what == "ask"


@pytest.mark.parametrize(
    ("key", "args", "kwargs", "wanted"),
    [
        ("{tenant}", ["a"], {}, "a"),
        ("{tenant}:{options[region]}", [], {"tenant": 7, "options": {"region": "eu"}}, "7:eu"),
        ("{tenant}-{size}", ["a"], {}, "a-1"),
        (lambda tenant, **_: tenant.upper(), ["a"], {"size": 2}, "A"),
        (lambda *_, **__: None, ["a"], {}, ""),
    ],
)
def test_keys_are_made_of_arguments(key: Any, args: Any, kwargs: Any, wanted: str) -> None:
    app = Celery("keys", broker="memory://", set_as_current=False)

    @app.task(bind=True, name="t", rate_limit="1/s", rate_limit_scope="cluster", rate_limit_key=key)
    def task(self: Any, tenant: Any, size: int = 1, **others: Any) -> None: ...

    assert trouble_with(task) == ""
    make = make_key_maker(task)
    assert make is not None
    assert make(args, kwargs) == wanted


def test_a_class_of_tasks_may_have_a_method_for_its_keys() -> None:
    app = Celery("keys", broker="memory://", set_as_current=False)

    class Import(app.Task):  # type: ignore[name-defined, misc]
        name = "import"

        def run(self, tenant: str) -> None: ...

        def rate_limit_key(self, tenant: str) -> str:
            return f"{self.name} {tenant}"

    make = make_key_maker(app.register_task(Import()))
    assert make is not None
    assert make(["a"], {}) == "import a"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate_limit": "often"}, "'often' is not like"),
        ({"rate_limit_scope": "world"}, "'world' is neither 'worker' nor 'cluster'"),
        ({"rate_limit_key": "{tenant"}, "cannot be read"),
        ({"rate_limit_key": "{tenant}"}, "names 'tenant', which is none of its arguments (x)"),
        ({"rate_limit_key": 7}, "neither text"),
    ],
)
def test_what_makes_no_sense_is_told_before_a_worker_starts(options: Any, words: str) -> None:
    app = Celery("wrong", broker="memory://", set_as_current=False)
    task = app.task(name="t", **options)(lambda x: None)
    assert words in trouble_with(task)


def test_the_settings_give_the_scope_that_a_task_does_not() -> None:
    app = Celery("w", broker="memory://", set_as_current=False)
    app.conf.update(task_default_rate_limit="5/s", task_default_rate_limit_scope="cluster")
    app.conf.task_annotations = {"b": {"rate_limit_scope": "worker"}}
    tasks = [app.task(name=name)(lambda: None) for name in "ab"]
    app.finalize()
    assert cluster_wide(tasks) == ["a"]


@pytest.mark.parametrize("backend", [None, "rpc://"])
def test_without_shared_state_a_worker_says_so_before_it_connects(backend: str | None) -> None:
    app = Celery("w", broker="amqp://nowhere.invalid//", backend=backend, set_as_current=False)
    app.conf.broker_connection_retry_on_startup = False
    app.task(name="t", rate_limit="1/s", rate_limit_scope="cluster")(lambda: None)
    with pytest.raises(ImproperlyConfigured, match=r"^t: rate_limit_scope='cluster' needs a place that all workers"):
        Worker(app).run()
    app.conf.worker_disable_rate_limits = True
    with pytest.raises(OperationalError):
        Worker(app).run()
