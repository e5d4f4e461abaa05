"""The worker's half of a join, when the result store or the broker goes away in its midst: no step is done again that
others would see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from celeriac import Celery
from celeriac.canvas.launch import write_body
from celeriac.exceptions import BackendLost, ChordError, PublishRejected
from celeriac.spec import Chord, ChordPart, ChordWork, Payload, Route, Settlement
from celeriac.utils.ids import derived_uuid
from celeriac.worker.clock import Clock
from celeriac.worker.joins import SWEEP_S, Joiner


class Bench:
    """A joiner between a memory backend, whose steps can fail, and a broker that writes down what it is asked for."""

    def __init__(self, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.done: list[str] = []
        self.failing = self.unroutable = self.poison = ""
        self.app = app
        self.plugin: Any = app.backend.plugin
        self.joiner = Joiner(app, Clock(monotonic=lambda: self.now, uniform=lambda low, high: high))
        for step in ("join", "close_chords"):
            monkeypatch.setattr(self.plugin, step, self._failing(step))

    def _failing(self, name: str) -> Any:
        step = getattr(self.plugin, name)

        def failing(*args: Any) -> Any:
            if self.failing == name:
                raise BackendLost("away")
            if self.poison in [one.group for one in args[0]]:
                raise KeyError("of the plugin's own")
            return step(*args)

        return failing

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        if self.unroutable in [payload.headers["task"] for payload in publish]:
            raise PublishRejected("nowhere")
        self.done += [f"publish {payload.headers['task']}" for payload in publish]
        self.done += [f"{settlement.verb} {settlement.tag}" for settlement in batch]

    def flush(self, timeout_s: float) -> None: ...

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 2 * SWEEP_S
            self.joiner.perform(self, lambda publish: publish)  # type: ignore[arg-type]

    def pass_by(self, seconds: float) -> None:
        for _ in range(int(seconds * 10)):
            self.now += 0.1
            self.joiner.perform(self, lambda publish: publish)  # type: ignore[arg-type]

    def end_part(self, group: str = "g", tag: str = "tag") -> None:
        """The only part of a chord ends; it has no result, and a callback."""
        body = write_body(self.app, self.app.signature("body"))
        self.plugin.open_chords([Chord(group, 1, body, 1e6)])
        data = self.app.backend.serializer.dumps([1, "part", "SUCCESS", 1])
        callback = Payload(b"", "", "", {"id": "callback", "task": "callback"}, {}, Route("q"))
        work = ChordWork([], [ChordPart(group, "part", 0, data, body)])
        self.joiner.add(Settlement(tag), (), [callback], work, False)


@pytest.fixture
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    name = request.node.name
    app = Celery(broker=f"memory://{name}", backend=f"memory://{name}", set_as_current=False)
    yield Bench(app, monkeypatch)
    app.close()


@pytest.mark.parametrize("step", ["join", "close_chords"])
def test_R12_what_follows_from_a_part_is_sent_once_however_long_the_store_is_away_after_that(
    bench: Bench, step: str
) -> None:
    bench.end_part()
    bench.failing = step
    bench.turn(5)
    bench.failing = ""
    bench.turn(2)
    assert bench.done == ["publish callback", "publish body", "ack tag"]
    assert bench.joiner.left() == 0
    assert bench.joiner._unclosed == []


def test_an_overdue_chord_whose_body_cannot_be_read_here_is_left_to_others(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be of another app on the same store; and it must not cost this worker anything."""
    bodies = [b"nosuch\n{}", b"json\n{", b"", write_body(bench.app, bench.app.signature("body"))]
    bench.plugin.open_chords([Chord(f"g{n}", 2, body, 0.0) for n, body in enumerate(bodies)])
    bench.turn()
    assert "The body of chord g0 cannot be read here" in caplog.text
    assert "The body of chord g1 cannot be read here" in caplog.text
    assert bench.joiner._unclosed == []


def test_a_body_that_has_nowhere_to_go_has_failed_and_its_chord_is_over(bench: Bench) -> None:
    bench.unroutable = "body"
    bench.end_part()
    bench.turn(3)
    assert bench.done == ["publish callback", "ack tag"]
    error = bench.app.AsyncResult(derived_uuid("g body")).result
    assert isinstance(error, ChordError)
    assert "body could not be sent: nowhere" in str(error)


def test_a_part_that_the_store_s_plugin_stumbles_over_holds_up_no_other_and_is_set_aside(bench: Bench) -> None:
    """It costs neither the link nor the worker, whose other messages would all come again."""
    bench.poison = "bad"
    bench.end_part("bad", "bad")
    bench.end_part("good", "good")
    bench.turn(5)
    assert [word for word in bench.done if word != "publish callback"] == ["publish body", "ack good"]
    for n in range(20):
        bench.end_part(f"g{n}", f"g{n}")
        bench.turn(2)
    assert "dead bad" in bench.done
    assert all(f"ack g{n}" in bench.done for n in range(20))
    assert bench.joiner.left() == 0
    assert bench.done.count("publish callback") == 22, "each once"


def test_a_part_that_the_store_s_plugin_has_stumbled_over_for_long_holds_up_nothing_that_comes_later(
    bench: Bench,
) -> None:
    bench.poison = "bad"
    for name in ("bad", "first"):
        bench.end_part(name, name)
    bench.pass_by(20)
    for n in range(3):
        bench.end_part(f"g{n}", f"t{n}")
        bench.pass_by(0.5)
        assert f"ack t{n}" in bench.done, "the pauses of the one that it stumbles over are longer than this"
        bench.pass_by(10)


def test_parts_wait_for_a_store_s_plugin_that_stumbles_over_all(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    join, broken = bench.plugin.join, True

    def stumble(parts: Sequence[ChordPart]) -> Any:
        if broken:
            raise ZeroDivisionError("of the plugin's own")
        return join(parts)

    monkeypatch.setattr(bench.plugin, "join", stumble)
    for n in range(3):
        bench.end_part(f"g{n}", f"g{n}")
    bench.turn(20)
    assert bench.joiner.left() == 3
    broken = False
    bench.turn(3)
    assert sorted(word for word in bench.done if word.startswith("ack")) == ["ack g0", "ack g1", "ack g2"]


def test_a_chord_whose_end_the_store_s_plugin_cannot_note_holds_up_no_other(bench: Bench) -> None:
    bench.end_part("bad", "bad")
    bench.end_part("good", "good")
    bench.failing = "close_chords"
    bench.turn()
    assert len(bench.joiner._unclosed) == 2
    bench.failing, bench.poison = "", "bad"
    bench.turn(2)
    assert bench.joiner._unclosed == []
    assert bench.plugin.join([ChordPart("good", "part", 0, b"")]) == [], "it is closed"
