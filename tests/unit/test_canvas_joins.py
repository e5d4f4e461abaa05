"""Random canvases against an oracle, in a fleet whose faults are drawn too: what they give is right or fails visibly,
and no body runs before its time, twice, or under another id.

Everything is real but the broker, which is a list, and the time: slots, what follows an outcome, the worker's half of
joins, and the memory backend.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celeriac import Celery, chain, chord, group, states
from celeriac.canvas import maybe_signature
from celeriac.canvas.launch import chord_of
from celeriac.exceptions import BackendLost, BackendUnreachable, WorkerLostError
from celeriac.execution.execute import TaskProgram
from celeriac.execution.followup import after_failure
from celeriac.spec import envelope
from celeriac.spec.data import Chord, ChordPart, Head, Job, Payload, Settlement
from celeriac.worker.clock import Clock
from celeriac.worker.joins import Joiner
from celeriac.worker.publications import Publications
from celeriac_backend_memory import backend as memory

Tree = tuple[Any, ...]
names = itertools.count()


class Died(BaseException):
    """The worker died in the middle of an ending."""


class Fleet:
    """A broker, one worker after the other, and their clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        place = f"memory://joins-{next(names)}"
        self.app = Celery("joins", broker=place, backend=place, set_as_current=False)
        self.app.conf.update(result_chord_patience=100.0)
        self.random = random.Random(seed)
        self.now = 1000.0
        monkeypatch.setattr(memory.time, "monotonic", lambda: self.now)
        self.queue: list[tuple[int, Payload]] = []  # attempt, message
        self.published: Counter[str] = Counter()
        self.ran: Counter[str] = Counter()
        self.lost: set[str] = set()  # ids whose slot dies for good
        self.gone: set[str] = set()  # ids whose message vanishes
        self.repeat = self.die = 0.0  # how probable
        self.settled: list[Settlement] = []
        self.held: dict[int, tuple[int, Payload]] = {}
        self.begun: dict[str, set[str]] = {}  # call and chord → the claims under which it was begun
        self.dropped: Counter[str] = Counter()
        monkeypatch.setattr(self.app, "publish_calls", self._send)
        self._define()
        self._restart()

    def _define(self) -> None:
        app = self.app

        @app.task(name="add")
        def add(x: int, y: int) -> int:
            return x + y

        @app.task(name="total")
        def total(values: Any) -> int:
            return flat_sum(values)

        @app.task(name="const")
        def const(x: int) -> int:
            return x

        @app.task(name="replaced", bind=True)
        def replaced(self: Any, value: Any, others: Any) -> Any:
            return self.replace(maybe_signature(others, app=app, clone=True).clone((value,)))

        @app.task(name="boom")
        def boom(*_: Any) -> None:
            raise ValueError("boom")

    def _restart(self) -> None:
        self.joiner = Joiner(self.app, Clock(monotonic=lambda: self.now, uniform=lambda low, high: high))
        self.publications = Publications(self.app)
        self.program = TaskProgram(self.app, envelope.unpack, "w@h", detail=False)

    def _send(self, calls: Sequence[Any]) -> list[Any]:
        self._publish([self.app.make_payload(*call) for call in calls])
        return []

    # what the joiner asks of a consumer

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        self._maybe_die()
        self._publish(publish)
        self._maybe_die()
        self.settled = [*self.settled, *batch] if publish or batch else self.settled
        for settlement in batch:
            self.held.pop(settlement.tag, None)

    def _publish(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            self.published[name_of(payload)] += 1
            self.queue.append((1, payload))

    def flush(self, timeout_s: float) -> None:
        self._maybe_die()

    def _maybe_die(self) -> None:
        if self.random.random() < self.die:
            raise Died

    # running

    def run(self, steps: int = 3000) -> None:
        """Until nothing is left, in a random order, with the faults that were asked for."""
        tags = itertools.count()
        self.held, self.settled = {}, []
        for _ in range(steps):
            if not self.queue and not self.joiner.left() and not self.held:
                return
            if self.queue:
                attempt, payload = self.queue.pop(self.random.randrange(len(self.queue)))
                if payload.headers["id"] in self.gone:
                    continue
                tag = next(tags)
                self.held[tag] = (attempt, payload)
                if self.random.random() < self.repeat:
                    self.queue.append((attempt + 1, payload))
                self._one(tag, attempt, payload)
            else:
                self.now += 30.0
            try:
                self.joiner.perform(self, lambda payloads: payloads)  # type: ignore[arg-type]
            except Died:
                self.queue += [(attempt + 1, payload) for attempt, payload in self.held.values()]
                self.held = {}
                self._restart()
        raise AssertionError(f"it does not end: {len(self.queue)} messages, {self.joiner.left()} joins")

    def _one(self, tag: int, attempt: int, payload: Payload) -> None:
        task_id = payload.headers["id"]
        settlement = Settlement(tag)
        store = self.app.backend
        head = envelope.read_head(envelope.pack(payload, str(tag)))
        assert isinstance(head, Head)
        if head.claim is not None:
            if not self.publications.admitted([head])[0]:
                self.dropped[task_id] += 1
                self._settle_alone(tag, attempt, [])
                return
            self.begun.setdefault(f"{task_id} for {chord_of(head.claim)}", set()).add(head.claim)
        self.ran[task_id] += 1
        if task_id in self.lost:
            self._end_lost(settlement, payload)
            return
        report = self.program.run(Job(tag, envelope.pack(payload, str(tag)), "q", attempt), lambda report: None)
        assert report.outcome in ("succeeded", "failed", "retried", "ignored"), report
        if report.chords is not None:
            self.joiner.add(settlement, report.stored, report.publish, report.chords, False)
            return
        store.plugin.store(report.stored)  # type: ignore[union-attr]
        self._settle_alone(tag, attempt, report.publish)

    def _settle_alone(self, tag: int, attempt: int, publish: Sequence[Payload]) -> None:
        try:
            self.settle([Settlement(tag)], publish=publish)
        except Died:
            if tag in self.held:
                self.queue.append((attempt + 1, self.held.pop(tag)[1]))

    def _end_lost(self, settlement: Settlement, payload: Payload) -> None:
        from celeriac.execution.request import Context

        request = Context(payload.headers)
        request.update(json.loads(payload.body)[2])
        store = self.app.backend
        exc = WorkerLostError("gone")
        following = after_failure(self.app, store, request, exc, "", in_slot=False)
        stored = [store.make(request.id, states.FAILURE, store.failure(exc), None, request), *following.stored]
        if following.chords is not None:
            self.joiner.add(settlement, stored, following.publish, following.chords, False)
        else:
            store.plugin.store(stored)  # type: ignore[union-attr]
            self.settle([settlement], publish=following.publish)


def name_of(payload: Payload) -> str:
    """Of a call: its id, and how often it was replaced."""
    nesting = payload.headers.get("replaced_task_nesting")
    return f"{payload.headers['id']}+{nesting}" if nesting else str(payload.headers["id"])


def flat_sum(values: Any) -> int:
    return sum(map(flat_sum, values)) if isinstance(values, list) else values


# -- canvases and what they should give ---------------------------------------------------------------------

#: `linked` has callbacks of many calls each, which count for nothing in what it gives.
leaves = st.one_of(
    st.tuples(st.just("const"), st.integers(0, 9)),
    st.tuples(st.just("add"), st.integers(0, 9)),
    st.tuples(st.just("linked"), st.integers(0, 9)),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.just("chain"), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.just("group"), st.lists(inner, min_size=0, max_size=3)),
        st.tuples(st.just("chord"), st.lists(inner, min_size=0, max_size=3), inner),
        st.tuples(st.just("replaced"), st.lists(inner, min_size=1, max_size=2)),
    ),
    max_leaves=9,
)


def build(app: Celery, tree: Tree) -> Any:
    """The canvas of a tree. Every call takes one value and gives a number, so that all shapes fit together."""
    kind = tree[0]
    if kind == "const":
        return app.tasks["const"].si(tree[1])
    if kind == "add":
        return chain(app.tasks["total"].s(), app.tasks["add"].s(tree[1]), app=app)
    if kind == "linked":
        const, total = app.tasks["const"], app.tasks["total"]
        call = const.si(tree[1])
        call.link(chain(total.s(), group(total.s(), total.s(), app=app), total.s(), app=app))
        call.link(group(total.s(), chain(total.s(), total.s(), app=app), app=app))
        return call
    parts = [build(app, part) for part in tree[1]]
    if kind == "replaced":
        return app.tasks["replaced"].s(group(parts, app=app))
    if kind == "chain":
        return chain(parts, app=app)
    if kind == "group":
        return group(parts, app=app)
    return chord(parts, build(app, tree[2]), app=app)


def oracle(tree: Tree, value: Any) -> Any:
    """What the canvas of a tree gives for a value."""
    kind = tree[0]
    if kind in ("const", "linked"):
        return tree[1]
    if kind == "add":
        return flat_sum(value) + tree[1]
    if kind == "chain":
        for place, step in enumerate(_steps(tree)):
            if place == 0 or not _is_nothing(step):
                value = oracle(step, value)
        return value
    if kind in ("group", "replaced"):
        return [oracle(part, value) for part in tree[1]]
    flat = _flat(tree[1])
    return oracle(tree[2], [oracle(part, value) for part in flat])


def _steps(tree: Tree) -> list[Tree]:
    found: list[Tree] = []
    for step in tree[1]:
        inner = _steps(step) if step[0] == "chain" else [step]
        rest = [one for one in inner if not _is_nothing(one)]
        if step[0] == "chain" and inner and _is_nothing(inner[0]) and rest:
            inner = [("chord", [], ("chain", rest))]  # what it was made when it was made
        found += inner
    return found


def _is_nothing(tree: Tree) -> bool:
    return tree[0] == "group" and not _flat(tree[1])


def _flat(parts: Sequence[Tree]) -> list[Tree]:
    found: list[Tree] = []
    for part in parts:
        found += _flat(part[1]) if part[0] == "group" else [part]
    return found


def gather(result: Any) -> Any:
    """The values of a result, one by one where it is a group's."""
    if hasattr(result, "results"):
        return [gather(member) for member in result.results]
    document = result.backend.get_task_meta(result.id)
    assert document["status"] == states.SUCCESS, document
    return document["result"]


def checked(
    monkeypatch: pytest.MonkeyPatch, tree: Tree, seed: int, prepare: Callable[[Fleet], None]
) -> tuple[Fleet, Any]:
    with monkeypatch.context() as patch:
        fleet = Fleet(patch, seed)
        prepare(fleet)
        canvas = chain(fleet.app.tasks["const"].si(5), build(fleet.app, tree), app=fleet.app)
        result = canvas.apply_async()
        fleet.run()
        assert flat_sum(gather(result)) == flat_sum(oracle(("chain", [("const", 5), tree]), None))
        return fleet, result


quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@quick
@given(tree=trees, seed=st.integers(0, 2**32))
def test_a_canvas_gives_what_the_oracle_says_and_publishes_each_call_once(
    monkeypatch: pytest.MonkeyPatch, tree: Tree, seed: int
) -> None:
    fleet, _ = checked(monkeypatch, tree, seed, lambda fleet: None)
    assert set(fleet.published.values()) == {1}


@quick
@given(tree=trees, seed=st.integers(0, 2**32))
def test_messages_that_come_twice_change_nothing(monkeypatch: pytest.MonkeyPatch, tree: Tree, seed: int) -> None:
    def prepare(fleet: Fleet) -> None:
        fleet.repeat = 0.3

    fleet, _ = checked(monkeypatch, tree, seed, prepare)
    plain, _ = checked(monkeypatch, tree, seed, lambda fleet: None)
    assert_each_call_is_one(fleet, plain)


@quick
@given(tree=trees, seed=st.integers(0, 2**32))
def test_workers_that_die_at_any_step_lose_nothing(monkeypatch: pytest.MonkeyPatch, tree: Tree, seed: int) -> None:
    def prepare(fleet: Fleet) -> None:
        fleet.repeat, fleet.die = 0.1, 0.1

    fleet, _ = checked_with_late_faults(monkeypatch, tree, seed, prepare)
    plain, _ = checked(monkeypatch, tree, seed, lambda fleet: None)
    assert_each_call_is_one(fleet, plain)


def assert_each_call_is_one(fleet: Fleet, plain: Fleet) -> None:
    """Whatever was done twice, it was done under the same ids; and of several messages of a chord's body one has run,
    if more than once because it was delivered more than once."""
    assert len(fleet.published) == len(plain.published), "a call was published under two ids"
    assert {task_id: claims for task_id, claims in fleet.begun.items() if len(claims) > 1} == {}
    assert set(fleet.ran) == {name.partition("+")[0] for name in fleet.published}


def test_a_body_that_was_published_twice_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fleet = Fleet(patch, 7)
        header = [fleet.app.tasks["const"].si(n) for n in range(3)]
        body = chain(fleet.app.tasks["total"].s(), group(fleet.app.tasks["const"].si(n) for n in range(2)))
        chord(header, body, app=fleet.app).apply_async()
        closed = fleet.joiner._close
        fleet.joiner._close = lambda: fleet.joiner._unclosed.clear()  # type: ignore[method-assign]
        fleet.run()
        fleet.joiner._close = closed  # type: ignore[method-assign]
        once = Counter(fleet.ran)
        fleet.now += 200.0
        for _ in range(3):  # the sweep finds a chord that nobody closed
            fleet.joiner.perform(fleet, lambda payloads: payloads)  # type: ignore[arg-type]
            fleet.now += 10.0
        assert [payload.headers["task"] for _, payload in fleet.queue] == ["total"]
        fleet.run()
        assert fleet.ran == once
        assert sum(fleet.dropped.values()) == 1


def test_a_store_that_is_away_when_a_body_is_to_be_called_is_no_failure_of_the_chord(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        fleet = Fleet(patch, 5)
        plugin: Any = fleet.app.backend.plugin
        load, troubles = plugin.load_group, [BackendLost("cut"), BackendUnreachable("refused")]

        def load_group(group_id: str) -> Any:
            if troubles:
                raise troubles.pop()
            return load(group_id)

        patch.setattr(plugin, "load_group", load_group)
        header = [fleet.app.tasks["const"].si(n) for n in range(3)]
        result = chord(header, fleet.app.tasks["total"].s(), app=fleet.app).apply_async()
        fleet.run()
        assert troubles == []
        assert gather(result) == 3


@pytest.mark.parametrize("body", [{"subtask_type": "chord"}, {"subtask_type": "chain", "kwargs": {"tasks": [5]}}])
def test_a_chord_whose_body_is_none_harms_no_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, body: dict[str, Any]
) -> None:
    with monkeypatch.context() as patch:
        fleet = Fleet(patch, 5)
        fleet.app.backend.plugin.open_chords([Chord("odd", 1, b"", 100.0)])  # type: ignore[union-attr]
        options = {"chord": {"task": "x", "options": {}, **body}, "group_id": "odd", "group_index": 0}
        fleet._publish([fleet.app.make_payload("const", (1,), {}, "part", options)])
        fleet.run()
        assert "The body of chord odd" in caplog.text
        assert fleet.app.backend.plugin.join([ChordPart("odd", "part", 0, b"", b"")]) == []  # type: ignore[union-attr]


@pytest.mark.parametrize("last", ["chain", "chord"])
def test_a_call_whose_stand_in_ends_in_several_calls_has_the_list_of_theirs(
    monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    with monkeypatch.context() as patch:
        fleet = Fleet(patch, 3)
        const, total, replaced = (fleet.app.tasks[name] for name in ("const", "total", "replaced"))
        several = group(const.si(2), const.si(3), app=fleet.app)
        stand_in = chain(const.si(1), several) if last == "chain" else chord([const.si(1)], several)
        alone = replaced.si(0, stand_in).on_error(total.s())
        alone.link(total.s().set(task_id="linked"))
        alone = chain(alone, app=fleet.app).apply_async()
        followed = chain(replaced.si(0, stand_in), total.s(), app=fleet.app).apply_async()
        fleet.run()
        assert gather(alone) == [2, 3]
        assert gather(followed) == 5
        assert gather(fleet.app.AsyncResult("linked")) == 5


def checked_with_late_faults(
    monkeypatch: pytest.MonkeyPatch, tree: Tree, seed: int, prepare: Callable[[Fleet], None]
) -> tuple[Fleet, Any]:
    """As `checked`; the client, which is not a worker, does not die. Patience is long: each worker that dies with the
    claim on a chord costs the chords around it a minute."""
    with monkeypatch.context() as patch:
        fleet = Fleet(patch, seed)
        fleet.app.conf.result_chord_patience = 10_000.0
        canvas = chain(fleet.app.tasks["const"].si(5), build(fleet.app, tree), app=fleet.app)
        result = canvas.apply_async()
        prepare(fleet)
        fleet.run()
        assert flat_sum(gather(result)) == flat_sum(oracle(("chain", [("const", 5), tree]), None))
        return fleet, result


def cannot_count(fleet: Fleet) -> None:
    plugin = fleet.app.backend.plugin
    plugin.abilities = plugin.abilities - {"count"}  # type: ignore[union-attr]
    fleet._restart()


@quick
@given(tree=trees, seed=st.integers(0, 2**32))
def test_where_the_store_cannot_count_the_join_is_polled(
    monkeypatch: pytest.MonkeyPatch, tree: Tree, seed: int
) -> None:
    checked(monkeypatch, tree, seed, cannot_count)


def test_a_polled_join_fails_by_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fleet = Fleet(patch, 1)
        fleet.app.conf.result_chord_patience = 0
        cannot_count(fleet)
        header = [fleet.app.tasks["const"].si(n) for n in range(3)]
        result = chord(header, fleet.app.tasks["total"].s(), app=fleet.app).apply_async()
        fleet.gone.add(result.parent.results[1].id)
        fleet.run()
        document = result.backend.get_task_meta(result.id)
        assert document["status"] == states.FAILURE
        assert "missing are the parts" in document["result"]["exc_message"][0]


@quick
@given(tree=trees, seed=st.integers(0, 2**32), vanish=st.booleans(), data=st.data())
def test_what_cannot_end_well_fails_visibly_for_all_who_wait(
    monkeypatch: pytest.MonkeyPatch, tree: Tree, seed: int, vanish: bool, data: st.DataObject
) -> None:
    with monkeypatch.context() as patch:
        fleet = Fleet(patch, seed)
        parts = [build(fleet.app, ("const", n)) for n in range(3)]
        victim = data.draw(st.integers(0, 2))
        canvas = chord([*parts, build(fleet.app, tree)] if tree[0] != "group" else parts, fleet.app.tasks["total"].s())
        canvas = canvas.clone((5,))
        result = canvas.apply_async()
        chosen = result.parent.results[victim].id
        (fleet.gone if vanish else fleet.lost).add(chosen)
        fleet.run()
        for _ in range(50):  # the sweep comes when it comes
            if result.backend.get_state(result.id) in states.READY_STATES:
                break
            fleet.now += 40.0
            fleet.joiner.perform(fleet, lambda payloads: payloads)  # type: ignore[arg-type]
        document = result.backend.get_task_meta(result.id)
        assert document["status"] == states.FAILURE
        assert document["result"]["exc_type"] == "ChordError"
        (message,) = document["result"]["exc_message"]
        if vanish:
            assert f"missing are the parts {victim}" in message
        else:
            assert "WorkerLostError" in message
        assert fleet.published[result.id] == 0, "a body was called that could not be"
