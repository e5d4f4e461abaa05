"""A chain: calls one after the other, each with the result of the one before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celeriac.canvas.composite import Composite
from celeriac.canvas.signature import Signature
from celeriac.exceptions import Unsupported
from celeriac.result import AsyncResult
from celeriac.utils.ids import uuid


@Signature.register_type("chain")
class chain(Composite):
    """Steps of which each gets the result of the one before: `chain(add.s(2), add.s(4))()`, `add.s(2) | add.s(4)`.

    The first message carries the rest, so nobody has to wait in between. If a step fails, those after it fail with it.
    """

    shape = "chain"

    def __init__(self, *tasks: Any, app: Any = None, **options: Any) -> None:
        super().__init__(*tasks, app=app, **options)
        for step in self.tasks:
            if step["subtask_type"] is not None:
                kind = step["subtask_type"]
                raise Unsupported(f"a chain of this version takes single calls only, not a {kind}: {step!r}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Send it, with these arguments in front of the first step's own."""
        return self.apply_async(args, kwargs) if self.tasks else None

    def apply_async(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Send it; arguments and options are added to those of the first step.

        Returns:
            The last step's result, whose `parent` is the one before, and so on; None for an empty chain.
        """
        if not self.tasks:
            return None
        if self.app.conf["task_always_eager"]:
            return self.apply(args, kwargs, **options)
        options = {**self["options"], **options}
        last_id = options.pop("task_id", None)
        link, link_error = options.pop("link", None), options.pop("link_error", None)
        steps = [step.clone() for step in self.tasks]
        ids = [step["options"].get("task_id") or uuid() for step in steps]
        if last_id is not None:
            ids[-1] = last_id
        for step, task_id in zip(steps, ids, strict=True):
            step["options"].update(task_id=task_id, reply_to=self.app.thread_oid)
            if link_error is not None:
                step.link_error(link_error)
        if link is not None:
            steps[-1].link(link)
        rest = [dict(step) for step in reversed(steps[1:])]  # reversed on the wire: the next step is last
        first: AsyncResult[Any] = steps[0].apply_async(args, kwargs, chain=rest or None, **options)
        return self._results(ids, first)

    def apply(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run all steps here and now."""
        result: Any = None
        for index, step in enumerate(self.tasks):
            before, result = (
                result,
                step.apply(args if index == 0 else (result.get(),), kwargs if index == 0 else None, **options),
            )
            result.parent = before
        return result

    def clone(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> chain:
        """A copy, with arguments added to the first step and options to the chain."""
        first, *rest = (step.clone() for step in self.tasks)
        return chain(first.clone(args, kwargs), *rest, app=self._app, **{**self["options"], **options})

    def _results(self, ids: list[str], first: AsyncResult[Any]) -> AsyncResult[Any]:
        result = first
        for task_id, step in zip(ids[1:], self.tasks[1:], strict=True):
            after = self.app.AsyncResult(task_id, task_name=step["task"])
            after.parent, result = result, after
        return result

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.tasks))
