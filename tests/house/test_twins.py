"""Plugins do not import one another, so what two of them share is copied; the copies must stay equal."""

from __future__ import annotations

from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


@pytest.mark.parametrize(("store", "module"), [("sqlite", "file.py"), ("sqlite", "wake.py"), ("redis", "wire.py")])
def test_a_broker_and_a_backend_of_one_store_share_a_module_word_for_word(store: str, module: str) -> None:
    broker = PLUGINS / "brokers" / store / "src" / f"celeriac_broker_{store}" / module
    backend = PLUGINS / "backends" / store / "src" / f"celeriac_backend_{store}" / module
    assert broker.read_text() == backend.read_text(), f"change both copies of {module} together"
