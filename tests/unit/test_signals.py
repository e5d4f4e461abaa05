"""Signals."""

from __future__ import annotations

import gc
import logging
from typing import Any

import pytest

from celeriac.signals import Signal


def test_receivers_hear_by_sender_and_answer() -> None:
    signal = Signal("s", {"x"})
    heard: list[Any] = []

    @signal.connect
    def everything(sender: Any, x: int, **_: Any) -> str:
        heard.append(("all", x))
        return "a"

    @signal.connect(sender="only")
    def one(sender: Any, x: int, **_: Any) -> str:
        heard.append(("only", x))
        return "b"

    assert [answer for _, answer in signal.send("other", x=1)] == ["a"]
    assert [answer for _, answer in signal.send("only", x=2)] == ["a", "b"]
    assert heard == [("all", 1), ("all", 2), ("only", 2)]


def test_a_receiver_that_raises_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    signal = Signal("s")

    def broken(**_: Any) -> None:
        raise ValueError("x")

    def fine(**_: Any) -> int:
        return 1

    signal.connect(broken)
    signal.connect(fine)
    with caplog.at_level(logging.ERROR):
        answers = [answer for _, answer in signal.send("x")]
    assert isinstance(answers[0], ValueError)
    assert answers[1] == 1
    assert "broken" in caplog.text


def test_receivers_are_held_weakly_unless_told_otherwise() -> None:
    signal = Signal("s")

    def gone(**_: Any) -> None: ...

    signal.connect(gone)
    signal.connect(lambda **_: 5, weak=False)
    del gone
    gc.collect()
    assert [answer for _, answer in signal.send("x")] == [5]


def test_methods_disconnect_and_a_uid_connects_once() -> None:
    signal = Signal("s")

    class Listener:
        def hear(self, **_: Any) -> int:
            return 1

    listener = Listener()
    signal.connect(listener.hear)
    assert signal.disconnect(listener.hear)
    assert not signal.has_listeners()
    signal.connect(listener.hear, dispatch_uid="u")
    signal.connect(listener.hear, dispatch_uid="u")
    assert len(signal.send("x")) == 1


def test_a_retrying_receiver_is_called_again() -> None:
    signal = Signal("s")
    tries: list[int] = []

    def flaky(**_: Any) -> str:
        tries.append(1)
        if len(tries) < 2:
            raise OSError
        return "ok"

    signal.connect(flaky, retry=True)
    assert signal.send("x")[0][1] == "ok"


def test_the_sender_may_be_given_by_its_place() -> None:
    signal = Signal("s")
    heard: list[Any] = []

    def one(sender: Any, **_: Any) -> None:
        heard.append(sender)

    @signal.connect("named")
    def two(sender: Any, **_: Any) -> None:
        heard.append(("two", sender))

    signal.connect(one, "only")
    for sender in ("only", "named", "other"):
        signal.send(sender)
    assert heard == ["only", ("two", "named")]


def test_a_retrying_receiver_is_connected_once_and_can_be_disconnected() -> None:
    signal = Signal("s")

    def receiver(**_: Any) -> None: ...

    signal.connect(receiver, retry=True)
    signal.connect(receiver, retry=True)
    assert len(signal.send("x")) == 1
    assert signal.disconnect(receiver)
    assert not signal.has_listeners()
