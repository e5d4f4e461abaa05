"""Signatures, groups and chains: their shapes, and running them here."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import celeriac
from celeriac import Celery, chain, chord, group, signature
from celeriac.canvas import StampingVisitor
from celeriac.exceptions import ChordsUnsupported, Ignore
from celeriac.result import EagerResult
from celeriac.resultstore import NoResultBackend


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Celery:
    place = f"memory://{request.node.name}"
    return Celery("canvas", broker=place, backend=place)


@pytest.fixture
def add(app: Celery) -> Any:
    @app.task(name="add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


def test_a_signature_is_a_dict_with_celerys_keys(add: Any) -> None:
    one = add.s(1, y=2).set(queue="q")
    assert dict(one) == {
        "task": "add",
        "args": (1,),
        "kwargs": {"y": 2},
        "options": {"queue": "q"},
        "subtask_type": None,
        "immutable": False,
    }
    again = signature(json.loads(json.dumps(one)), app=add.app)
    assert again(y=5) == 6
    assert pickle.loads(pickle.dumps(one)) == one


def test_links_gather_once(add: Any) -> None:
    one, callback = add.s(1), add.s(5)
    one.link(callback)
    one.link(callback)
    one.on_error(add.si(0))
    assert one.options["link"] == [callback]
    assert len(one.options["link_error"]) == 1


def test_pipes_make_chains_and_chains_flatten(add: Any) -> None:
    steps = add.s(1, 2) | add.s(3) | (add.s(4) | add.s(5))
    assert isinstance(steps, chain)
    assert len(steps) == 4
    assert repr(steps) == "add(1, 2) | add(3) | add(4) | add(5)"
    again = celeriac.maybe_signature(json.loads(json.dumps(steps)), app=add.app)
    assert isinstance(again, chain)
    assert repr(again) == repr(steps)
    assert chain()() is None


def test_a_chain_run_here_gives_the_last_value_and_the_steps_before(add: Any) -> None:
    result = (add.s(1, 2) | add.s(3) | add.s(4)).apply()
    assert result.get() == 10
    assert result.parent.get() == 6
    assert result.parent.parent.get() == 3


def test_a_sent_chain_has_its_ids_fixed_and_the_rest_in_the_first_message(app: Celery, add: Any) -> None:
    result = (add.s(1, 2) | add.s(3).set(queue="other") | add.s(4))()
    ids = result.as_list()
    assert len(set(ids)) == 3
    consumer = app.transport.consumer([app.router.spec("celery")], owner="t", poller=Nobody(), window=1)
    (delivery,) = consumer.receive(5)
    payload = app.transport.unpack(delivery.raw)
    args, _, embed = json.loads(payload.body)
    assert payload.headers["id"] == ids[-1]
    assert args == [1, 2]
    assert [step["options"]["task_id"] for step in embed["chain"]] == [ids[0], ids[1]], "the next step is last"
    consumer.close()


def test_a_group_from_anything_iterable(add: Any) -> None:
    assert len(group(add.s(n) for n in range(3))) == 3
    assert len(group([add.s(1), group(add.s(2), add.s(3))])) == 3, "groups in groups flatten"
    assert len(group()) == 0
    assert group().apply_async().get() == []
    assert repr(group(add.s(1), add.s(2))) == "group([add(1), add(2)])"
    assert group(add.s(1), add.s(2)).apply((10,)).get() == [11, 12]


def test_a_group_of_a_generator_takes_its_members_as_they_are_sent(app: Celery, add: Any) -> None:
    sent: list[int] = []
    taken = 0
    app.publish_calls = lambda calls: sent.append(taken)  # type: ignore[assignment,method-assign,return-value,func-returns-value]

    def calls() -> Any:
        nonlocal taken
        for taken in range(1, 1201):
            yield add.s(taken, taken)

    results = group(calls()).apply_async()
    assert sent == [500, 1000, 1200]
    assert len(results) == 1200


def test_a_long_group_of_a_generator_costs_its_results_and_arguments_and_no_more(app: Celery, add: Any) -> None:
    app.publish_calls = lambda calls: []  # type: ignore[method-assign]
    count = 4000
    for _ in range(2):  # the first one imports and prepares
        tracemalloc.start()
        kept = group(add.s(n, n) for n in range(1000, 1000 + count)), None
        kept = kept[0], kept[0].apply_async()
        left, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert left < 400 * count, "an id, a result, its place, and the arguments"
    assert peak < left + 1_200_000, "besides, what is sent at once"


def test_a_group_of_a_generator_may_be_sent_again_and_looked_at(app: Celery, add: Any) -> None:
    def members() -> Any:
        return [add.s(1), add.s(2).set(queue="other"), add.si(3), group(add.s(4), add.s(5)), add.s(6, y=1)]

    whole, streamed = group(members()), group(iter(members()))
    first, second = streamed.apply_async(), streamed.apply_async()
    assert (len(first), len(second)) == (6, 6)
    assert not {one.id for one in first} & {one.id for one in second}
    assert streamed == whole
    assert list(streamed.tasks) == list(whole.tasks)
    assert streamed.apply().get() == [1, 2, 3, 4, 5, 7]
    looks: list[Callable[[Any], Any]] = [
        dict, repr, len, json.dumps, pickle.dumps, signature,
        lambda one: one.clone(), lambda one: one.get("kwargs"), lambda one: list(one.items()), lambda one: {**one},
        lambda one: one | add.s(1), lambda one: "kwargs" in one, lambda one: list(one), lambda one: one["options"],
    ]  # fmt: skip
    for look in looks:
        assert look(group(iter(members()))) == look(group(members()))


def test_what_a_generator_raises_is_raised_where_its_group_is_sent(app: Celery, add: Any) -> None:
    def calls() -> Any:
        yield add.s(1)
        raise LookupError("no more")

    streamed = group(calls())
    with pytest.raises(LookupError, match="no more"):
        streamed.apply_async()
    assert [one.args for one in streamed.tasks] == [(1,)]
    assert group(iter(())).apply_async().get() == []


def test_a_group_is_sent_with_its_id_and_places(app: Celery, add: Any) -> None:
    result = group(add.s(n) for n in range(3)).apply_async((5,))
    consumer = app.transport.consumer([app.router.spec("celery")], owner="t", poller=Nobody(), window=9)
    payloads = [app.transport.unpack(delivery.raw) for delivery in consumer.receive(9)]
    assert [payload.headers["group_index"] for payload in payloads] == [0, 1, 2]
    assert {payload.headers["group"] for payload in payloads} == {result.id}
    assert [json.loads(payload.body)[0] for payload in payloads] == [[5, 0], [5, 1], [5, 2]]
    consumer.close()
    with pytest.raises(TypeError, match="link them to its members"):
        group(add.s(1)).apply_async(link=add.s(2))


class Nobody:
    def watch(self, fd: int) -> None: ...

    def unwatch(self, fd: int) -> None: ...


def test_every_shape_comes_back_from_json_and_pickles(app: Celery, add: Any) -> None:
    shapes = [
        add.s(1) | add.s(2),
        group(add.s(1), add.s(2)),
        chord([add.s(1), add.s(2)], add.s(3)),
        add.s(1) | group(add.s(1), add.s(2)) | add.s(3) | add.s(4),
        chord([chain(add.s(1), group(add.s(1), add.s(2)))], group(add.s(1), add.s(2))),
        add.map([1, 2]),
        add.starmap([(1, 2)]),
    ]
    for shape in shapes:
        frozen = shape.clone()
        frozen.freeze()
        for one in (shape, frozen):
            text = json.dumps(one)
            assert json.dumps(celeriac.maybe_signature(json.loads(text), app=app)) == text
            copy = pickle.loads(pickle.dumps(one))
            assert json.dumps(copy) == text
            assert type(copy).__mro__[0] in (type(one), celeriac.Signature)


def test_a_chord_that_is_not_begun_looks_as_celerys(add: Any) -> None:
    steps = add.s(1) | chord([add.s(1), add.s(2)], add.s(3))
    steps.freeze()
    joined = steps.tasks[1]
    header = joined["kwargs"]["header"]
    assert header["subtask_type"] == "group"
    assert header["options"]["task_id"] == joined["options"]["task_id"]
    assert [member["options"]["group_index"] for member in header.tasks] == [0, 1]
    assert not any({"group_id", "chord"} & member["options"].keys() for member in header.tasks)


def test_what_follows_a_group_makes_it_a_chord(add: Any) -> None:
    assert isinstance(group(add.s(1)) | add.s(2), chord)
    assert isinstance(chain(group(add.s(1), add.s(2)), add.s(2)), chord)
    assert isinstance(chord([add.s(1)], add.s(2)) | add.s(3), chord)
    assert isinstance(add.s(0) | group(add.s(1), add.s(2)), chain)
    assert (add.s(0) | group(add.s(1))).tasks == [add.s(0), add.s(1)]
    assert (add.s(0) | group()).tasks == [add.s(0)]


def test_stamps_reach_all_calls_and_callbacks(add: Any) -> None:
    class Visitor(StampingVisitor):
        def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
            return {"name": sig.task}

        def on_group_start(self, sig: Any, **headers: Any) -> dict[str, Any]:
            return {"grouped": True}

        def on_chord_body(self, sig: Any, **headers: Any) -> dict[str, Any]:
            return {"body": 1}

        def on_callback(self, callback: Any, **headers: Any) -> dict[str, Any]:
            return {"called": "back"}

    linked = add.s(1)
    linked.link(add.s(2))
    joined = chord([linked], add.s(3))
    joined.stamp(Visitor())
    part, body = joined.tasks[0]["options"], joined.body["options"]
    assert set(part["stamped_headers"]) == {"name", "grouped"}
    assert set(body["stamped_headers"]) == {"name", "grouped", "body"}
    assert set(part["link"][0]["options"]["stamped_headers"]) == {"name", "grouped", "called"}
    one = add.s(1)
    one.stamp(a=1)
    one.stamp(a=2, b="x")
    assert (one["options"]["a"], one["options"]["b"], set(one["options"]["stamped_headers"])) == (2, "x", {"a", "b"})
    one.stamp(a=3, append_stamps=True)
    assert one["options"]["a"] == [2, 3]


def test_eager_mode_runs_every_shape(app: Celery, add: Any) -> None:
    app.conf.task_always_eager = True

    @app.task(name="total")
    def total(values: list[int]) -> int:
        return sum(values)

    assert chord([add.s(1, 1), add.s(2, 2)], total.s())().get() == 6
    assert (add.s(1, 1) | group(add.s(1), add.s(2)) | total.s() | add.s(10)).apply_async().get() == 17
    assert add.chunks([(1, 2), (3, 4), (5, 6)], 2)().get() == [[3, 7], [11]]
    assert add.starmap([(1, 2)]).apply_async().get() == [3]


def test_whoever_wants_errors_raised_is_told_of_those_of_every_step(app: Celery, add: Any) -> None:
    @app.task(name="boom")
    def boom(*_: Any) -> None:
        raise ValueError("boom")

    for canvas in (add.s(1) | boom.s(), chord([add.s(1)], boom.s()), chord([add.s(1)], add.si(1) | boom.s())):
        assert canvas.apply().failed()
        with pytest.raises(ValueError, match="boom"):
            canvas.apply(throw=True)


def test_a_call_that_is_run_here_sees_its_stamps(app: Celery) -> None:
    @app.task(name="stamps", bind=True)
    def stamps(self: Any, *_: Any) -> Any:
        return [self.request.stamped_headers, self.request.stamps]

    one = stamps.s().stamp(customer="acme")
    assert one.apply().get() == [["customer"], {"customer": "acme"}]
    app.conf.task_always_eager = True
    assert one.apply_async().get() == [["customer"], {"customer": "acme"}]
    assert stamps.s().apply().get() == [None, None]


def test_what_is_kept_of_calls_that_are_run_here_is_what_a_worker_keeps(app: Celery) -> None:
    app.conf.task_store_eager_result = True
    app.task(name="kept")(lambda: 1)
    app.task(name="unkept", ignore_result=True)(lambda: 1)

    @app.task(name="ignored")
    def ignored() -> None:
        raise Ignore

    results = {name: app.tasks[name].apply() for name in ("kept", "unkept", "ignored")}
    assert {name: app.AsyncResult(result.id).state for name, result in results.items()} == {
        "kept": "SUCCESS",
        "unkept": "PENDING",
        "ignored": "PENDING",
    }
    assert app.AsyncResult(app.tasks["unkept"].apply(ignore_result=False).id).get(timeout=30) == 1


def test_links_errbacks_and_immutability_go_where_they_belong(add: Any) -> None:
    steps = add.s(1) | add.s(2)
    steps.link(add.s(3))
    steps.link_error(add.si(0))
    assert "link" not in steps.tasks[0]["options"]
    assert steps.tasks[1]["options"]["link"] == [add.s(3)]
    assert all(step["options"]["link_error"] for step in steps.tasks)
    several = group(add.s(1), add.s(2))
    several.set_immutable(True)
    several.link_error(add.si(0))
    assert all(member.immutable and member["options"]["link_error"] for member in several.tasks)
    assert [member["options"]["countdown"] for member in several.skew(1, 3).tasks] == [1, 2]
    joined = chord([add.s(1)], add.s(2))
    joined.link(add.s(3))
    assert joined.body["options"]["link"] == [add.s(3)]
    copy = steps.clone()
    copy.link(add.s(9))
    assert len(steps.tasks[1]["options"]["link"]) == 1, "a copy's callbacks are its own"


def test_what_is_done_to_a_copy_or_to_a_longer_chain_is_not_done_to_what_it_was_made_of(add: Any) -> None:
    one = add.s(1)
    one.link(add.s(2))
    one.clone().stamp(customer="a")
    assert one["options"]["link"][0]["options"] == {}
    begun = one | add.s(3)
    left, right = begun | add.s(4), begun | add.s(5)
    left.stamp(customer="left")
    right.stamp(customer="right")
    left.link_error(add.si(0))
    left.freeze()
    right.freeze()
    assert [step["options"]["customer"] for step in left.tasks] == ["left"] * 3
    assert left.tasks[0]["options"]["link"][0]["options"]["customer"] == "left"
    assert "link_error" not in right.tasks[0]["options"]
    assert left.tasks[0].id != right.tasks[0].id
    assert [step["options"] for step in begun.tasks] == [one["options"], {}]
    without_body = chord([add.s(1)])
    without_body.clone().link(add.s(2))
    assert "link" not in without_body["options"]
    without_body.link(add.s(2))
    without_body.clone().link(add.s(3))
    assert without_body["options"]["link"] == [add.s(2)]


def test_nobody_waits_for_calls_of_a_canvas_whose_results_are_ignored(app: Celery, add: Any) -> None:
    app.task(name="quiet", ignore_result=True)(lambda *_: None)
    quiet = app.tasks["quiet"]
    assert group(quiet.s(), add.s(1).set(ignore_result=True)).apply_async().get(timeout=30) == [None, None]
    assert (add.s(1) | quiet.s()).apply_async().get(timeout=30) is None
    (result,) = app.publish_many([quiet.s()])
    assert result.get(timeout=30) is None
    assert not group(quiet.s().set(ignore_result=False), add.s(1)).apply_async().ready()


def test_a_chord_needs_a_store_that_can_join(add: Any) -> None:
    for backend, error in ((None, NoResultBackend), ("rpc://", ChordsUnsupported)):
        app = Celery("other", broker=f"memory://join-{backend}", backend=backend, set_as_current=False)
        call = app.signature("x")
        with pytest.raises(error, match="chord"):
            chord([call], call, app=app).apply_async()


def test_a_chord_is_as_patient_as_its_parts_are_late(app: Celery, add: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chord whose parts are due in two hours has not failed after one."""
    found: list[float] = []
    monkeypatch.setattr(
        app.backend.plugin, "open_chords", lambda chords: found.extend(one.patience_s for one in chords)
    )

    def patience_s(*parts: Any, **options: Any) -> float:
        chord(parts, add.s(), app=app).apply_async(**options)
        longest = max(found) - 3600
        found.clear()
        return longest

    part, two_hours = add.s(1), timedelta(hours=2)
    assert patience_s(part, part) == 0
    assert patience_s(part, countdown=7200) == 7200
    assert patience_s(part, countdown=7200, time_limit=60) == 7260
    assert patience_s(part, eta=datetime.now(timezone.utc) + two_hours) > 3600
    assert patience_s(part, part.clone().set(countdown=two_hours)) == 7200
    assert patience_s(part, part.clone().set(eta=(datetime.now(timezone.utc) + two_hours).isoformat())) > 3600
    slow = chain(part.clone().set(time_limit=100), part.clone().set(countdown=50, time_limit=10))
    assert patience_s(part, slow) == 160
    assert patience_s(part, chord([slow, part], slow)) == 320
    app.task(name="again", autoretry_for=(OSError,), max_retries=2, default_retry_delay=7200, time_limit=60)(print)
    assert patience_s(part, app.signature("again")) == 60 + 2 * 7260
    app.task(name="ever", autoretry_for=(OSError,), max_retries=None)(print)
    assert patience_s(part, app.signature("ever")) == 0
    app.task(name="back", autoretry_for=(OSError,), retry_kwargs={"max_retries": 5}, retry_backoff=True)(print)
    assert patience_s(part, app.signature("back")) == 5 * 600
    app.conf.task_time_limit = 30
    assert patience_s(part, slow | group(part, part)) == 190


def test_publish_many_sends_signatures_of_every_kind_and_returns_their_results(app: Celery, add: Any) -> None:
    results = app.publish_many(
        add.s(n, n) if n % 2 else add.si(n).set(task_id=f"own {n}") | add.s(1) for n in range(1201)
    )
    assert len(results) == 1201
    assert app.transport.depth("celery") == 1201
    assert results[2].parent.id == "own 2"
    assert results[3].parent is None
    assert app.publish_many([]) == []


def test_publish_many_under_task_always_eager_runs_them_here(app: Celery, add: Any) -> None:
    app.conf.task_always_eager = True
    assert [result.get() for result in app.publish_many(add.s(n, 1) for n in range(3))] == [1, 2, 3]


def test_publish_many_checks_arguments_as_apply_async_does(app: Celery, add: Any) -> None:
    with pytest.raises(TypeError, match="argument"):
        app.publish_many([add.s(1, 2, 3)])


def test_long_canvases_are_made_and_run_here_in_a_time_that_grows_with_them(
    app: Celery, add: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = {"clones": 0, "looks": 0}
    clone, look = celeriac.Signature.clone, EagerResult._outcome

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        work["clones"] += 1
        return clone(self, *args, **kwargs)

    def seen(self: Any, *args: Any) -> Any:
        work["looks"] += 1
        return look(self, *args)

    monkeypatch.setattr(celeriac.Signature, "clone", counted)
    monkeypatch.setattr(EagerResult, "_outcome", seen)
    parts = [group(add.si(step, 0), add.si(step, 1)) for step in range(40)]
    whole = chain(*parts)
    assert work["clones"] < 10_000, "each step was once cloned again for every two others"
    for step, part in enumerate(parts):
        assert [member.args for member in part.tasks] == [(step, 0), (step, 1)]
    steps = [whole]
    while isinstance(steps[-1], chord):
        steps.append(steps[-1].body)
    assert [step.tasks[1].args for step in steps] == [(step, 1) for step in range(40)]
    assert whole.apply().get() == [39, 40]
    work["looks"] = 0
    assert chain(add.s(1) for _ in range(100)).apply((1,)).get() == 101
    assert work["looks"] < 500
