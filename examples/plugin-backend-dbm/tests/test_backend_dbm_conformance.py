"""The dbm backend keeps the contract of result backends."""

from __future__ import annotations

from pathlib import Path

import pytest

from celeriac.testing.backend_suite import BackendConformance
from celeriac_backend_dbm.backend import DbmBackend


class TestDbm(BackendConformance):
    plugin = "celeriac_backend_dbm"
    abilities = DbmBackend.abilities

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"dbm://{tmp_path}/results"
