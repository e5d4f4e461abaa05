"""Pool of child processes for celeriac."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Pool, PoolOptions, SlotProgram

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_pool(name: str, program: SlotProgram, options: PoolOptions) -> Pool | None:
    """Make a `PreforkPool` for the names `prefork` and `processes`."""
    if name not in ("prefork", "processes"):
        return None
    from celeriac_pool_prefork.pool import PreforkPool

    return PreforkPool(program, options)
