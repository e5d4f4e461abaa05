"""A chord: a group, and a body that is called once with the list of all its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from celeriac.canvas.composite import Composite, as_one, follow, give
from celeriac.canvas.group import flat, group
from celeriac.canvas.launch import Launch, patience_of
from celeriac.canvas.signature import Place, Signature, maybe_signature, with_own_links
from celeriac.exceptions import Unsupported
from celeriac.result import GroupResult
from celeriac.utils.ids import next_id

#: Options of a call that say when the header begins, and nothing about the body.
FOR_HEADER_ONLY = frozenset({"countdown", "eta"})


@Signature.register_type("chord")
class chord(Composite):
    """A header of calls that run side by side, and a body that is called with the list of their results, in order:
    `chord(add.s(n, n) for n in range(3))(total.s())`.

    Args:
        header: Signatures, a group, or any iterable of signatures.
        body: A signature, of any shape. If one of the header fails, the body's result is a `ChordError`.
    """

    shape = "chord"

    def __init__(
        self,
        header: Any,
        body: Any = None,
        task: str = "celery.chord",
        args: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        app: Any = None,
        **options: Any,
    ) -> None:
        header = maybe_signature(header, app=app) if isinstance(header, dict) else header
        members = header.tasks if isinstance(header, group) else [header] if isinstance(header, Signature) else header
        if isinstance(header, group) and header.id:
            options.setdefault("task_id", header.id)
        parts = flat([maybe_signature(member, app=app) for member in members])
        wrapped: Any = parts
        if isinstance(header, group) and header.id:  # frozen: as Celery has it then
            wrapped = group(app=app, **header["options"])
            wrapped.tasks = parts
        super().__init__(
            task,
            tuple(args or ()),
            {"kwargs": dict(kwargs or {}), "header": wrapped, "body": maybe_signature(body, app=app)},
            options,
            subtask_type="chord",
            app=app,
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], app: Any = None) -> chord:
        """See `Signature.from_dict`."""
        kwargs = data["kwargs"]
        return cls(
            kwargs["header"],
            kwargs.get("body"),
            args=data.get("args"),
            kwargs=kwargs.get("kwargs"),
            app=app,
            **data.get("options") or {},
        )

    @property
    def tasks(self) -> list[Signature]:
        """The header's members."""
        header = self["kwargs"]["header"]
        return header.tasks if isinstance(header, group) else header

    @tasks.setter
    def tasks(self, value: list[Signature]) -> None:
        self["kwargs"]["header"] = value

    @property
    def header(self) -> list[Signature]:
        """The same as `tasks`."""
        return self.tasks

    @property
    def body(self) -> Any:
        """What is called at the end; None until it is given."""
        return self["kwargs"]["body"]

    @body.setter
    def body(self, value: Any) -> None:
        self["kwargs"]["body"] = value

    def __call__(self, body: Any = None, **options: Any) -> Any:
        """Send it, with this body if it has none."""
        return self.apply_async((), {"body": body} if body is not None else {}, **options)

    def apply_async(self, args: Any = (), kwargs: Any = None, *words: Any, **options: Any) -> Any:
        """Send it; arguments are added to the header's, options to header and body (`countdown` and `eta`: the
        header's).

        Args:
            kwargs: May hold a `body`.
        Returns:
            The body's result, whose `parent` is the header's.
        Raises:
            TypeError: It has no body.
            NoResultBackend, ChordsUnsupported: The app's results cannot be joined.
        """
        kwargs = dict(kwargs or {})
        body = kwargs.pop("body", None)
        if body is not None:
            return self.with_body(body).apply_async(args, kwargs, *words, **options)
        if self.body is None:
            raise TypeError(f"{self!r} has no body: chord(header)(body), or chord(header, body)()")
        return super().apply_async(args, kwargs, *words, **options)

    def with_body(self, body: Any) -> chord:
        """A copy with this body."""
        copy = self.clone()
        copy.body = maybe_signature(body, app=self._app, clone=True)
        return copy

    def then(self, step: Signature) -> chord:
        """A copy whose body is followed by `step`."""
        copy = self.clone()
        last = copy
        while (inner := _ends_in(last.body)) is not None:  # a body ends in a chord, whose body ends in one …
            last = inner
        step = maybe_signature(step, app=self._app, clone=True)
        last.body = step if last.body is None else last.body | step
        return copy

    def launch(self, launch: Launch, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """See `Signature.launch`: a part at a time, so that a long header needs little memory."""
        body_id = options.pop("task_id", None)  # its own is the header's
        place, every, link, link_error = self._own_options(options)
        group_id = self._group_id()
        body = self._body_for(every, link, link_error)
        result = body.freeze(
            body_id,
            place.get("group_id"),
            place.get("chord"),
            place.get("root_id"),
            group_index=place.get("group_index"),
        )
        if not self.tasks:
            body.begin(launch, ([],))
            return follow(result, GroupResult(group_id, [], app=self.app))
        for_header, errbacks = self._for_header(every, link_error)
        results: list[Any] = []
        self._refuse_apart()
        copies = [] if self._counts() else [as_one(member.clone(args, kwargs, **for_header)) for member in self.tasks]
        for index, copy in enumerate(copies):  # a backend that cannot count needs all ids beforehand
            results.append(copy.freeze(group_id=group_id, chord=body, group_index=index, root_id=place.get("root_id")))
        launch.open(
            group_id,
            len(self.tasks),
            body,
            patience_of(self.app, self.tasks, for_header),
            lambda: [one.as_tuple() for one in results],
        )
        for index, member in enumerate(self.tasks):
            copy = copies[index] if copies else as_one(member.clone(args, kwargs, **for_header))
            if not copies:
                results.append(
                    copy.freeze(group_id=group_id, chord=body, group_index=index, root_id=place.get("root_id"))
                )
            give(copy, (), errbacks, self._app)
            copy.begin(launch)
        return follow(result, GroupResult(group_id, results, app=self.app))

    def begin(self, launch: Launch, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> None:
        """See `Signature.begin`. Its ids are fixed, so launching it once more fixes the same."""
        self.launch(launch, args, kwargs, **options)

    def apply(
        self,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        propagate: bool = True,
        body: Any = None,
        **options: Any,
    ) -> Any:
        """Run header and body here and now.

        Raises:
            Exception: What one of the header has raised; with `propagate` false the body gets it among the values.
        """
        body_id = options.pop("task_id", None)
        raising = {"throw": options.pop("throw")} if "throw" in options else {}
        _, every, link, link_error = self._own_options(options)
        chosen = self if body is None else self.with_body(body)
        last = chosen._body_for(every, link, link_error)
        for_header, _ = self._for_header(every, [])
        header = group(self.tasks, app=self._app).apply(args, kwargs, **for_header, **raising)
        if body_id:
            last.last().set(task_id=body_id)
        values = header.get(propagate=propagate, disable_sync_subtasks=False)
        return follow(last.apply((values,), **raising), header)

    def clone(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> chord:
        """A copy, with arguments and options added to the header."""
        kwargs = dict(kwargs or {})
        body = maybe_signature(kwargs.pop("body", None), app=self._app) or self.body
        copy = chord.__new__(chord)
        Signature.__init__(copy, self, app=self._app)
        header = [member.clone(args, kwargs) for member in self.tasks]
        copy.update(
            kwargs={
                "kwargs": dict(self["kwargs"].get("kwargs") or {}),
                "header": header,
                "body": body and body.clone(),
            },
            options=with_own_links({**self["options"], **options}),
        )
        return copy

    def fix(self, place: Place) -> Any:
        """Fix the ids of header and body now; the result is the body's, whose `parent` is the header's.

        Its parts learn of group and body only when it begins, and its own id is the header's: so Celery's workers, who
        begin it as well as ours, expect it.
        """
        root_id, parent_id = place.root_id, place.parent_id
        of_body = self._own_place(place)._replace(task_id=place.task_id, root_id=root_id, parent_id=parent_id)
        result = self._ready_body(of_body.chord).fix(of_body)
        header_id = self["options"]["task_id"] = self._group_id()
        self.tasks = [as_one(member) for member in self.tasks]
        results = [
            member.freeze(root_id=root_id, parent_id=parent_id, group_index=index)
            for index, member in enumerate(self.tasks)
        ]
        header = group(app=self._app, task_id=header_id)
        header.tasks = self.tasks
        self["kwargs"]["header"] = header
        return follow(result, GroupResult(header_id, results, app=self.app))

    def last(self) -> Signature:
        """See `Signature.last`."""
        return self.body.last() if self.body is not None else self

    @property
    def id(self) -> str | None:
        """The body's id, once frozen."""
        return None if self.body is None else self.last()["options"].get("task_id")

    def link(self, callback: Any) -> Any:
        """Call `callback` with the body's result."""
        return self.body.link(callback) if self.body is not None else self.append_to_list_option("link", callback)

    def link_error(self, errback: Any) -> Any:
        """Call `errback` when the body has failed, or cannot be called; with `task_allow_error_cb_on_chord_header`
        also when one of the header has."""
        if self.app.conf["task_allow_error_cb_on_chord_header"]:
            super().link_error(errback)
        if self.body is None:
            return self.append_to_list_option("link_error", errback)
        self.body.link_error(errback)
        return errback

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Signature:
        """Put stamps on header and body."""
        header = group(self.tasks, app=self._app)
        of_header = dict(headers)
        if visitor is not None:
            of_header.update(visitor.on_chord_header_start(self, **headers) or {})
        for member in header.tasks:
            member.stamp(visitor, append_stamps, **of_header)
        self.tasks = header.tasks
        of_body = dict(of_header)
        if visitor is not None:
            visitor.on_chord_header_end(self, **of_header)
            of_body.update(visitor.on_chord_body(self, **of_header) or {})
        if self.body is not None:
            self.body.stamp(visitor, append_stamps, **of_body)
        return self

    # -- parts ----------------------------------------------------------------------------------------------

    def _group_id(self) -> str:
        """The id of the header's group: its own, or that of its parts, if they were frozen before."""
        found = self["options"].get("task_id")
        if not found and self.tasks:
            found = self.tasks[0].last()["options"].get("group_id")
        return str(found or next_id())

    def _ready_body(self, chord: Any) -> Any:
        """Its body; a group that is itself part of a chord counts as one call, which collects it."""
        if self.body is None:
            raise TypeError(f"{self!r} has no body")
        if chord is not None:
            self.body = as_one(self.body)
        return self.body

    def _body_for(self, options: Mapping[str, Any], link: list[Any], link_error: list[Any]) -> Any:
        """A copy of the body with a call's options."""
        body = self._ready_body(self["options"].get("chord"))
        body = body.clone(**{key: value for key, value in options.items() if key not in FOR_HEADER_ONLY})
        give(body, link, link_error, self._app)
        return body

    def _for_header(self, options: Mapping[str, Any], link_error: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Options and errbacks of the header's calls."""
        errbacks = link_error if self.app.conf["task_allow_error_cb_on_chord_header"] else []
        return {key: value for key, value in options.items() if key != "chain"}, errbacks

    def _refuse_apart(self) -> None:
        """A message that polls looks for all parts in the app's results, so none may lie elsewhere.

        Raises:
            Unsupported: One does.
        """
        if not self.app.has_own_stores or self._counts():
            return
        for member in self.tasks:
            for name in _names_in(member):
                if self.app.store_of(name) is not self.app.backend:
                    raise Unsupported(
                        f"a chord has a part {name}, whose results are in a store of its own, and the app's result "
                        "backend does not join chords itself (the ability count): it would look for it in vain. Give "
                        "the app a backend that does, such as redis, database or sqlite, or the task the app's."
                    )

    def _counts(self) -> bool:
        plugin = self.app.backend.plugin
        return plugin is not None and "count" in plugin.abilities

    def __repr__(self) -> str:
        return f"chord({self.tasks!r}, {self.body!r})"


def _ends_in(body: Any) -> chord | None:
    """The chord that a body is, or that is its last step; None if there is none, or more to the body than its steps."""
    if body is not None and body["subtask_type"] == "chain" and body.tasks and not body["options"]:
        body = body.tasks[-1]
    return body if isinstance(body, chord) else None


def _names_in(signature: Any) -> Iterator[str]:
    """Of the tasks in a canvas."""
    for member in getattr(signature, "tasks", ()):
        yield from _names_in(member)
    body = getattr(signature, "body", None)
    if body is not None:
        yield from _names_in(body)
    if not hasattr(signature, "tasks"):
        yield signature["task"]


_chord = chord
