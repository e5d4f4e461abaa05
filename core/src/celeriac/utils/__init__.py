"""Small helpers without a room of their own; those that Celery's users import are at Celery's path."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Any

from celeriac.utils.ids import uuid
from celeriac.utils.log import LOG_LEVELS
from celeriac.utils.names import gen_task_name, get_cls_by_name, get_full_cls_name, import_from_cwd, instantiate
from celeriac.utils.nodenames import nodename, nodesplit, worker_direct

gen_unique_id = uuid


def noop(*args: Any, **kwargs: Any) -> None:
    """Do nothing, whatever it is called with."""


def chunks(it: Iterator[Any], n: int) -> Iterator[list[Any]]:
    """Lists of `n` from an iterator; the last may be shorter."""
    while part := list(islice(it, n)):
        yield part


__all__ = [
    "LOG_LEVELS",
    "cached_property",
    "chunks",
    "gen_task_name",
    "gen_unique_id",
    "get_cls_by_name",
    "get_full_cls_name",
    "import_from_cwd",
    "instantiate",
    "nodename",
    "nodesplit",
    "noop",
    "uuid",
    "worker_direct",
]
