"""The slot's pipeline: one report for every job, whatever is in it and whatever the task does."""

from __future__ import annotations

import json
import threading
from typing import Any

import msgspec
import pytest

from celeriac import Celery, Task, chain, group, signals
from celeriac.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celeriac.execution.execute import TaskProgram
from celeriac.messaging.failures import rebuild
from celeriac.result import result_from_tuple
from celeriac.resultstore import result_of
from celeriac.spec import JobReport, envelope
from celeriac.spec.data import PUBLISH_TRY_HEADER, Job


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Celery:
    place = f"memory://{request.node.name}"
    return Celery("slot", broker=place, backend=place)


def run(app: Celery, name: str, *args: Any, early: list[JobReport] | None = None, **options: Any) -> JobReport:
    app.finalize()
    forged = options.pop("forged", {})
    payload = app.make_payload(name, args, {}, "id-1", {"reply_to": "client", **options})
    payload.headers.update(forged)
    program = TaskProgram(app, envelope.unpack, "w@h", detail=True)
    seen: list[JobReport] = [] if early is None else early
    return program.run(Job(7, envelope.pack(payload, "tag"), "celery"), seen.append)


def result_in(report: JobReport) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(report.stored[-1].data)
    return document


def test_a_value_is_stored_in_celerys_form(app: Celery) -> None:
    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    report = run(app, "add", 2, 3)
    assert (report.token, report.outcome, report.detail) == (7, "succeeded", "5")
    document = result_in(report)
    assert list(document) == ["status", "result", "traceback", "children", "date_done", "task_id"]
    assert (document["status"], document["result"], document["task_id"]) == ("SUCCESS", 5, "id-1")
    assert report.stored[0].reply_to == "client"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        b"[]",
        b'{"headers": {}, "properties": {}, "body": "!!"}',
        b'{"headers": {"task": "t", "id": "i"}, "properties": {"body_encoding": "rot13"}, "body": ""}',
        b'{"headers": {"task": "t", "id": "i"}, "properties": {"body_encoding": "base64"}, "body": "e30="}',
    ],
)
def test_bytes_that_are_no_call_are_set_aside(app: Celery, raw: bytes) -> None:
    report = TaskProgram(app, envelope.unpack, "w@h", detail=False).run(Job(1, raw), lambda report: None)
    assert report.outcome == "rejected"
    assert report.dead.startswith(("malformed", "unknown task"))


def test_a_content_type_that_is_not_accepted_is_set_aside(app: Celery) -> None:
    app.task(name="t")(lambda: None)
    report = run(app, "t", serializer="pickle")
    assert report.outcome == "rejected"
    assert "accept_content" in report.dead


def test_a_chord_part_goes_with_the_report(app: Celery) -> None:
    app.task(name="t")(lambda: 5)
    body = {"task": "body", "args": [], "kwargs": {}, "options": {"task_id": "b"}}
    report = run(app, "t", chord=body, group_id="g", group_index=3)
    assert report.outcome == "succeeded"
    (part,) = report.chords.parts  # type: ignore[union-attr]
    assert (part.group, part.task_id, part.index) == ("g", "id-1", 3)
    assert json.loads(part.data) == [1, "id-1", "SUCCESS", 5]


def test_results_that_cannot_be_stored_are_failures_that_say_why(app: Celery) -> None:
    app.task(name="odd")(lambda: object())
    report = run(app, "odd")
    assert report.outcome == "failed"
    assert "odd returned a object that cannot be stored" in result_in(report)["result"]["exc_message"][0]
    app.conf.result_max_bytes = 1000
    app.task(name="big")(lambda: "x" * 2000)
    why = result_in(run(app, "big"))["result"]["exc_message"][0]
    assert "a str that cannot be stored or sent on: it has 2" in why
    assert "of 1000 allowed (result_max_bytes)" in why


def test_an_error_too_large_to_be_stored_is_stored_as_text(app: Celery) -> None:
    app.conf.result_max_bytes = 20_000

    @app.task(name="loud")
    def loud() -> None:
        raise ValueError("x" * 100_000)

    stored = result_in(run(app, "loud"))
    assert stored["status"] == "FAILURE"
    assert "ValueError" in stored["result"]["exc_message"][0]
    assert "of 20000 allowed" in stored["result"]["exc_message"][0]
    assert len(stored["traceback"]) <= 8192


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml"])
def test_an_error_that_names_a_file_with_odd_bytes_is_stored_as_what_it_is(app: Celery, serializer: str) -> None:
    app.conf.update(result_serializer=serializer, result_accept_content=[serializer], allow_unsafe_serializers=True)

    odd_text = "nothing in r\udce9sum\udce9 \N{SNOWMAN}"

    @app.task(name="odd")
    def odd() -> None:
        raise LookupError(odd_text)

    report = run(app, "odd")
    assert report.outcome == "failed"
    (stored,) = report.stored
    document = app.backend.serializer.loads(stored.data)
    assert document["result"]["exc_type"] == "LookupError"
    assert "raise LookupError" in document["traceback"]
    assert "nothing in r\\udce9sum\\udce9 \N{SNOWMAN}" in document["traceback"]
    (said,) = document["result"]["exc_message"]
    assert said == ("nothing in r\\udce9sum\\udce9 \N{SNOWMAN}" if serializer == "msgpack" else odd_text)


def test_a_traceback_is_bounded_whatever_its_error_has_to_say(app: Celery) -> None:
    @app.task(name="endless")
    def endless() -> None:
        raise ValueError("x" * 10_000_000)

    report = run(app, "endless")
    traceback = report.traceback or ""
    assert traceback.startswith("Traceback (most recent call last)")
    assert " characters of this traceback are left out here]" in traceback
    assert traceback.endswith("xxx\n")
    assert len(traceback) < 300_000
    assert result_in(report)["traceback"] == traceback


def test_what_a_retry_says_is_bounded_like_a_result(app: Celery) -> None:
    app.conf.result_max_bytes = 20_000

    @app.task(name="loud_retry", bind=True)
    def loud_retry(self: Any) -> None:
        raise self.retry(exc=ValueError("x" * 100_000), countdown=0)

    report = run(app, "loud_retry")
    assert report.outcome == "retried"
    stored = result_in(report)
    assert stored["status"] == "RETRY"
    assert "of 20000 allowed" in stored["result"]["exc_message"][0]
    assert len(stored["traceback"]) <= 8192


def test_a_state_too_large_to_be_stored_is_refused_where_it_is_said(app: Celery) -> None:
    app.conf.result_max_bytes = 20_000

    @app.task(name="chatty", bind=True)
    def chatty(self: Any) -> str:
        self.update_state(state="PROGRESS", meta="x" * 10_000)
        with pytest.raises(ValueError, match=r"chatty.*'PROGRESS'.*of 20000 allowed \(result_max_bytes\)"):
            self.update_state(state="PROGRESS", meta="x" * 30_000)
        return "done"

    assert run(app, "chatty").outcome == "succeeded"
    with pytest.raises(ValueError, match="of 20000 allowed"):
        chatty.update_state("some-id", "PROGRESS", "x" * 30_000)


class Nasty(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text either")

    __repr__ = __str__


@pytest.mark.parametrize("error", [Nasty("x"), SystemExit(3), KeyboardInterrupt(), MemoryError(), GeneratorExit()])
def test_whatever_a_task_raises_is_a_failure(app: Celery, error: BaseException) -> None:
    @app.task(name="t")
    def t() -> None:
        raise error

    report = run(app, "t")
    assert report.outcome == "failed"
    assert result_in(report)["result"]["exc_type"] == type(error).__name__


def test_a_limit_that_strikes_after_the_task_is_a_failure_too(app: Celery) -> None:
    class Late(Task[..., Any]):
        def on_success(self, *args: Any) -> None:
            raise SystemExit("in a hook")

        def after_return(self, *args: Any) -> None:
            raise AssertionError("not reached")

    app.task(name="t", base=Late)(lambda: 1)
    report = run(app, "t")
    assert report.outcome == "failed"
    assert result_in(report)["status"] == "FAILURE"


def test_a_soft_limit_is_marked(app: Celery) -> None:
    @app.task(name="t")
    def t() -> None:
        raise SoftTimeLimitExceeded

    assert run(app, "t").timed_out


@pytest.mark.parametrize(
    ("error", "told"),
    [(None, ["SUCCESS"]), (KeyError(), ["FAILURE"]), (Retry("later"), []), (Ignore(), []), (Reject("no"), [])],
    ids=lambda value: type(value).__name__,
)
def test_after_return_is_told_how_a_call_ended_and_of_nothing_else(
    app: Celery, error: Exception | None, told: list[str]
) -> None:
    seen: list[str] = []

    class Told(Task[..., Any]):
        def after_return(self, status: str, *ending: Any) -> None:
            seen.append(status)

    @app.task(name="t", base=Told)
    def t() -> None:
        if error is not None:
            raise error

    run(app, "t")
    assert seen == told


def test_hooks_that_raise_do_not_change_the_outcome(app: Celery) -> None:
    class Clumsy(Task[..., Any]):
        def on_success(self, *args: Any) -> None:
            raise ValueError("hook")

    app.task(name="t", base=Clumsy)(lambda: 1)
    assert run(app, "t").outcome == "succeeded"


def test_ignored_results_are_not_stored_but_errors_may_be(app: Celery) -> None:
    @app.task(name="t", ignore_result=True, store_errors_even_if_ignored=True)
    def t(fail: bool) -> int:
        if fail:
            raise ValueError
        return 1

    assert run(app, "t", False).stored == []
    assert result_in(run(app, "t", True))["status"] == "FAILURE"
    app.task(name="u")(lambda: 1)
    assert run(app, "u", ignore_result=True).stored == []


def test_a_retry_is_a_message_to_be_sent_and_a_state(app: Celery) -> None:
    @app.task(name="t", bind=True)
    def t(self: Any, n: int) -> None:
        self.retry(countdown=30, exc=ValueError("later"))

    report = run(app, "t", 5)
    assert report.outcome == "retried"
    (again,) = report.publish
    assert (again.headers["id"], again.headers["retries"], again.headers["task"]) == ("id-1", 1, "t")
    assert (again.headers["root_id"], again.headers["parent_id"]) == ("id-1", None), "no call is its own parent"
    assert again.due is not None
    assert again.route.queue == "celery"
    assert json.loads(again.body)[0] == [5]
    assert result_in(report)["status"] == "RETRY"


def test_predicates(app: Celery) -> None:
    @app.task(name="ignore")
    def ignore() -> None:
        raise Ignore

    @app.task(name="reject")
    def reject(again: bool) -> None:
        raise Reject("no", requeue=again)

    assert (run(app, "ignore").outcome, run(app, "ignore").stored) == ("ignored", [])
    report = run(app, "reject", True)
    assert (report.outcome, report.requeue, report.stored) == ("rejected", True, [])
    report = run(app, "reject", False)
    assert (report.requeue, result_in(report)["status"]) == (False, "FAILURE")


def test_states_on_the_way_go_ahead_of_the_report(app: Celery) -> None:
    @app.task(name="t", bind=True, track_started=True)
    def t(self: Any) -> str:
        self.update_state(state="HALFWAY", meta={"done": 0.5})
        return "x"

    early: list[JobReport] = []
    assert run(app, "t", early=early).outcome == "succeeded"
    assert [json.loads(report.stored[0].data)["status"] for report in early] == ["STARTED", "HALFWAY"]
    assert {report.outcome for report in early} == {"progress"}


def test_what_follows_a_value(app: Celery) -> None:
    app.task(name="t")(lambda: 4)
    callback = {"task": "cb", "args": [1], "kwargs": {}, "options": {"task_id": "cb-id", "queue": "other"}}
    step = {"task": "next", "args": [], "kwargs": {}, "options": {"task_id": "step-id"}}
    last = {"task": "last", "args": [9], "kwargs": {}, "options": {"task_id": "last-id"}, "immutable": True}
    report = run(app, "t", link=[callback], chain=[last, step])
    first, second = report.publish
    assert (first.headers["id"], first.route.queue, json.loads(first.body)[0]) == ("cb-id", "other", [4, 1])
    assert (second.headers["id"], json.loads(second.body)[0]) == ("step-id", [4])
    assert json.loads(second.body)[2]["chain"] == [last]
    assert {payload.headers["parent_id"] for payload in report.publish} == {"id-1"}


def test_what_follows_a_second_run_says_that_it_may_come_twice(app: Celery) -> None:
    flags: list[bool] = []

    @app.task(name="t", bind=True)
    def t(self: Any) -> None:
        flags.append(self.request.delivery_info["redelivered"])

    program = TaskProgram(app, envelope.unpack, "w@h", detail=False)
    link = {"task": "t", "args": [], "kwargs": {}, "options": {"task_id": "next"}, "immutable": True}
    raw = envelope.pack(app.make_payload("t", (), {}, "id-1", {"link": [link]}), "tag")
    for attempt in (1, 2):
        (follower,) = program.run(Job(7, raw, "celery", attempt, attempt > 1), lambda report: None).publish
        program.run(Job(8, envelope.pack(follower, "tag"), "celery"), lambda report: None)
    assert flags == [False, False, True, True]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("attempt", [1, 3])
@pytest.mark.parametrize("forged", [{}, {PUBLISH_TRY_HEADER: 2}])
def test_all_that_follows_from_what_may_have_run_before_says_that_it_may_come_twice(
    app: Celery, fails: bool, attempt: int, forged: dict[str, Any]
) -> None:
    """Callbacks, errbacks, the next step and another try: also where no worker was lost, but the message may have been
    sent twice."""

    @app.task(name="t", bind=True)
    def t(self: Any, kind: str) -> None:
        if kind == "retry":
            self.retry(countdown=0)
        if fails:
            raise ValueError("broken")

    link = [{"task": "t", "args": ["x"], "kwargs": {}, "options": {"task_id": "next"}, "immutable": True}]
    program = TaskProgram(app, envelope.unpack, "w@h", detail=False)
    for kind in ("retry", "end"):
        payload = app.make_payload("t", (kind,), {}, "id-1", {"link": link, "link_error": link})
        payload.headers.update(forged)
        job = Job(7, envelope.pack(payload, "tag"), "celery", attempt, attempt > 1)
        (follower,) = program.run(job, lambda report: None).publish
        assert follower.headers["id"] == ("id-1" if kind == "retry" else "next")
        assert (PUBLISH_TRY_HEADER in follower.headers) == (attempt > 1 or bool(forged))


def test_a_failed_step_fails_the_rest_of_its_chain_and_calls_errbacks(app: Celery) -> None:
    seen: list[Any] = []

    @app.task(name="t")
    def t() -> None:
        raise ValueError("broken")

    @app.task(name="errback")
    def errback(request: Any, exc: BaseException, traceback: str) -> None:
        seen.append((request.id, str(exc)))

    sigs = [
        {"task": "errback", "args": [], "kwargs": {}, "options": {}},
        {"task": "elsewhere", "args": [], "kwargs": {}, "options": {"task_id": "eb"}},
    ]
    rest = [{"task": "next", "args": [], "kwargs": {}, "options": {"task_id": "step-id"}}]
    report = run(app, "t", link_error=sigs, chain=rest)
    assert [stored.task_id for stored in report.stored] == ["id-1", "step-id"]
    assert seen == [("id-1", "broken")]
    assert json.loads(report.publish[0].body)[0] == ["id-1"]


class TwoWords(Exception):
    """Can be pickled, and not read again."""

    def __init__(self, first: str, second: str) -> None:
        self.first = first
        super().__init__(f"{first} {second}")

    def __str__(self) -> str:
        return f"first is {self.first}"


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("serializer", "error", "shown"),
    [
        ("json", TwoWords("a", "b"), "TwoWords('a b')"),
        ("pickle", TwoWords("a", "b"), "TwoWords('a b')"),
        ("json", KeyError(threading.Lock()), "KeyError('<unlocked"),
        ("pickle", KeyError(threading.Lock()), "KeyError('<unlocked"),
        ("json", ValueError(Unspeakable()), "ValueError('<Unspeakable: repr raised RuntimeError>"),
    ],
)
def test_an_error_that_cannot_travel_as_it_is_is_told_all_the_same(
    app: Celery, serializer: str, error: Exception, shown: str
) -> None:
    """By its own result, the steps that fail with it, and the chord that it is a part of."""
    app.conf.update(result_serializer=serializer, accept_content=["json", "pickle"], allow_unsafe_serializers=True)

    @app.task(name="t")
    def t() -> None:
        raise error

    body = {"task": "body", "args": [], "kwargs": {}, "options": {"task_id": "b"}}
    rest = [{"task": "next", "args": [], "kwargs": {}, "options": {"task_id": "step-id"}}]
    report = run(app, "t", chord=body, group_id="g", group_index=0, chain=rest)
    assert [stored.task_id for stored in report.stored] == ["id-1", "step-id"]
    (part,) = report.chords.parts  # type: ignore[union-attr]
    store = app.backend
    found = [result_of(store.decode(stored.task_id, stored.data)) for stored in report.stored]
    for exc in (*found, rebuild(store.serializer.loads(part.data)[3])):
        assert isinstance(exc, type(error))
        assert repr(exc).startswith(shown)
        assert str(exc) in repr(exc)


def test_a_call_may_begin_a_very_long_chain(app: Celery) -> None:
    """What is kept of it says the results before its last, each within the next, as far as serializers go."""

    @app.task(name="step")
    def step(*_: Any) -> None: ...

    @app.task(name="begins")
    def begins() -> str:
        result = chain(step.s() for _ in range(1500)).apply_async()
        assert len(result.as_list()) == 1500
        return str(result.id)

    report = run(app, "begins")
    assert report.outcome == "succeeded"
    (child,) = result_in(report)["children"]
    last = result_from_tuple(child, app)
    assert last.id == result_in(report)["result"]
    assert len(last.as_list()) == 101


def test_an_errback_that_raises_costs_no_other_one(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    @app.task(name="t")
    def t() -> None:
        raise ValueError("broken")

    @app.task(name="bad")
    def bad(request: Any, exc: BaseException, traceback: str) -> None:
        raise KeyError("errback's own")

    @app.task(name="good")
    def good(request: Any, exc: BaseException, traceback: str) -> None:
        seen.append(request.id)

    unsent = app.signature("elsewhere", options={"countdown": "never"})
    errbacks = [app.signature("elsewhere"), bad.s(), unsent, good.s(), app.signature("elsewhere")]
    report = run(app, "t", link_error=errbacks)
    assert seen == ["id-1"]
    assert [payload.headers["task"] for payload in report.publish] == ["elsewhere"] * 2
    assert "errback's own" in caplog.text
    assert "countdown must be" in caplog.text


def test_errbacks_are_sent_if_they_are_several_calls_or_can_be_retried(app: Celery) -> None:
    """With the id of what has failed, and nothing else: they may take more for other reasons."""

    @app.task(name="t")
    def t() -> None:
        raise ValueError("broken")

    @app.task(name="retrying", autoretry_for=(OSError,))
    def retrying(task_id: str) -> None:
        raise AssertionError

    @app.task(name="bound", bind=True)
    def bound(self: Any, task_id: str, more: str) -> None:
        raise AssertionError

    class OfAClass(Task[Any, Any]):
        name = "of_a_class"

        def run(self, task_id: str, more: str) -> None:
            raise AssertionError

    of_a_class = app.register_task(OfAClass())
    several = retrying.s() | group(retrying.si("x"), retrying.si("y"))
    errbacks = [retrying.s(), bound.s("more"), of_a_class.s("more"), several, group(retrying.s(), bound.s("more"))]
    report = run(app, "t", link_error=errbacks)
    sent = [(payload.headers["task"], json.loads(payload.body)[0]) for payload in report.publish]
    assert sent == [
        ("retrying", ["id-1"]),
        ("bound", ["id-1", "more"]),
        ("of_a_class", ["id-1", "more"]),
        ("retrying", ["id-1"]),
        ("retrying", ["id-1"]),
        ("bound", ["id-1", "more"]),
    ]


def test_what_follows_goes_through_its_tasks_own_apply_async(app: Celery) -> None:
    class OfATenant(Task[Any, Any]):
        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            options["headers"] = {**(options.get("headers") or {}), "tenant": "acme"}
            return super().apply_async(args, kwargs, **options)

    app.task(name="plain")(lambda *_: None)
    app.task(name="of_tenant", base=OfATenant)(lambda *_: None)
    app.task(name="told", base=OfATenant)(lambda task_id: None)
    app.task(name="t")(lambda: 1)
    app.task(name="fails")(lambda: 1 / 0)

    @app.task(name="again", base=OfATenant, bind=True)
    def again(self: Any) -> None:
        self.retry(countdown=0)

    plain, of_tenant = app.tasks["plain"], app.tasks["of_tenant"]

    def sent(name: str, **options: Any) -> list[tuple[str, Any]]:
        publish = run(app, name, **options).publish
        return [(payload.headers["id"], payload.headers.get("tenant")) for payload in publish]

    def following(task: Any) -> Any:
        return {"link": [task.s(), task.s() | task.s()], "chain": [group(task.s(), task.s())]}

    own = sent("t", **following(of_tenant))
    assert [tenant for _, tenant in own] == ["acme"] * 4
    assert [task_id for task_id, _ in own] == [task_id for task_id, _ in sent("t", **following(plain))]
    assert [tenant for _, tenant in sent("fails", link_error=[app.tasks["told"].s()])] == ["acme"]
    assert sent("again") == [("id-1", "acme")]
    assert app.transport.depth("celery") == 0


def test_a_client_that_looks_elsewhere_for_results_is_told(app: Celery) -> None:
    app.task(name="t")(lambda: 1)
    report = run(app, "t", forged={"x-celeriac-results": "redis://elsewhere"})
    (notice,) = report.publish
    assert notice.route.routing_key == "client"
    assert "redis://elsewhere" in json.loads(notice.body)[0][0]["result"]["exc_message"][0]
    assert run(app, "t").publish == []


def test_what_follows_has_the_same_ids_after_every_attempt(app: Celery) -> None:
    """A link without an id gets one from the call that it follows, not one for each run."""

    @app.task(name="two")
    def two() -> int:
        return 2

    links = [{"task": "next", "args": [], "kwargs": {}, "options": {}} for _ in range(2)]
    ids = [[payload.headers["id"] for payload in run(app, "two", link=links).publish] for _ in range(3)]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) == 2


def test_what_follows_from_a_run_is_announced_like_what_a_program_sends(app: Celery) -> None:
    @app.task(name="again", bind=True)
    def again(self: Any) -> None:
        self.retry(countdown=0)

    @app.task(name="first")
    def first() -> int:
        return 1

    seen: list[tuple[str, str]] = []

    def before(sender: str, headers: dict[str, Any], properties: dict[str, Any], **_: Any) -> None:
        headers["trace"] = properties["correlation_id"]
        seen.append(("before", sender))

    def after(sender: str, headers: dict[str, Any], routing_key: str, **_: Any) -> None:
        seen.append(("after", sender))

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        retried = run(app, "again")
        called = run(app, "first", link={"task": "back", "args": [], "kwargs": {}, "options": {"task_id": "id-2"}})
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)
    assert seen == [("before", "again"), ("after", "again"), ("before", "back"), ("after", "back")]
    assert [payload.headers["trace"] for payload in (*retried.publish, *called.publish)] == ["id-1", "id-2"]


def run_body(app: Celery, body: Any, headers: dict[str, Any] | None = None) -> JobReport:
    """A call of the task `t` with this body, whoever may have written it."""
    app.finalize()
    payload = app.make_payload("t", (), {}, "id-1", {"reply_to": "client"})
    payload.body = json.dumps(body).encode()
    payload.headers.update(headers or {})
    program = TaskProgram(app, envelope.unpack, "w@h", detail=True)
    return program.run(Job(7, envelope.pack(payload, "tag"), "celery"), lambda report: None)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "embed",
    [{"chain": 5}, {"chain": [5]}, {"callbacks": 5}, {"errbacks": [5]}, {"chord": 5}, {"chord": {"options": 5}}],
)
def test_B26_what_is_no_chain_and_no_chord_is_a_failure_of_its_call_and_not_of_its_slot(
    app: Celery, embed: dict[str, Any], fails: bool
) -> None:
    @app.task(name="t")
    def t(fails: bool) -> None:
        if fails:
            raise KeyError("its own")

    report = run_body(app, [[fails], {}, embed], {"group": "g"})
    assert report.outcome == ("succeeded" if not fails and "errbacks" in embed else "failed")
    assert result_in(report)["status"] == ("SUCCESS" if report.outcome == "succeeded" else "FAILURE")


def test_B26_numbers_where_texts_should_be_reach_the_worker_as_texts(app: Celery) -> None:
    """Celery's clients send a `group_id` as it is given to them."""
    app.task(name="t")(lambda: 5)
    body = {"task": "body", "args": [], "kwargs": {}, "options": {"task_id": "b"}}
    report = run_body(app, [[], {}, {"chord": body}], {"group": 5, "group_index": "x"})
    assert (report.outcome, report.stored[0].group) == ("succeeded", "5")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=JobReport) == report
    chained = {"task": "t", "args": [], "kwargs": {}, "options": {"task_id": 6, "routing_key": 7}}
    report = run_body(app, [[], {}, {"chain": [chained]}])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=JobReport) == report


def test_B26_a_call_without_an_id_is_set_aside(app: Celery) -> None:
    app.task(name="t")(lambda: 5)
    report = run_body(app, [[], {}, {}], {"id": ""})
    assert (report.outcome, report.dead) == (
        "rejected",
        "malformed: it has no id, under which its result could be kept",
    )


def test_one_class_will_do_as_what_a_task_throws_as_in_celery(app: Celery) -> None:
    @app.task(name="t", throws=KeyError)
    def t() -> None:
        raise KeyError("as said")

    report = run(app, "t")
    assert (report.outcome, report.traceback) == ("failed", None)


def test_a_failure_that_no_store_takes_is_set_aside_and_costs_no_slot(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> bytes:
        raise LookupError("a fault of the plugin's")

    app.task(name="t")(lambda: 5)
    monkeypatch.setattr(type(app.backend.plugin), "encode", refuse)
    report = run(app, "t")
    assert report.outcome == "rejected"
    assert "a fault of the plugin's" in report.dead


def test_a_message_whose_reader_is_ended_by_it_is_set_aside(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a pickle that raises SystemExit, or a body for which there is no memory: nothing has run."""

    def end(data: bytes) -> Any:
        raise MemoryError

    app.task(name="t")(lambda: 5)
    monkeypatch.setitem(app.codec._loaders, "application/json", end)
    report = run(app, "t")
    assert (report.outcome, report.dead) == ("rejected", "malformed: it cannot be read: MemoryError()")


@pytest.mark.parametrize("priority", [0, 7])
def test_a_retry_has_the_priority_of_its_call_and_not_of_its_task(app: Celery, priority: int) -> None:
    @app.task(name="again", bind=True, priority=3)
    def again(self: Any) -> None:
        self.retry(countdown=0)

    (payload,) = run(app, "again", priority=priority).publish
    assert payload.properties["priority"] == priority
