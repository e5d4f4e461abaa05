"""Plugins do not import one another, so what two of them share is copied; the copies must stay equal."""

from __future__ import annotations

from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
BROKER = PLUGINS / "brokers/sqlite/src/celeriac_broker_sqlite"
BACKEND = PLUGINS / "backends/sqlite/src/celeriac_backend_sqlite"


@pytest.mark.parametrize("name", ["file.py", "wake.py"])
def test_the_sqlite_broker_and_backend_share_a_module_word_for_word(name: str) -> None:
    assert (BROKER / name).read_text() == (BACKEND / name).read_text(), f"change both copies of {name} together"
