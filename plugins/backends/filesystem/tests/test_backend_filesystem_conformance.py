"""The filesystem backend keeps the contract of result backends."""

from __future__ import annotations

from pathlib import Path

import pytest

from celeriac.testing.backend_suite import BackendConformance
from celeriac.testing.kit import KitHost
from celeriac_backend_filesystem import celeriac_make_backend
from celeriac_backend_filesystem.backend import FilesystemBackend


class TestFilesystem(BackendConformance):
    plugin = "celeriac_backend_filesystem"
    compresses = True
    abilities = FilesystemBackend.abilities

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}"


def test_other_schemes_are_left_to_others() -> None:
    assert celeriac_make_backend("redis://localhost", {}, KitHost()) is None
