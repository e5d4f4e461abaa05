"""From dotted paths to objects, at Celery's path."""

from __future__ import annotations

from typing import Any

from celeriac.utils.names import (
    gen_task_name,
    get_cls_by_name,
    get_full_cls_name,
    import_from_cwd,
    instantiate,
)

__all__ = ["gen_task_name", "import_from_cwd", "instantiate", "qualname", "symbol_by_name"]

symbol_by_name = get_cls_by_name


def qualname(obj: Any) -> str:
    """`module.Class` of a class, of a function, or of an object's class."""
    return get_full_cls_name(obj if hasattr(obj, "__qualname__") else type(obj))
