"""A group: several calls at once, sent together, with one result for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from celeriac import _state
from celeriac.canvas.composite import Composite, give, members_of
from celeriac.canvas.launch import Launch
from celeriac.canvas.signature import Place, Signature, maybe_signature, with_own_links
from celeriac.canvas.stream import Stream
from celeriac.result import GroupResult
from celeriac.utils.ids import next_id


@Signature.register_type("group")
class group(Composite):
    """Calls that run side by side: `group(add.s(2, 2), add.s(4, 4))()`, or of an iterable of signatures.

    Sent in bulk: a thousand calls cost the broker a few exchanges, not a thousand. Groups in it are taken apart.

    Of a generator, or another iterator, members are taken as they are sent, and of each only its arguments are kept:
    so a long group needs little more memory than its results. What the generator raises is raised by `apply_async`
    then, and members before that may have been sent.
    """

    shape = "group"
    #: Where its members come from, as long as nobody wanted them all at once; the key `kwargs` is missing until then.
    _stream: Stream | None = None

    def __init__(self, *tasks: Any, app: Any = None, **options: Any) -> None:
        streamed = len(tasks) == 1 and isinstance(tasks[0], Iterator)
        members = [] if streamed else flat(members_of(tasks, app))
        super().__init__("celery.group", (), {"tasks": members}, options, subtask_type="group")
        self._app = app
        if streamed:
            self._stream = Stream(tasks[0], app, flat)
            del self["kwargs"]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], app: Any = None) -> group:
        """See `Signature.from_dict`."""
        return cls(list(data["kwargs"]["tasks"]), app=app, **data.get("options") or {})

    @property
    def app(self) -> Any:
        """The app of its members."""
        if self._stream is None or self._app is not None:
            return super().app
        first = self._stream.first()
        return _state.get_current_app() if first is None else first.app

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
        results, root_id = [], place.get("root_id")
        for index, member in enumerate(self.tasks if self._stream is None else self._stream):
            copy = member.clone(args, kwargs, **for_members)
            results.append(copy.fix(Place(None, group_id, None, root_id, None, index)))
            if link_error or (link and index == 0):
                give(copy, link if index == 0 else (), link_error, self._app)
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
        copy.update(kwargs={"tasks": members}, options=with_own_links({**self["options"], **place}))
        return copy

    def fix(self, place: Place) -> Any:
        """Fix the ids of the group and of all members now."""
        own = self["options"].setdefault("task_id", place.task_id or next_id())
        each = place._replace(task_id=None, group_id=own)
        results = [member.fix(each._replace(group_index=index)) for index, member in enumerate(self.tasks)]
        return GroupResult(own, results, app=self.app)

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

    # As a dict it has all its keys, whoever asks: with the first question members are no stream any more.

    def __missing__(self, key: str) -> Any:
        if key != "kwargs" or self._stream is None:
            raise KeyError(key)
        stream, self._stream = self._stream, None
        self["kwargs"] = {"tasks": list(stream)}
        for behind in ("options", "subtask_type", "immutable"):  # as they stand in every other signature
            self[behind] = self.pop(behind)
        return self["kwargs"]

    def _whole(self) -> group:
        if self._stream is not None:
            self["kwargs"]
        return self

    def __iter__(self) -> Iterator[str]:  # whoever copies a dict that has its own asks `keys` and `[]`
        return dict.__iter__(self._whole())

    def __contains__(self, key: object) -> bool:
        return dict.__contains__(self._whole(), key)

    def __eq__(self, other: object) -> bool:
        return dict.__eq__(self._whole(), other._whole() if isinstance(other, group) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def get(self, key: str, default: Any = None) -> Any:
        return dict.get(self._whole(), key, default)

    def keys(self) -> Any:
        return dict.keys(self._whole())

    def values(self) -> Any:
        return dict.values(self._whole())

    def items(self) -> Any:
        return dict.items(self._whole())

    def copy(self) -> dict[str, Any]:
        return dict(self)

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
