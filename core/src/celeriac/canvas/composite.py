"""What shapes of several calls have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from celeriac.canvas.signature import PLACE, Place, Signature, as_list, maybe_signature, sent


class Composite(Signature):
    """A signature that holds others."""

    shape = ""

    @property
    def tasks(self) -> list[Signature]:
        """Its members, in order."""
        return self["kwargs"]["tasks"]  # type: ignore[no-any-return]

    @tasks.setter
    def tasks(self, value: list[Signature]) -> None:
        self["kwargs"]["tasks"] = value

    @property
    def app(self) -> Any:
        """The app of its members."""
        return self._app or (self.tasks[0].app if self.tasks else super().app)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Send it, with these arguments added."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        add_to_parent: bool = True,
        **options: Any,
    ) -> Any:
        """Send it, with these arguments and options added.

        Raises:
            OperationalError: As `Task.apply_async`; calls sent in an exchange before that one may have been taken.
        """
        if self.app.conf["task_always_eager"]:
            return self.apply(args, kwargs, **options)
        return sent(self, args, kwargs, options, add_to_parent)

    def set_immutable(self, immutable: bool) -> None:
        """Make its first calls take no more arguments, or again."""
        for member in self.tasks:
            member.set_immutable(immutable)

    def link_error(self, errback: Any) -> Any:
        """Call `errback` for each of its calls that has failed."""
        for member in self.tasks:
            give(member, (), [errback], self._app)
        return errback

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Signature:
        """Put stamps on its calls."""
        if visitor is not None:
            headers = {**headers, **(getattr(visitor, f"on_{self.shape}_start")(self, **headers) or {})}
        for member in self.tasks:
            member.stamp(visitor, append_stamps, **headers)
        if visitor is not None:
            getattr(visitor, f"on_{self.shape}_end")(self, **headers)
        return self

    def _own_place(self, place: Place) -> Place:
        """Where it stands: as this says, else as its own options do."""
        own = self["options"]
        values = (own.get(key) if value is None else value for key, value in zip(Place._fields, place, strict=True))
        return Place(*values)

    def _own_options(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[Any], list[Any]]:
        """Its options and these, taken apart: those that say its place, those for its calls, link, link_error."""
        every = {**self["options"], **options}
        place = {key: every.pop(key) for key in PLACE if key in every}
        return place, every, as_list(every.pop("link", None)), as_list(every.pop("link_error", None))

    def __len__(self) -> int:
        return len(self.tasks)

    def __bool__(self) -> bool:
        return True  # an empty one is one, too


def members_of(tasks: tuple[Any, ...], app: Any) -> list[Signature]:
    """The signatures in the arguments of a shape: signatures, or one iterable of them."""
    members: Iterable[Any] = tasks
    if len(tasks) == 1 and not isinstance(tasks[0], dict):
        members = tasks[0] or ()
    return [maybe_signature(member, app=app) for member in members]


def give(signature: Signature, link: Iterable[Any], link_error: Iterable[Any] = (), app: Any = None) -> None:
    """Add copies of these callbacks and errbacks."""
    for callback in link:
        signature.link(maybe_signature(callback, app=app, clone=True))
    for errback in link_error:
        signature.link_error(maybe_signature(errback, app=app, clone=True))


def follow(result: Any, before: Any) -> Any:
    """Say that `result` comes after `before`; returns `result`."""
    if before is not None and result is not None:
        node = result
        while node.parent is not None:
            node = node.parent
        if node is not before:
            node.parent = before
    return result


def as_one(signature: Any) -> Any:
    """A part of a chord, with one result whatever its shape: where several calls would end it, one collects them.

    Changed in place, so that ids fixed once stay the same.
    """
    shape = signature["subtask_type"]
    if shape == "group":
        return accumulating(signature, signature._app)
    if shape == "chain" and signature.tasks:
        signature.tasks[-1] = as_one(signature.tasks[-1])
    elif shape == "chord" and signature.body is not None:
        signature.body = as_one(signature.body)
    return signature


def accumulating(group: Any, app: Any) -> Any:
    """A group as a single call: a chord whose body hands on the list of its results."""
    body = Signature("celery.accumulate", (), {"index": 0}, app=app)
    return Signature.SHAPES["chord"](group, body, app=app)
