"""Small helpers without a room of their own; those that Celery's users import are at Celery's path."""

from celeriac.utils.ids import uuid
from celeriac.utils.names import gen_task_name, get_cls_by_name, get_full_cls_name, import_from_cwd, instantiate
from celeriac.utils.nodenames import nodename, nodesplit, worker_direct

gen_unique_id = uuid

__all__ = [
    "gen_task_name",
    "gen_unique_id",
    "get_cls_by_name",
    "get_full_cls_name",
    "import_from_cwd",
    "instantiate",
    "nodename",
    "nodesplit",
    "uuid",
    "worker_direct",
]
