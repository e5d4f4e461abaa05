"""What the worker decides by itself: the window, costs, admission, rates."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from celeriac import Celery
from celeriac.app.revocations import Revocation, id_key
from celeriac.spec import envelope
from celeriac.spec.data import UNKNOWN_COST_S, Delivery, Head
from celeriac.testing.broker_suite import make_payload
from celeriac.testing.kit import make_transport
from celeriac.worker.admission import RUN, Admission, Bucket, Courtesy, Waiting, parse_rate
from celeriac.worker.clock import SYSTEM
from celeriac.worker.marks import is_same_call
from celeriac.worker.plans import TaskPlan
from celeriac.worker.window import BRIEF_S, CAP, Window


def plan(**options: Any) -> TaskPlan:
    app = Celery("w", broker="memory://", set_as_current=False)
    task = app.task(name="t", **options)(lambda: None)
    app.finalize()
    return TaskPlan(task, None, None, announce=False)


def test_the_window_starts_at_one_a_slot_grows_for_brief_tasks_and_shrinks_at_once() -> None:
    window = Window(2, None)
    assert window.size == 2
    window.learn(0.0002, 10)
    assert window.size == 200
    window.learn(0.00001, 1000)
    assert window.size == CAP
    window.learn(0.01, 1)
    assert window.size > 10, "an interruption is no long task"
    window.learn(1.0, 1)
    assert window.size == 2


def test_a_multiplier_is_obeyed() -> None:
    window = Window(3, 4)
    assert window.size == 12
    window.learn(0.00001, 1000)
    window.shrink()
    assert window.size == 12
    assert Window(3, 0).size == 65535


def test_a_cost_is_unknown_until_a_few_runs_were_seen_and_an_interruption_does_not_make_it_long() -> None:
    one = plan()
    assert one.cost_s == UNKNOWN_COST_S
    for _ in range(3):
        one.learn(0.0001)
    assert one.cost_s == pytest.approx(0.00013)
    one.learn(0.01)
    assert one.cost_s < BRIEF_S
    one.learn(2.0)
    assert one.cost_s > BRIEF_S
    for _ in range(400):
        one.learn(0.0001)
    assert one.cost_s < 0.001


def test_acknowledging_early_or_late_is_the_tasks_own() -> None:
    assert not plan().early
    early = plan(acks_late=False)
    assert early.early
    assert early.announce
    assert not early.requeue_lost
    assert not plan(acks_on_failure=False).ack_on_failure
    assert not plan(acks_on_failure_or_timeout=False).ack_on_timeout


#: The time of every admission here: it stands still.
NOW = 1_790_000_000.0


def admit(*, can_delay: bool = True, patience_s: float = 10, rates: bool = True, **options: Any) -> Admission:
    clock = SYSTEM._replace(unix=lambda: NOW)
    return Admission(can_delay=can_delay, patience_s=patience_s, rates=rates, clock=clock, **options)


def at(seconds: float) -> str:
    """The moment so long after now, as messages have it."""
    return datetime.fromtimestamp(NOW + seconds, timezone.utc).isoformat()


def head(**fields: Any) -> Head:
    return Head("id", "t", **fields)


@pytest.fixture
def admission() -> Admission:
    return admit()


def test_most_messages_run(admission: Admission) -> None:
    assert admission.judge(head(), plan(), 0) is RUN


def test_revoked_and_expired_ones_do_not(admission: Admission) -> None:
    assert admission.judge(head(), plan(), 0) is RUN
    other = admit()
    other.revoked.hear({id_key("id"): Revocation()})
    assert other.judge(head(), plan(), 0).what == "revoked"
    assert admission.judge(head(expires=at(-1)), plan(), 0).what == "expired"
    assert admission.judge(head(expires=at(5)), plan(), 0) is RUN


def test_a_far_eta_goes_back_to_a_broker_that_can_hold_it() -> None:
    far, near = head(eta=at(60)), head(eta=at(1))
    can = admit()
    assert can.judge(far, plan(), 0).what == "defer"
    assert can.judge(near, plan(), 0).what == "wait"
    assert can.judge(head(eta=at(-1)), plan(), 0) is RUN
    cannot = admit(can_delay=False)
    assert cannot.judge(far, plan(), 0).what == "wait"
    assert cannot.judge(far, plan(), 1000).what == "defer"


def test_the_app_says_how_many_may_wait_in_the_worker() -> None:
    near = head(eta=at(1))
    for can_delay in (True, False):
        one = admit(can_delay=can_delay, eta_limit=1)
        assert one.judge(near, plan(), 0).what == "wait"
        assert one.judge(near, plan(), 1).what == "defer"


@pytest.mark.parametrize("fields", [{"eta": "yesterday"}, {"expires": "2026-99-99"}, {"eta": "1e999"}])
def test_a_time_that_is_none_sets_the_message_aside(admission: Admission, fields: Any) -> None:
    verdict = admission.judge(head(**fields), plan(), 0)
    assert verdict.what == "dead"
    assert "malformed" in verdict.reason


def test_an_unknown_task_is_offered_to_others_for_a_while(admission: Admission) -> None:
    assert admission.judge(head(), None, 0).what == "unknown"
    verdict = admission.judge_unknown(head(), None)
    assert verdict.what == "unknown"
    assert 0 < verdict.when - NOW < 1
    hasty = admit(patience_s=0)
    verdict = hasty.judge_unknown(head(), None)
    assert verdict.what == "dead"
    assert "unknown task" in verdict.reason


def test_how_long_a_task_is_unknown_is_counted_from_what_the_message_says(admission: Admission) -> None:
    patient = admit(patience_s=600)
    assert patient.judge_unknown(head(), NOW - 599).what == "unknown"
    assert patient.judge_unknown(head(), NOW - 601).what == "dead"
    assert patient.judge_unknown(head(), NOW + 10_000).what == "unknown", "nobody's clock makes it wait for ever"


def test_a_rate_spaces_starts_out(admission: Admission) -> None:
    limited = plan(rate_limit="10/s")
    assert admission.judge(head(), limited, 0) is RUN
    verdict = admission.judge(head(), limited, 0)
    assert verdict.what == "wait"
    assert verdict.when - NOW == pytest.approx(0.1)
    assert admit(rates=False).judge(head(), limited, 0) is RUN


def test_no_more_messages_wait_for_their_rate_than_for_their_time_and_the_others_come_again_in_turn() -> None:
    limited, one = plan(rate_limit="1/s"), admit(eta_limit=20)
    assert one.judge(head(), limited, 0) is RUN
    for n in range(20):
        assert one.judge(Head(f"w{n}", "t"), limited, n).what == "wait"
    laps = [one.judge(Head(f"d{n}", "t"), limited, 20) for n in range(3)]
    assert {lap.what for lap in laps} == {"defer"}
    assert [lap.when for lap in laps] == sorted({lap.when for lap in laps})
    assert 8 < laps[0].when - NOW < 12, "before those that wait have all had their turn"
    assert one.promised == 20


def test_starts_that_were_promised_to_messages_which_went_elsewhere_are_free_again() -> None:
    """A worker that lost its link would start nothing for as long as all that it had held had to wait."""
    limited, one = plan(rate_limit="1/s"), admit()
    assert one.judge(head(), limited, 0) is RUN
    for n in range(100):
        assert one.judge(Head(f"w{n}", "t"), limited, n).what == "wait"
    one.forget_promises()
    verdict = one.judge(Head("w0", "t"), limited, 0)
    assert verdict.what == "wait"
    assert verdict.when - NOW <= 1.0, "and no sooner than a second after the last one"


@pytest.mark.parametrize(("text", "per_second"), [("10/s", 10), ("30/m", 0.5), ("36/h", 0.01), (5, 5), ("2", 2)])
def test_rates_in_celerys_words(text: Any, per_second: float) -> None:
    assert parse_rate(text) == pytest.approx(per_second)


@pytest.mark.parametrize("text", ["fast", "10/x", "/s", ""])
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="rate limit"):
        parse_rate(text)


def test_a_bucket_promises_later_times_in_order() -> None:
    bucket = Bucket("2/s")
    assert [bucket.take(100.0) for _ in range(3)] == [100.0, 100.5, 101.0]


def test_waiting_gives_what_is_due_earliest_first() -> None:
    waiting = Waiting()
    for when in (30.0, 10.0, 20.0):
        waiting.add(when, Delivery(when, b"", head(), "q"))
    assert [delivery.tag for delivery in waiting.due(20.0)] == [10.0, 20.0]
    assert waiting.next_in(20.0) == 10.0
    assert len(waiting.clear()) == 1
    assert waiting.next_in(0) is None


def test_a_worker_holds_back_when_what_it_does_not_know_is_due_but_never_for_long() -> None:
    courtesy = Courtesy()
    courtesy.plan(100.0)
    assert courtesy.left_s(99.9) == 0
    assert courtesy.left_s(100.01) == pytest.approx(0.04)
    courtesy.plan(100.5)
    assert courtesy.left_s(100.5) == 0, "too soon after the last time"
    courtesy.plan(101.5)
    assert courtesy.left_s(101.5) > 0


def test_a_message_that_comes_again_is_told_from_a_retry_and_from_another_of_its_id() -> None:
    transport: Any = make_transport("celeriac_broker_memory", "memory://same-call")

    def delivery(body: bytes = b"[[], {}, {}]", **headers: Any) -> Delivery:
        raw = envelope.pack(make_payload("q", body, headers={"id": "one", **headers}), "1")
        return Delivery(1, raw, transport.read_head(raw), "q")

    first = delivery()
    assert is_same_call(transport, delivery(**{"x-celeriac-attempts": 2}), first), "counted since"
    assert not is_same_call(transport, delivery(retries=1), first)
    assert not is_same_call(transport, delivery(b"[[1], {}, {}]"), first)
    assert not is_same_call(transport, Delivery(1, b"\x00", Head("one", "kit.task"), "q"), first)
