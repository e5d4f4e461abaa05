"""A worker that is told to stop ends, though a plugin never comes back, and says which."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celeriac import Celery, signals
from celeriac.testing.kit import eventually
from celeriac.worker import held_up
from celeriac.worker import worker as worker_module
from celeriac.worker.worker import Worker

WITHIN_S = 60.0


class Held:
    """A verb that does not come back before `let_go`."""

    def __init__(self, module: str) -> None:
        self.is_reached = threading.Event()
        self._gate = threading.Event()
        scope: dict[str, Any] = {"__name__": module, "wait": self.wait}
        exec("def verb(*args, **kwargs):\n    return wait()", scope)
        self.verb: Callable[..., Any] = scope["verb"]

    def wait(self) -> list[Any]:
        self.is_reached.set()
        self._gate.wait(2 * WITHIN_S)
        return []

    def let_go(self) -> None:
        self._gate.set()


class Run:
    """A worker in a thread, with a guard that believes the process to be its own to end."""

    def __init__(self, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(held_up, "LOOK_EVERY_S", 0.01)
        self.ended: list[int] = []
        monkeypatch.setattr(worker_module, "_end_at_once", self.ended.append)
        monkeypatch.setattr(worker_module, "_end_without_threads", lambda code: None)
        self.worker = Worker(app, pool="threads", concurrency=1, ends_process=True)
        self.thread = threading.Thread(target=self.worker.run, daemon=True)
        self.thread.start()

    def join(self) -> None:
        self.thread.join(WITHIN_S)
        assert not self.thread.is_alive()


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    name = request.node.name
    app = Celery(broker=f"memory://{name}", backend=f"memory://{name}", set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def in_plugin() -> Iterator[Held]:
    held = Held("celeriac_broker_memory.transport")
    yield held
    held.let_go()


def told_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for record in caplog.records if "is held up" in (line := record.getMessage())]


@pytest.mark.parametrize("verb", ["ping", "close"])
def test_a_plugin_that_never_comes_back_is_named_and_the_process_ends_without_it(
    app: Celery, in_plugin: Held, verb: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(type(app.make_transport()), verb, in_plugin.verb)
    run = Run(app, monkeypatch)
    if verb == "close":
        run.worker.stop()
    assert in_plugin.is_reached.wait(WITHIN_S)
    monkeypatch.setattr(held_up, "TOLD_S", 0.02)
    monkeypatch.setattr(held_up, "COLD_S", 0.2)
    run.worker.stop()
    eventually(lambda: bool(run.ended), within_s=WITHIN_S)
    assert run.ended == [1]
    assert "plugin broker:memory (celeriac-broker-memory " in told_of(caplog)[-1]
    assert ", in verb (" in told_of(caplog)[-1]
    assert "The process ends now" in told_of(caplog)[-1]
    in_plugin.let_go()
    run.join()


def test_a_program_s_own_code_is_waited_for_until_the_worker_is_told_again(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held("users_program")
    signals.worker_shutdown.connect(held.verb)
    try:
        run = Run(app, monkeypatch)
        run.worker.stop()
        assert held.is_reached.wait(WITHIN_S)
        monkeypatch.setattr(held_up, "TOLD_S", 0.02)
        eventually(lambda: any("users_program, in verb" in line for line in told_of(caplog)), within_s=WITHIN_S)
        assert "Told once more to stop, it ends by force" in told_of(caplog)[-1]
        assert run.ended == []
        monkeypatch.setattr(held_up, "COLD_S", 0.02)
        run.worker.stop()
        eventually(lambda: bool(run.ended), within_s=WITHIN_S)
        held.let_go()
        run.join()
    finally:
        held.let_go()
        signals.worker_shutdown.disconnect(held.verb)


def test_told_once_a_worker_that_holds_messages_waits_longer_for_a_plugin_and_not_while_a_task_runs_in_its_thread(
    app: Celery, in_plugin: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_up, "LOOK_EVERY_S", 0.01)
    app.make_transport()
    thread = threading.Thread(target=in_plugin.verb, daemon=True)
    thread.start()
    assert in_plugin.is_reached.wait(WITHIN_S)
    excuses = [True] * 10
    ended = threading.Event()
    guard = held_up.EndGuard(
        thread.ident or 0,
        app.kernel,
        turns=lambda: 1,
        is_cold=lambda: False,
        is_excused=lambda: bool(excuses and excuses.pop()),
        warm_s=0.05,
        end=ended.set,
    )
    guard.begin()
    assert ended.wait(WITHIN_S)
    assert not excuses
    in_plugin.let_go()
    thread.join(WITHIN_S)
