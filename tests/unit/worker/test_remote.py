"""The thread that answers commands and tells events."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac import Celery
from celeriac.exceptions import PublishRejected
from celeriac.messaging.broadcasts import Request, control_exchange, make_request
from celeriac.testing.threaded import start_worker
from celeriac.worker import remote


def test_an_answer_that_its_asker_s_exchange_refuses_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery(broker="memory://answers", set_as_current=False)
    monkeypatch.setattr(remote, "ANSWER_S", 0.0)
    with start_worker(app, pool="threads", perform_ping_check=False) as worker:
        transport: Any = worker.transport
        broadcast = transport.broadcast

        def refuse(exchange: Any, *args: Any, **kwargs: Any) -> None:
            if exchange.name == "odd":
                raise PublishRejected("it is of another type")
            broadcast(exchange, *args, **kwargs)

        monkeypatch.setattr(transport, "broadcast", refuse)
        odd = make_request(Request("ping", {}, ticket="1", reply_to=("odd", "key")), app.conf, app.codec, None)
        app.transport.broadcast(control_exchange(app.conf), [odd])  # type: ignore[attr-defined]
        assert app.control.ping(timeout=60, limit=1) == [{worker.hostname: {"ok": "pong"}}]
    app.close()


def test_an_answer_that_cannot_be_sent_at_all_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery(broker="memory://oddest", set_as_current=False)
    with start_worker(app, pool="threads", perform_ping_check=False) as worker:
        transport: Any = worker.transport
        broadcast = transport.broadcast

        def refuse(exchange: Any, *args: Any, **kwargs: Any) -> None:
            exchange.name.encode()  # as any broker does that is not in memory
            broadcast(exchange, *args, **kwargs)

        monkeypatch.setattr(transport, "broadcast", refuse)
        odd = make_request(Request("ping", {}, ticket="1", reply_to=("\udc80", "key")), app.conf, app.codec, None)
        app.transport.broadcast(control_exchange(app.conf), [odd])  # type: ignore[attr-defined]
        assert app.control.ping(timeout=60, limit=1) == [{worker.hostname: {"ok": "pong"}}]
    app.close()


@pytest.mark.parametrize(("destination", "heard"), [(None, True), ([], True), (["w@h"], True), (["other@h"], False)])
def test_a_command_for_no_node_by_name_is_for_all(destination: list[str] | None, heard: bool) -> None:
    assert Request("ping", {}, destination).is_for("w@h") is heard


def test_who_names_no_node_at_all_asks_nobody() -> None:
    app = Celery(broker="memory://nobody", set_as_current=False)
    with start_worker(app, pool="threads", perform_ping_check=False):
        assert app.control.broadcast("ping", destination=[], reply=True, timeout=1) == []
        assert app.control.shutdown(destination=[]) is None
        assert app.control.ping(timeout=60, limit=1)
    app.close()
