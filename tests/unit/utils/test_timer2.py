"""The timer of steps: order, repetition, cancelling, and functions that raise."""

from __future__ import annotations

import queue
from typing import Any

from celeriac.utils.timer2 import Timer


def test_calls_come_in_time_s_order_then_by_priority() -> None:
    timer, heard = Timer(), queue.Queue[Any]()
    timer.call_after(0.4, heard.put, ("third",))
    timer.call_after(0.0, heard.put, ("first",))
    timer.call_after(0.2, heard.put, ("second",))
    assert [heard.get(timeout=20) for _ in range(3)] == ["first", "second", "third"]
    timer.stop()


def test_one_repeats_until_it_is_cancelled_whatever_it_raises() -> None:
    errors = queue.Queue[Exception]()
    timer = Timer(on_error=errors.put)
    entry = timer.call_repeatedly(0.001, int, ("x",))
    assert all(isinstance(errors.get(timeout=20), ValueError) for _ in range(3))
    entry.cancel()
    done = queue.Queue[str]()
    timer.call_after(0.05, done.put, ("later",))
    assert done.get(timeout=20) == "later"
    while not errors.empty():
        errors.get()
    timer.call_after(0.05, done.put, ("again",))
    assert done.get(timeout=20) == "again"
    assert errors.empty()
    timer.stop()


def test_one_that_wants_the_program_to_end_is_heard_and_a_stopped_timer_calls_nothing() -> None:
    ended, heard = queue.Queue[None](), queue.Queue[str]()
    timer = Timer(on_exit=lambda: ended.put(None))

    def leave() -> None:
        raise SystemExit

    timer.call_after(0, leave)
    ended.get(timeout=20)
    timer.stop()
    timer.call_after(0, heard.put, ("never",))
    assert heard.empty()
