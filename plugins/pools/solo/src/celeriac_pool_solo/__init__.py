"""Pool of one slot, in the worker's own thread, for celeriac."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Pool, PoolOptions, SlotProgram

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_pool(name: str, program: SlotProgram, options: PoolOptions) -> Pool | None:
    """Make a `SoloPool` for the name `solo`."""
    if name != "solo":
        return None
    from celeriac_pool_solo.pool import SoloPool

    return SoloPool(program)
