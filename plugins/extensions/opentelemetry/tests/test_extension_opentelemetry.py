"""Spans of a client and of a real worker's processes belong together."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from celeriac import Celery
from celeriac.exceptions import ImproperlyConfigured
from celeriac.testing.apps import TestApp
from celeriac.testing.rehearsal import Rehearsal
from celeriac.testing.threaded import start_worker
from celeriac_extension_opentelemetry import celeriac_process_starting
from celeriac_extension_opentelemetry.tracing import instrument, uninstrument

PROGRAM = """
import os
from celeriac import Celery
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

app = Celery("traced", broker="sqlite:///{place}/b.db", backend="sqlite:///{place}/b.db")
app.conf.extension_options = {{"opentelemetry": {{"setup": "traced:setup"}}}}

def setup():
    provider = TracerProvider()
    out = open(f"{place}/spans-{{os.getpid()}}", "a")
    exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\\n")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

@app.task(name="outer")
def outer():
    with trace.get_tracer("user").start_as_current_span("own"):
        inner.delay()
    return os.getpid()

@app.task(name="inner", bind=True)
def inner(self):
    if not self.request.retries:
        raise self.retry(countdown=0, exc=ValueError("not yet"))
"""


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    made = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    trace.set_tracer_provider(provider)  # once in a process, says OpenTelemetry
    return made


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    instrument()
    yield exporter
    uninstrument()


def read_spans(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in place.glob("spans-*") for line in path.read_text().splitlines() if line]


def test_a_trace_goes_from_the_client_through_processes_and_retries(
    tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    (tmp_path / "traced.py").write_text(PROGRAM.format(place=tmp_path))
    url = f"sqlite:///{tmp_path}/b.db"
    app = Celery("client", broker=url, backend=url, set_as_current=False)
    with (tmp_path / "log").open("ab") as log:
        command = [sys.executable, "-m", "celeriac", "-A", "traced", "worker", "-c", "2", "-l", "info"]
        worker = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        with trace.get_tracer("test").start_as_current_span("request") as request:
            result = app.send_task("outer")
        assert result.get(timeout=60) != worker.pid
        deadline = time.monotonic() + 60
        while (tmp_path / "log").read_text().count("succeeded") < 2:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
    finally:
        worker.terminate()
        assert worker.wait(60) == 0
        app.close()
    (created,) = [span for span in spans.get_finished_spans() if span.name == "create outer"]
    assert created.parent is not None
    assert created.parent.span_id == request.get_span_context().span_id
    found = read_spans(tmp_path)
    trace_id = f"0x{request.get_span_context().trace_id:032x}"
    assert {span["context"]["trace_id"] for span in found} == {trace_id}
    by_id = {span["context"]["span_id"]: span for span in found}

    def line(span: dict[str, Any]) -> list[str]:
        parent = by_id.get(span["parent_id"])
        return [*(line(parent) if parent else []), span["name"]]

    last = max((span for span in found if span["name"] == "process inner"), key=lambda span: span["start_time"])
    way = ["process outer", "own", "create inner", "process inner", "create inner", "process inner"]
    assert line(last) == way
    assert (last["kind"], last["attributes"]["celery.state"]) == ("SpanKind.CONSUMER", "SUCCESS")
    assert last["attributes"]["celery.retries"] == 1
    first = by_id[by_id[last["parent_id"]]["parent_id"]]
    assert (first["attributes"]["celery.state"], [event["name"] for event in first["events"]]) == ("RETRY", ["retry"])
    outer = next(span for span in found if span["name"] == "process outer")
    assert int(outer["parent_id"], 16) == created.context.span_id
    assert outer["attributes"]["messaging.system"] == "sqlite"
    assert outer["attributes"]["messaging.message.id"] == result.id


def test_an_error_is_recorded_with_its_span(spans: InMemorySpanExporter) -> None:
    app = TestApp()

    @app.task(name="bad")
    def bad() -> None:
        raise KeyError("gone")

    with Rehearsal(app) as rehearsal:
        bad.apply_async(queue="elsewhere")
        rehearsal.run_until_idle(raise_errors=False)
        bad.apply()
    created, run, eager = spans.get_finished_spans()
    assert created.attributes is not None
    assert created.attributes["messaging.destination.name"] == "elsewhere"
    for span in (run, eager):
        assert (span.name, span.status.status_code.name, span.attributes["error.type"]) == (  # type: ignore[index]
            "process bad",
            "ERROR",
            "KeyError",
        )
        assert [event.name for event in span.events] == ["exception"]
    assert run.parent is not None
    assert run.parent.span_id == created.context.span_id
    assert eager.parent is None
    assert not trace.get_current_span().get_span_context().is_valid


def test_threads_do_not_mix_their_spans(spans: InMemorySpanExporter) -> None:
    app = TestApp()

    @app.task(name="current")
    def current() -> str:
        before = trace.get_current_span().get_span_context().span_id
        time.sleep(0.01)
        assert trace.get_current_span().get_span_context().span_id == before
        return f"{before:016x}"

    with start_worker(app, pool="threads", concurrency=4):
        seen = {result.get(timeout=30): result.id for result in [current.delay() for _ in range(12)]}
    runs = {
        f"{span.context.span_id:016x}": span.attributes["messaging.message.id"]
        for span in spans.get_finished_spans()
        if span.name == "process current" and span.attributes
    }
    assert runs == seen


def test_a_process_that_was_not_forked_from_its_worker_is_traced_too(exporter: InMemorySpanExporter) -> None:
    exporter.clear()
    app = TestApp()
    app.conf.extension_options = {"opentelemetry": {}}
    task = app.task(name="anew")(lambda: None)
    try:
        task.apply()
        assert not exporter.get_finished_spans()
        celeriac_process_starting(app)
        task.apply()
    finally:
        uninstrument()
    assert [span.name for span in exporter.get_finished_spans()] == ["process anew"]


def test_a_setup_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"'no\.such:setup' cannot be imported"):
        instrument(setup="no.such:setup")
