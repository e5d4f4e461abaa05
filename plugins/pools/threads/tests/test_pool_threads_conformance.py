"""The threads pool keeps the contract of pools."""

from __future__ import annotations

from celeriac.spec import Pool, PoolOptions, SlotProgram
from celeriac.testing.pool_suite import PoolConformance
from celeriac_pool_threads.pool import ThreadsPool


class TestThreads(PoolConformance):
    def make_pool(self, program: SlotProgram, options: PoolOptions) -> Pool:
        return ThreadsPool(program, options)
