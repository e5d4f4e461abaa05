"""A sealed app runs what was sealed by one of its keys, as it was sealed, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac import Celery, signals
from celeriac.exceptions import ImproperlyConfigured
from celeriac.execution.execute import TaskProgram
from celeriac.messaging.seal import SEAL_HEADER
from celeriac.spec import JobReport, Payload, envelope
from celeriac.spec.data import Job

KEY, OTHER = "k" * 32, "o" * 32


def make_app(key: str | None = KEY) -> Celery:
    place = f"memory://seal-{id(object())}"
    app = Celery("sealed", broker=place, backend=place, set_as_current=False, message_seal_key=key)

    @app.task(name="double")
    def double(x: int) -> int:
        return 2 * x

    app.finalize()
    return app


def send(app: Celery) -> Payload:
    options = {"headers": {"tenant": "a", "x-hop": 1}, "expires": 3600.5, "stamped_headers": ["s"], "s": [1]}
    return app.make_payload("double", [4], {}, "id-1", options)


def run(app: Celery, payload: Payload) -> JobReport:
    program = TaskProgram(app, envelope.unpack, "w@h", detail=True)
    return program.run(Job(7, envelope.pack(payload, "tag"), "celery"), lambda report: None)


def test_a_sealed_message_runs_after_its_way_through_a_broker() -> None:
    app = make_app()
    report = run(app, send(app))
    assert (report.outcome, report.detail) == ("succeeded", "8")


def change_task(payload: Payload) -> None:
    payload.headers["task"] = "celery.backend_cleanup"


def change_body(payload: Payload) -> None:
    payload.body = payload.body.replace(b"4", b"5")


def add_header(payload: Payload) -> None:
    payload.headers["admin"] = True


def drop_header(payload: Payload) -> None:
    del payload.headers["tenant"]


def redirect_the_result(payload: Payload) -> None:
    payload.properties["reply_to"] = "mallory"


def change_content_type(payload: Payload) -> None:
    payload.content_type = "application/x-yaml"


def take_the_seal_off(payload: Payload) -> None:
    del payload.headers[SEAL_HEADER]


def forge_the_seal(payload: Payload) -> None:
    payload.headers[SEAL_HEADER] = ["1 0"]


CHANGES = [
    change_task, change_body, add_header, drop_header, redirect_the_result, change_content_type, take_the_seal_off,
    forge_the_seal,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_message_is_set_aside_unread(change: Any) -> None:
    app = make_app()
    payload = send(app)
    change(payload)
    report = run(app, payload)
    assert report.outcome == "rejected"
    assert "refused a message" in report.dead
    assert "seal" in report.dead


def test_what_brokers_add_is_no_change() -> None:
    app = make_app()
    payload = send(app)
    payload.headers.update({"x-death": [{"count": 1}], "redelivered": True})
    assert run(app, payload).outcome == "succeeded"


def test_an_old_key_is_accepted_while_it_is_listed() -> None:
    payload = send(make_app(OTHER))
    assert run(make_app(f"{KEY} {OTHER}"), payload).outcome == "succeeded"
    assert run(make_app(KEY), payload).outcome == "rejected"


def test_headers_that_a_signal_handler_adds_are_sealed() -> None:
    app = make_app()
    sent: list[Payload] = []
    app._parts.__dict__["producer"] = type(
        "P", (), {"tells_sent": False, "send": lambda self, batch, **_: sent.extend(batch)}
    )()

    def add(headers: dict[str, Any], **_: Any) -> None:
        headers["trace"] = "t1"

    signals.before_task_publish.connect(add)
    try:
        app.send_task("double", [2])
    finally:
        signals.before_task_publish.disconnect(add)
    assert sent[0].headers["trace"] == "t1"
    assert run(app, sent[0]).outcome == "succeeded"


def test_an_app_without_a_key_neither_seals_nor_asks() -> None:
    payload = send(make_app(None))
    assert SEAL_HEADER not in payload.headers
    assert run(make_app(None), send(make_app())).outcome == "succeeded"


def test_a_key_that_is_none_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="16 bytes or more"):
        send(make_app("short"))
