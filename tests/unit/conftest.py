"""Unit tests do not meet each other's apps: those that are not collected yet would share their tasks, as apps do."""

from __future__ import annotations

import pytest

from celeriac import _state


@pytest.fixture(autouse=True)
def alone() -> None:
    _state._apps.clear()
