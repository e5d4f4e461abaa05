"""A chain: calls one after the other, each with the result of the one before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from celeriac.canvas.composite import Composite, as_one, follow, give, members_of
from celeriac.canvas.group import group
from celeriac.canvas.launch import Launch
from celeriac.canvas.signature import Place, Signature
from celeriac.result import ResultSet


@Signature.register_type("chain")
class chain(Composite):
    """Steps of which each gets the result of the one before: `chain(add.s(2), add.s(4))()`, `add.s(2) | add.s(4)`.

    The first message carries the rest, so nobody has to wait in between. If a step fails, those after it fail with it.
    A group that something follows is a chord with that for its body; so the only shape of several calls in a chain is
    its last step.
    """

    shape = "chain"

    def __new__(cls, *tasks: Any, app: Any = None, **options: Any) -> Any:
        """A chain; or the chord that several steps together are."""
        members = members_of(tasks, app)
        steps = joined(members)
        if len(members) > 1 and len(steps) == 1 and steps[0]["subtask_type"] is not None:
            step = steps[0].clone() if any(steps[0] is member for member in members) else steps[0]
            return step.set(**options)
        made = super().__new__(cls)
        Signature.__init__(made, "celery.chain", (), {"tasks": steps}, options, subtask_type="chain", app=app)
        return made

    def __init__(self, *tasks: Any, app: Any = None, **options: Any) -> None:
        """All is done already: what `chain(...)` makes need not be a chain."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], app: Any = None) -> Signature:
        """See `Signature.from_dict`."""
        options = dict(data.get("options") or {})
        made = chain(list(data["kwargs"]["tasks"]), app=app, **options)
        if data.get("immutable") and made:
            made.set_immutable(True)
        return made

    def launch(self, launch: Launch, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """See `Signature.launch`; None for an empty chain."""
        return super().launch(launch, args, kwargs, **options) if self.tasks else None

    def begin(self, launch: Launch, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> None:
        """See `Signature.begin`."""
        if not self.tasks:
            return
        first, *rest = self.tasks
        if rest:
            options["chain"] = [*(options.pop("chain", None) or ()), *(dict(step) for step in reversed(rest))]
        first.begin(launch, args, kwargs, **options)  # reversed on the wire: the next step is last

    def apply(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run all steps here and now.

        Raises:
            Exception: What a step that is not the last has raised.
        """
        place, for_first, link, link_error = self._own_options(options)
        raising = {"throw": for_first["throw"]} if "throw" in for_first else {}
        result: Any = None
        for index, step in enumerate(self.tasks):
            copy, is_last = step.clone(), index == len(self.tasks) - 1
            give(copy, link if is_last else (), link_error, self._app)
            if is_last and place.get("task_id"):
                copy.last().set(task_id=place["task_id"])
            before = result
            if before is None:
                result = copy.apply(args, kwargs, **for_first)
            else:
                result = copy.apply((_value_of(before),), **raising)
            follow(result, before)
        return result

    def clone(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Signature:
        """A copy, with arguments added to the first step, and callbacks and options where they belong."""
        copy = chain.__new__(chain)
        Signature.__init__(copy, self, app=self._app)
        place, for_first, link, link_error = self._own_options(options)
        steps = [step.clone() for step in self.tasks]
        if steps:
            steps[0] = steps[0].clone(args, kwargs, **for_first)
            give(steps[-1], link)
            for step in steps:
                give(step, (), link_error, self._app)
        copy.update(kwargs={"tasks": steps}, options=place)
        return copy  # type: ignore[no-any-return]

    def fix(self, place: Place) -> Any:
        """Fix the ids of all steps now; the result is the last one's, whose `parent` is the one before, and so on."""
        steps = self.tasks
        if not steps:
            return None
        of_last = self._own_place(place)
        own_id = self["options"].get("task_id")
        if of_last.chord is not None:
            as_one(self)
        result: Any = None
        for step in steps[:-1]:
            result = follow(step.freeze(root_id=of_last.root_id, parent_id=place.parent_id), result)
        last = steps[-1].fix(of_last._replace(task_id=own_id or place.task_id, parent_id=place.parent_id))
        return follow(last, result)

    def last(self) -> Signature:
        """See `Signature.last`."""
        return self.tasks[-1].last() if self.tasks else self

    @property
    def id(self) -> str | None:
        """The id of its last step, once frozen."""
        found: str | None = self.last()["options"].get("task_id")
        return found

    def link(self, callback: Any) -> Any:
        """Call `callback` with the result of the last step."""
        return self.tasks[-1].link(callback) if self.tasks else self.append_to_list_option("link", callback)

    def unchain_tasks(self) -> list[Signature]:
        """Its steps as copies, each with the chain's own errbacks."""
        errbacks = self._own_options({})[3]
        steps = [step.clone() for step in self.tasks]
        for step in steps:
            give(step, (), errbacks, self._app)
        return steps

    def set_immutable(self, immutable: bool) -> None:
        """Make its first step take no more arguments, or again."""
        if self.tasks:
            self.tasks[0].set_immutable(immutable)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.tasks))


_chain = chain


def _value_of(before: Any) -> Any:
    """What a step that has run returned: nobody waits, also within a task, and those before it were asked already."""
    if isinstance(before, ResultSet):
        return before.get(disable_sync_subtasks=False)
    return before.get(follow_parents=False, disable_sync_subtasks=False)


def joined(members: Iterable[Signature]) -> list[Signature]:
    """The steps of a chain: chains among them taken apart, groups and chords made one with what follows."""
    steps: list[Signature] = []
    for member in members:
        for step in _steps_of(member):
            _add(steps, step)
    return steps


def _steps_of(member: Signature) -> list[Signature]:
    if not isinstance(member, chain):
        return [member]
    settled: Any = member.clone()  # options and callbacks where they belong, and what is done to these not done to it
    return list(settled.tasks)


def _add(steps: list[Signature], step: Signature) -> None:
    before = steps[-1] if steps else None
    if before is not None and isinstance(step, group):
        if not step.tasks:
            return  # nothing happens there
        if len(step.tasks) == 1:
            _add(steps, step.tasks[0])
            return
    chord = Signature.SHAPES["chord"]
    if isinstance(before, group):
        steps[-1] = chord(before, step, app=before._app)
    elif isinstance(before, chord):
        steps[-1] = before.then(step)  # type: ignore[attr-defined]
    else:
        steps.append(step)
