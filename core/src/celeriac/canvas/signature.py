"""One call as a value: a dict with Celery's keys, so that it travels in messages as it is.

A signature is started in three steps, and shapes of several calls differ in how they take them: *clone* (with the
arguments and options of this call), *freeze* (fix all ids), *begin* (hand the first calls to a `Launch`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from celeriac import _state
from celeriac.canvas.launch import Launch, send
from celeriac.canvas.stamping import stamp_call, stamp_links
from celeriac.utils.ids import next_id

if TYPE_CHECKING:
    from celeriac.canvas.stamping import StampingVisitor


class Place(NamedTuple):
    """Which call a signature will be and where it stands, as far as that is known; see `Signature.freeze`."""

    task_id: str | None = None
    group_id: str | None = None
    chord: Any = None
    root_id: str | None = None
    parent_id: str | None = None
    group_index: int | None = None


#: Options that say this; a copy for several calls must not take them along.
PLACE: frozenset[str] = frozenset(Place._fields)


class Signature(dict[str, Any]):
    """A task name with arguments and options, to be called later or handed on.

    Keys: `task`, `args`, `kwargs`, `options`, `subtask_type`, `immutable`.

    Args:
        task: A name, a task, or another signature's dict.
        type: A task, whose name is taken.
        immutable: Arguments given later (a parent's result) are not added.
        extra: More options.
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
        task = type if task is None else task
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
        if shape is not None and not issubclass(cls, shape):
            return shape.from_dict(data, app=app)
        return cls(
            data.get("task"),
            data.get("args"),
            data.get("kwargs"),
            data.get("options"),
            subtask_type=data.get("subtask_type"),
            immutable=bool(data.get("immutable")),
            app=app,
        )

    @classmethod
    def register_type(cls, name: str | None = None) -> Any:
        """Decorates the class of a shape, which is found by `subtask_type` from then on."""

        def register(shape: type[Signature]) -> type[Signature]:
            cls.SHAPES[name or shape.__name__] = shape
            return shape

        return register

    # -- what it is -----------------------------------------------------------------------------------------

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

    def _item(key: str) -> Any:  # type: ignore[misc]
        def read(self: Signature) -> Any:
            return self[key]

        def write(self: Signature, value: Any) -> None:
            self[key] = value

        return property(read, write, doc=f"The key `{key}`.")

    task = _item("task")
    args = _item("args")
    kwargs = _item("kwargs")
    options = _item("options")
    immutable = _item("immutable")
    subtask_type = _item("subtask_type")
    del _item

    @property
    def id(self) -> str | None:
        """The task id, once frozen."""
        return self["options"].get("task_id")  # type: ignore[no-any-return]

    @property
    def parent_id(self) -> str | None:
        """The id of the call that makes this one, if fixed."""
        return self["options"].get("parent_id")  # type: ignore[no-any-return]

    @property
    def root_id(self) -> str | None:
        """The id of the first call of the tree, if fixed."""
        return self["options"].get("root_id")  # type: ignore[no-any-return]

    @property
    def AsyncResult(self) -> Any:
        """Makes the result of a call by its id."""
        task = self.app.tasks.get(self["task"])
        return self.app.AsyncResult if task is None else task.AsyncResult

    # -- calling --------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task here, with these arguments added."""
        merged_args, merged_kwargs, _ = self.merged(args, kwargs, {})
        return self.type(*merged_args, **merged_kwargs)

    def __invert__(self) -> Any:
        """`~signature`: send it and wait for its result."""
        return self.apply_async().get()

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """`apply_async(args, kwargs)`."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self, args: Any = (), kwargs: Mapping[str, Any] | None = None, route_name: str | None = None, **options: Any
    ) -> Any:
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

    def launch(self, launch: Launch, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Hand over its first calls, with ids fixed in a copy of it; returns the result to be."""
        copy = self.clone(args, kwargs, **options)
        result = copy.freeze()
        copy.begin(launch)
        return result

    def begin(self, launch: Launch, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> None:
        """Hand over its first calls; it is frozen."""
        merged_args, merged_kwargs, merged_options = self.merged(args, kwargs or {}, options)
        task_id = str(merged_options.pop("task_id", None) or next_id())
        launch.call(self["task"], merged_args, merged_kwargs, task_id, merged_options)

    # -- making others of it --------------------------------------------------------------------------------

    def merged(
        self, args: Any, kwargs: Mapping[str, Any], options: Mapping[str, Any], force: bool = False
    ) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
        """Its arguments with others added: positional ones go in front, keywords and options win.

        Args:
            force: Add arguments even if it is immutable.
        """
        own = self["options"]
        new_options = {**own, **options} if options else dict(own)
        if options and own:
            stamps = own.get("stamped_headers") or ()
            for key in ("group_id", "stamped_headers", *stamps):
                if key in own:  # what it was stamped with stays, and so does the group that it is a part of
                    new_options[key] = own[key]
        for key in ("link", "link_error"):
            if isinstance(new_options.get(key), list):
                new_options[key] = list(new_options[key])
        if self["immutable"] and not force:
            return tuple(self["args"]), dict(self["kwargs"]), new_options
        return (*(args or ()), *self["args"]), {**self["kwargs"], **kwargs}, new_options

    def clone(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Signature:
        """A copy, with these arguments and options added."""
        merged_args, merged_kwargs, merged_options = self.merged(args, kwargs or {}, options)
        copy = type(self).__new__(type(self))
        dict.__init__(copy, self)
        copy._app = self._app
        if "link" in merged_options or "link_error" in merged_options:
            with_own_links(merged_options)
        copy.update(args=merged_args, kwargs=merged_kwargs, options=merged_options)
        return copy

    partial = clone

    def replace(self, args: Any = None, kwargs: Any = None, options: Any = None) -> Signature:
        """A copy with these instead of its own."""
        copy = self.clone()
        for key, value in (("args", args), ("kwargs", kwargs), ("options", options)):
            if value is not None:
                copy[key] = value
        return copy

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> Any:
        """Fix its task id now, and its place; returns the result that the call will have.

        Frozen again, it keeps its id and its group. What shapes of several calls fix, and which result is theirs, is
        said by their `fix`.
        """
        return self.fix(Place(_id, group_id, chord, root_id, parent_id, group_index))

    _freeze = freeze

    def fix(self, place: Place) -> Any:
        """See `freeze`."""
        own, app = self["options"], self.app
        task_id, group_id, chord, root_id, parent_id, group_index = place
        task_id = own["task_id"] = str(own.get("task_id") or task_id or next_id())
        if "reply_to" not in own:
            own["reply_to"] = app.thread_oid
        if root_id is not None:
            own["root_id"] = root_id
        if parent_id is not None:
            own["parent_id"] = parent_id
        if chord is not None:
            own["chord"] = chord
        if group_id is not None and own.get("group_id") is None:
            own["group_id"] = group_id
        if group_index is not None and own.get("group_index") is None:
            own["group_index"] = group_index
        result = app.AsyncResult(task_id, task_name=self["task"])
        ignored, task = own.get("ignore_result"), app.tasks.get(self["task"])
        result.ignored = bool(task.ignore_result if ignored is None and task is not None else ignored)
        return result

    def last(self) -> Signature:
        """The call whose result is its result."""
        return self

    def set(self, immutable: bool | None = None, **options: Any) -> Signature:
        """Set options; returns itself."""
        if immutable is not None:
            self.set_immutable(immutable)
        self["options"].update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Make it take no more arguments, or again."""
        self["immutable"] = immutable

    def election(self) -> Any:
        """Send it; one worker runs it, as each message is run by one. Returns the result."""
        return self.apply_async()

    # -- callbacks ------------------------------------------------------------------------------------------

    def link(self, callback: Any) -> Any:
        """Call `callback` with the result when the task has returned."""
        return self.append_to_list_option("link", callback)

    def link_error(self, errback: Any) -> Any:
        """Call `errback` when the task has failed."""
        return self.append_to_list_option("link_error", errback)

    def on_error(self, errback: Any) -> Signature:
        """`link_error`, returning itself."""
        self.link_error(errback)
        return self

    def append_to_list_option(self, key: str, value: Any) -> Any:
        """Add a value to a list among its options, unless it is there."""
        items = self._list_option(key)
        if value not in items:
            items.append(value)
        return value

    def extend_list_option(self, key: str, value: Any) -> None:
        """Add all of `value`, one or many."""
        many = isinstance(value, (list, tuple, set)) or (isinstance(value, Iterable) and not isinstance(value, dict))
        self._list_option(key).extend(value if many else [value])

    def flatten_links(self) -> list[Signature]:
        """Itself and all callbacks, theirs included."""
        found = [self]
        for callback in as_list(self["options"].get("link")):
            found.extend(maybe_signature(callback, app=self._app).flatten_links())
        return found

    def _list_option(self, key: str) -> list[Any]:
        items = self["options"].setdefault(key, [])
        if not isinstance(items, list):
            items = self["options"][key] = as_list(items)
        return items

    # -- stamps ---------------------------------------------------------------------------------------------

    def stamp(self, visitor: StampingVisitor | None = None, append_stamps: bool = False, **headers: Any) -> Signature:
        """Put stamps on it and on its callbacks; see `StampingVisitor`.

        Args:
            append_stamps: Values are added to those of an earlier stamp of the same name, not put in their place.
            headers: Stamps by name.
        """
        stamp_call(self, visitor, append_stamps, headers)
        return self

    def stamp_links(self, visitor: StampingVisitor, append_stamps: bool = False, **headers: Any) -> None:
        """Put stamps on its callbacks only."""
        stamp_links(self, visitor, append_stamps, headers)

    # -- shapes ---------------------------------------------------------------------------------------------

    def __or__(self, other: Any) -> Any:
        """`a | b`: `b` is called with the result of `a`."""
        return Signature.SHAPES["chain"](self, other, app=self._app) if isinstance(other, Signature) else NotImplemented

    def __ior__(self, other: Any) -> Any:
        """`a |= b`: as `a = a | b`, and not what it is for a dict."""
        return self.__or__(other)

    # -- as text and bytes ----------------------------------------------------------------------------------

    def reprcall(self, *args: Any, **kwargs: Any) -> str:
        """It as a call, with these arguments added."""
        merged_args, merged_kwargs, _ = self.merged(args, kwargs, {}, force=True)
        shown = [repr(arg) for arg in merged_args] + [f"{key}={value!r}" for key, value in merged_kwargs.items()]
        return f"{self['task']}({', '.join(shown)})"

    def __repr__(self) -> str:
        return self.reprcall()

    def __reduce__(self) -> Any:
        return signature, (dict(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Signature:
        return self.clone()

    def __json__(self) -> dict[str, Any]:
        return dict(self)


def signature(task: Any, *args: Any, **kwargs: Any) -> Signature:
    """A signature from a task, a name, or a dict that came over the wire (a copy, if it is a signature already)."""
    if isinstance(task, dict):
        if isinstance(task, Signature):
            return task.clone()
        return Signature.from_dict(task, app=kwargs.get("app"))
    return Signature(task, *args, **kwargs)


subtask = signature


def maybe_signature(data: Any, app: Any = None, clone: bool = False) -> Any:
    """A signature from a dict; other things (None) as they are."""
    if isinstance(data, Signature):
        if clone:
            data = data.clone()
        if app is not None and data._app is None:
            data._app = app
        return data
    return Signature.from_dict(data, app=app) if isinstance(data, dict) else data


def with_own_links(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a copy, with copies of callbacks: what is done to these is done to nobody else's. Changed in place."""
    for key in ("link", "link_error"):
        links = options.get(key)
        if isinstance(links, (list, tuple)):
            options[key] = [link.clone() if isinstance(link, Signature) else link for link in links]
        elif isinstance(links, Signature):
            options[key] = links.clone()
    return options


def as_list(value: Any) -> list[Any]:
    """One or many as a list; None is none."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def sent(signature: Signature, args: Any, kwargs: Any, options: Mapping[str, Any], add_to_parent: bool = True) -> Any:
    """Send a shape of several calls, in as few exchanges with the broker as possible; returns its result."""
    return send(
        signature.app, lambda launch: signature.launch(launch, args, kwargs, **options), add_to_parent=add_to_parent
    )
