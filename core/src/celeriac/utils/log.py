"""`get_task_logger`, at the path where Celery's users look for it."""

from __future__ import annotations

import logging

#: The parent of all task loggers: its level and handlers are theirs.
task_logger = logging.getLogger("celeriac.task")


def get_logger(name: str) -> logging.Logger:
    """A logger of the standard library."""
    return logging.getLogger(name)


def get_task_logger(name: str) -> logging.Logger:
    """A logger for task code, below `celeriac.task`.

    In a worker, each of its lines names the task that wrote it: `task_id` and `task_name`.

    Raises:
        RuntimeError: `name` is celeriac's own.
    """
    if name in ("celeriac", "celeriac.task"):
        raise RuntimeError(f"the name {name!r} is celeriac's own; use get_task_logger(__name__)")
    logger = logging.getLogger(name)
    logger.parent = task_logger
    return logger
