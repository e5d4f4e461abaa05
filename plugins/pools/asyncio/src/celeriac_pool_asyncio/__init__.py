"""Pool of coroutines for celeriac."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Pool, PoolOptions, SlotProgram

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_pool(name: str, program: SlotProgram, options: PoolOptions) -> Pool | None:
    """Make an `AsyncioPool` for the name `asyncio`."""
    if name != "asyncio":
        return None
    from celeriac_pool_asyncio.pool import AsyncioPool

    return AsyncioPool(program, options)
