"""Pool of greenlets for celeriac."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Pool, PoolOptions, SlotProgram

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_prepare_process(name: str) -> None:
    """Patch the standard library, before the program that is to run on it is imported."""
    if name == "gevent":
        from gevent import monkey

        monkey.patch_all()


@hookimpl
def celeriac_make_pool(name: str, program: SlotProgram, options: PoolOptions) -> Pool | None:
    """Make a `GeventPool` for the name `gevent`."""
    if name != "gevent":
        return None
    from celeriac_pool_gevent.pool import GeventPool

    return GeventPool(program, options)
