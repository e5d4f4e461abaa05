"""One call as a value: a dict with Celery's keys, so that it travels in messages as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from celeriac import _state
from celeriac.utils.ids import uuid


class Signature(dict[str, Any]):
    """A task name with arguments and options, to be called later or handed on.

    Keys: `task`, `args`, `kwargs`, `options`, `subtask_type`, `immutable`.

    Args:
        task: A name, a task, or another signature's dict.
        immutable: Arguments given later (a parent's result) are not added.
    """

    #: `subtask_type` → the class of that shape; how `|` and `from_dict` find them.
    SHAPES: ClassVar[dict[str, type[Signature]]] = {}

    def __init__(
        self,
        task: Any = None,
        args: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        type: Any = None,
        subtask_type: str | None = None,
        immutable: bool = False,
        app: Any = None,
        **extra: Any,
    ) -> None:
        self._app = app
        if isinstance(task, dict):
            super().__init__(task)
            return
        super().__init__(
            task=task if isinstance(task, str) or task is None else task.name,
            args=tuple(args or ()),
            kwargs=dict(kwargs or {}),
            options={**(options or {}), **extra},
            subtask_type=subtask_type,
            immutable=immutable,
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], app: Any = None) -> Signature:
        """The signature in a dict that came over the wire, in its own shape."""
        shape = Signature.SHAPES.get(data.get("subtask_type") or "")
        if shape is not None and shape is not cls:
            return shape.from_dict(data, app=app)
        return cls(dict(data), app=app)

    @classmethod
    def register_type(cls, name: str) -> Any:
        """Decorates the class of a shape."""

        def register(shape: type[Signature]) -> type[Signature]:
            cls.SHAPES[name] = shape
            return shape

        return register

    @property
    def app(self) -> Any:
        """The app in which it will be called."""
        return self._app or _state.get_current_app()

    @property
    def type(self) -> Any:
        """The task, when it is registered here."""
        return self.app.tasks[self["task"]]

    @property
    def name(self) -> str:
        """The task's name."""
        return self["task"]  # type: ignore[no-any-return]

    task = property(lambda self: self["task"])
    args = property(lambda self: self["args"])
    kwargs = property(lambda self: self["kwargs"])
    options = property(lambda self: self["options"])
    immutable = property(lambda self: self["immutable"])
    subtask_type = property(lambda self: self["subtask_type"])

    @property
    def id(self) -> str | None:
        """The task id, once frozen or called."""
        found: str | None = self["options"].get("task_id")
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task here, with these arguments added."""
        merged_args, merged_kwargs, _ = self.merged(args, kwargs, {})
        return self.type(*merged_args, **merged_kwargs)

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """`apply_async(args, kwargs)`."""
        return self.apply_async(args, kwargs)

    def apply_async(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Send it, with these arguments and options added; see `Task.apply_async`."""
        merged_args, merged_kwargs, merged_options = self.merged(args, kwargs or {}, options)
        task = self.app.tasks.get(self["task"])
        if task is not None:
            return task.apply_async(merged_args, merged_kwargs, **merged_options)
        return self.app.send_task(self["task"], merged_args, merged_kwargs, **merged_options)

    async def adelay(self, *args: Any, **kwargs: Any) -> Any:
        """As `delay`, for coroutines: whoever shares their loop goes on meanwhile."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """As `apply_async`, for coroutines."""
        from celeriac.awaiting import aside

        return await aside(self.apply_async, args, kwargs, **options)

    def apply(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run it here and now; see `Task.apply`."""
        merged_args, merged_kwargs, merged_options = self.merged(args, kwargs or {}, options)
        return self.type.apply(merged_args, merged_kwargs, **merged_options)

    def merged(self, args: Any, kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Its arguments with others added: positional ones go in front, keywords and options win."""
        new_options = {**self["options"], **options}
        if self["immutable"]:
            return tuple(self["args"]), dict(self["kwargs"]), new_options
        return (*args, *self["args"]), {**self["kwargs"], **kwargs}, new_options

    def clone(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Signature:
        """A copy, with these arguments and options added."""
        merged_args, merged_kwargs, merged_options = self.merged(args, kwargs or {}, options)
        copy = Signature(dict(self), app=self._app)
        copy.update(args=merged_args, kwargs=merged_kwargs, options=merged_options)
        return copy

    partial = clone

    def freeze(self, _id: str | None = None, **options: Any) -> Any:
        """Fix the task id (and other options) now; returns the result that the call will have."""
        own = self["options"]
        own.update({key: value for key, value in options.items() if value is not None})
        task_id = own.setdefault("task_id", _id or uuid())
        own.setdefault("reply_to", self.app.thread_oid)
        return self.app.AsyncResult(task_id, task_name=self["task"])

    def set(self, immutable: bool | None = None, **options: Any) -> Signature:
        """Set options of the call; returns itself."""
        if immutable is not None:
            self["immutable"] = immutable
        self["options"].update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Make it take no more arguments, or again."""
        self["immutable"] = immutable

    def link(self, callback: Any) -> Any:
        """Call `callback` with the result when the task has returned."""
        return self._append("link", callback)

    def link_error(self, errback: Any) -> Any:
        """Call `errback` when the task has failed."""
        return self._append("link_error", errback)

    def on_error(self, errback: Any) -> Signature:
        """`link_error`, returning itself."""
        self.link_error(errback)
        return self

    def __or__(self, other: Any) -> Any:
        """`a | b`: `b` is called with the result of `a`."""
        return Signature.SHAPES["chain"](self, other, app=self._app) if isinstance(other, Signature) else NotImplemented

    def _append(self, key: str, value: Any) -> Any:
        items = self["options"].setdefault(key, [])
        if not isinstance(items, list):
            items = self["options"][key] = [items]
        if value not in items:
            items.append(value)
        return value

    def __repr__(self) -> str:
        shown = [repr(arg) for arg in self["args"]] + [f"{key}={value!r}" for key, value in self["kwargs"].items()]
        return f"{self['task']}({', '.join(shown)})"

    def __reduce__(self) -> Any:
        return Signature, (dict(self),)

    def __json__(self) -> dict[str, Any]:
        return dict(self)


def signature(task: Any, *args: Any, **kwargs: Any) -> Signature:
    """A signature from a task, a name, or a dict that came over the wire."""
    if isinstance(task, dict):
        if isinstance(task, Signature):
            return task.clone()
        return Signature.from_dict(task, app=kwargs.get("app"))
    return Signature(task, *args, **kwargs)


def maybe_signature(data: Any, app: Any = None, clone: bool = False) -> Any:
    """A signature from a dict; other things (None) as they are."""
    if isinstance(data, Signature):
        return data.clone() if clone else data
    return Signature.from_dict(data, app=app) if isinstance(data, dict) else data
