"""Tasks that can be called when a database transaction has been committed. Named by `celeriac.fixups.django`."""

from __future__ import annotations

from functools import partial
from typing import Any, ParamSpec, TypeVar

from django.db import transaction

from celeriac.app.task import Task

P = ParamSpec("P")
R = TypeVar("R")


class DjangoTask(Task[P, R]):
    """The class of a Django project's tasks.

    Inside `transaction.atomic()` a plain `delay()` sends at once: a worker may then look for rows that are not there
    yet, or never will be. These send after the commit of the outermost transaction, and not at all after a rollback;
    without a transaction at once. They return None, since there is no call yet.
    """

    abstract = True

    def delay_on_commit(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """`delay`, after the commit."""
        transaction.on_commit(partial(self.delay, *args, **kwargs))

    def apply_async_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """`apply_async`, after the commit."""
        transaction.on_commit(partial(self.apply_async, *args, **kwargs))
