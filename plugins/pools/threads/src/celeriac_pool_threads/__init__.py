"""Pool of threads for celeriac."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Pool, PoolOptions, SlotProgram

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_pool(name: str, program: SlotProgram, options: PoolOptions) -> Pool | None:
    """Make a `ThreadsPool` for the name `threads`."""
    if name != "threads":
        return None
    from celeriac_pool_threads.pool import ThreadsPool

    return ThreadsPool(program, options)
