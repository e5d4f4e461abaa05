"""The asyncio pool keeps the contract of pools, with jobs that are no coroutines."""

from __future__ import annotations

from celeriac.spec import Pool, PoolOptions, SlotProgram
from celeriac.testing.pool_suite import PoolConformance
from celeriac_pool_asyncio.pool import AsyncioPool


class TestAsyncio(PoolConformance):
    def make_pool(self, program: SlotProgram, options: PoolOptions) -> Pool:
        return AsyncioPool(program, options)
