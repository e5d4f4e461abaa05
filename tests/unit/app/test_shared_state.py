"""Where an app's shared state is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from celeriac import Celery
from celeriac.spec import Change


def test_the_brokers_state_comes_first(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/broker.db"
    app = Celery(broker=url, backend="memory://elsewhere", set_as_current=False)
    other = Celery(broker=url, set_as_current=False)
    assert app.shared_state is not None
    assert other.shared_state is not None
    app.shared_state.write("space", [Change("a", b"1")])
    assert other.shared_state.read("space").entries["a"].value == b"1"
    app.close()
    other.close()


@pytest.mark.parametrize("scheme", ["sqlite", "db+sqlite"])
def test_a_broker_without_state_leaves_it_to_the_result_backend(tmp_path: Path, scheme: str) -> None:
    words = {"broker": "amqp://127.0.0.1:1//", "backend": f"{scheme}:///{tmp_path}/results.db"}
    app, other = (Celery(**words, set_as_current=False) for _ in range(2))
    assert app.shared_state is not None
    assert other.shared_state is not None
    app.shared_state.write("space", [Change("a", b"1")])
    assert other.shared_state.read("space").entries["a"].value == b"1"
    app.close()
    other.close()


def test_without_either_there_is_none() -> None:
    app = Celery(broker="amqp://127.0.0.1:1//", backend="rpc://", set_as_current=False)
    assert app.shared_state is None
    app.close()
