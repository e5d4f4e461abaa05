"""The sqlite backend keeps the contract of result backends."""

from __future__ import annotations

from pathlib import Path

import pytest

from celeriac.testing.backend_suite import BackendConformance
from celeriac_backend_sqlite.backend import SqliteBackend


class TestSqliteBackend(BackendConformance):
    plugin = "celeriac_backend_sqlite"
    compresses = True
    abilities = SqliteBackend.abilities

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/results.db"
