"""A group: several calls at once, sent together, with one result for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celeriac.canvas.composite import Composite, members_of
from celeriac.canvas.launch import Launch
from celeriac.canvas.signature import Signature, maybe_signature
from celeriac.result import GroupResult
from celeriac.utils.ids import next_id


@Signature.register_type("group")
class group(Composite):
    """Calls that run side by side: `group(add.s(2, 2), add.s(4, 4))()`, or of an iterable of signatures.

    Sent in bulk: a thousand calls cost the broker a few exchanges, not a thousand. Groups in it are taken apart.
    """

    shape = "group"

    def __init__(self, *tasks: Any, app: Any = None, **options: Any) -> None:
        super().__init__("celery.group", (), {"tasks": flat(members_of(tasks, app))}, options, subtask_type="group")
        self._app = app

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], app: Any = None) -> group:
        """See `Signature.from_dict`."""
        return cls(list(data["kwargs"]["tasks"]), app=app, **data.get("options") or {})

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Send all, with these arguments in front of each one's own."""
        return self.apply_async(args, **options)

    def apply_async(self, args: Any = (), kwargs: Any = None, *words: Any, **options: Any) -> Any:
        """Send all; arguments and options are added to those of each.

        Raises:
            TypeError: `link` or `link_error` was given; they belong to members.
            OperationalError: As `Task.apply_async`; members sent in exchanges before that one may have been taken.
        """
        if options.get("link") is not None or options.get("link_error") is not None:
            raise TypeError("a group has no callbacks of its own: link them to its members")
        return super().apply_async(args, kwargs, *words, **options)

    def launch(self, launch: Launch, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """See `Signature.launch`: a member at a time, so that a long group needs little memory."""
        place, for_members, link, link_error = self._own_options(options)
        group_id = place.get("task_id") or next_id()
        results = []
        for index, member in enumerate(self.tasks):
            copy = member.clone(args, kwargs, **for_members)
            results.append(copy.freeze(group_id=group_id, group_index=index, root_id=place.get("root_id")))
            if index == 0:
                copy_links(copy, link)
            for errback in link_error:
                copy.link_error(maybe_signature(errback, app=self._app, clone=True))
            copy.begin(launch)
        return GroupResult(group_id, results, app=self.app)

    def begin(self, launch: Launch, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> None:
        """See `Signature.begin`."""
        for member in self.tasks:
            member.begin(launch, args, kwargs, **options)

    def apply(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run all here and now, one after the other."""
        place, for_members, _, _ = self._own_options(options)
        results = [member.apply(args, kwargs, **for_members) for member in self.tasks]
        return GroupResult(place.get("task_id") or next_id(), results, app=self.app)

    def clone(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> group:
        """A copy, with arguments and options added to each member."""
        place = {key: options.pop(key) for key in ("task_id",) if key in options}
        copy = group.__new__(group)
        Signature.__init__(copy, self, app=self._app)
        members = [member.clone(args, kwargs, **options) for member in self.tasks]
        copy.update(kwargs={"tasks": members}, options={**self["options"], **place})
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
        """Fix the ids of the group and of all members now."""
        own = self["options"].setdefault("task_id", _id or next_id())
        results = [
            member.freeze(group_id=own, chord=chord, root_id=root_id, parent_id=parent_id, group_index=index)
            for index, member in enumerate(self.tasks)
        ]
        return GroupResult(own, results, app=self.app)

    _freeze = freeze

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> group:
        """Let members begin one after the other: each gets a countdown, `start`, `start + step` … seconds, below `stop`
        (where it begins anew). Returns itself."""
        countdown = start
        for member in self.tasks:
            member.set(countdown=countdown)
            countdown += step
            if stop is not None and countdown >= stop:
                countdown = start
        return self

    def link(self, callback: Any) -> Any:
        """Call `callback` with the result of the first member."""
        return self.tasks[0].link(maybe_signature(callback, app=self._app, clone=True).set(immutable=True))

    def link_error(self, errback: Any) -> Any:
        """Call `errback` for each member that has failed."""
        for member in self.tasks:
            member.link_error(maybe_signature(errback, app=self._app, clone=True))
        return errback

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Signature:
        """Put stamps on its members."""
        if visitor is not None:
            headers = {**headers, **(visitor.on_group_start(self, **headers) or {})}
        for member in self.tasks:
            member.stamp(visitor, append_stamps, **headers)
        if visitor is not None:
            visitor.on_group_end(self, **headers)
        return self

    def __repr__(self) -> str:
        return f"group([{', '.join(map(repr, self.tasks))}])"


def flat(members: list[Signature]) -> list[Signature]:
    """Members, with groups among them taken apart."""
    if not any(type(member) is group for member in members):
        return members
    found: list[Signature] = []
    for member in members:
        found.extend(flat(member.tasks) if isinstance(member, group) else [member])
    return found


def copy_links(member: Signature, callbacks: list[Any]) -> None:
    """Give a member these callbacks."""
    for callback in callbacks:
        member.link(callback)
