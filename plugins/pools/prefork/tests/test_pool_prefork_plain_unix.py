"""The prefork pool without what only Linux has: pidfd, epoll, memfd."""

from __future__ import annotations

import os
import select

import pytest

from celeriac.spec import Pool, PoolOptions, SlotProgram
from celeriac.testing.pool_suite import PoolConformance
from celeriac_pool_prefork.pool import PreforkPool


class TestPreforkOnAPlainUnix(PoolConformance):
    @pytest.fixture(autouse=True)
    def _plain_unix(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
        monkeypatch.delattr(select, "epoll", raising=False)
        monkeypatch.delattr(os, "memfd_create", raising=False)

    def make_pool(self, program: SlotProgram, options: PoolOptions) -> Pool:
        return PreforkPool(program, options)
