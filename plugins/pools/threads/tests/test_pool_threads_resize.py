"""What the threads pool promises beyond the contract: what has ended leaves nothing behind."""

from __future__ import annotations

import time

from celeriac.spec import Pool, PoolOptions, SlotProgram
from celeriac.testing.pool_suite import PoolConformance
from celeriac_pool_threads.pool import ThreadsPool


class _Suite(PoolConformance):
    """For its driver; its tests are run elsewhere."""

    def make_pool(self, program: SlotProgram, options: PoolOptions) -> Pool:
        return ThreadsPool(program, options)


def test_threads_that_have_ended_are_not_kept() -> None:
    with _Suite().started(slots=1) as driver:
        for _ in range(5):
            driver.pool.resize(3)
            driver.pool.resize(1)
            patience = time.monotonic() + 15.0
            while sum(one.is_alive() for one in driver.pool._threads) > 1:
                assert time.monotonic() < patience
                time.sleep(0.005)
        driver.pool.resize(2)
        assert len(driver.pool._threads) == 2
