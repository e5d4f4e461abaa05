"""The gevent pool keeps the contract of pools. Patched is the child only: the rest of this process is pytest's."""

from __future__ import annotations

from celeriac.spec import Pool, PoolOptions, SlotProgram
from celeriac.testing.pool_suite import PoolConformance
from celeriac_pool_gevent.pool import GeventPool


class TestGevent(PoolConformance):
    def make_pool(self, program: SlotProgram, options: PoolOptions) -> Pool:
        return GeventPool(program, options, patch_late=True)
