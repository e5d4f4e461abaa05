"""One message for many calls of a task: `xmap`, `xstarmap`; and many of them: `chunks`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from celeriac.canvas.group import group
from celeriac.canvas.signature import Signature, maybe_signature


class _Mapping(Signature):
    """A call of one of celeriac's own tasks, which calls another for each item."""

    task_name = ""

    def __init__(self, task: Any, it: Iterable[Any], app: Any = None, **more: Any) -> None:
        inner = task if isinstance(task, dict) else Signature(task, app=app)
        inner = maybe_signature(inner, app=app)
        kwargs = {"task": inner, "it": list(it), **more}
        super().__init__(self.task_name, (), kwargs, immutable=True, app=app or inner._app)


class xmap(_Mapping):
    """One message that calls a task for each item: `add.map([...])`; its result is the list of theirs."""

    task_name = "celery.map"

    def __repr__(self) -> str:
        return f"[{self['kwargs']['task'].task}(x) for x in {self['kwargs']['it']!r}]"


class xstarmap(_Mapping):
    """One message that calls a task with each tuple of arguments: `add.starmap([(2, 2), (4, 4)])`."""

    task_name = "celery.starmap"

    def __repr__(self) -> str:
        return f"[{self['kwargs']['task'].task}(*x) for x in {self['kwargs']['it']!r}]"


class chunks(_Mapping):
    """Many tuples of arguments in messages of `n` each: `add.chunks(zip(range(100), range(100)), 10)()`.

    Its result is that of a group, with a list of results for each chunk.
    """

    task_name = "celery.chunks"

    def __init__(self, task: Any, it: Iterable[Any], n: int, app: Any = None) -> None:
        if n < 1:
            raise ValueError(f"chunks of {n} items: give 1 or more")
        super().__init__(task, it, app=app, n=n)

    def __call__(self, **options: Any) -> Any:
        """Send it."""
        return self.apply_async(**options)

    def apply_async(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, *_: Any, **options: Any) -> Any:
        """Send it, as a group."""
        return self.group().apply_async(args, kwargs, **options)

    def apply(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run it here and now."""
        return self.group().apply(args, kwargs, **options)

    def group(self) -> group:
        """A group of `xstarmap`s."""
        task, it, n = (self["kwargs"][key] for key in ("task", "it", "n"))
        return group((xstarmap(task, part, app=self._app) for part in _cut(it, n)), app=self._app)

    @classmethod
    def apply_chunks(cls, task: Any, it: Iterable[Any], n: int, app: Any = None) -> Any:
        """Send the chunks of `it`."""
        return cls(task, it, n, app=app)()


def _cut(items: Iterable[Any], n: int) -> Iterable[list[Any]]:
    rest = iter(items)
    while part := list(islice(rest, n)):
        yield part
