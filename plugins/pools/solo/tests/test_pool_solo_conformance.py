"""The solo pool keeps the contract of pools."""

from __future__ import annotations

from celeriac.spec import Pool, PoolOptions, SlotProgram
from celeriac.testing.pool_suite import PoolConformance
from celeriac_pool_solo.pool import SoloPool


class TestSolo(PoolConformance):
    slots = 1
    runs_beside = False

    def make_pool(self, program: SlotProgram, options: PoolOptions) -> Pool:
        return SoloPool(program)
