"""A group: several calls at once, sent together, with one result for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from celeriac.canvas.composite import Composite
from celeriac.canvas.signature import Signature
from celeriac.result import GroupResult
from celeriac.utils.ids import uuid

#: So many messages go to the broker in one exchange.
SEND_AT_ONCE: Final = 500


@Signature.register_type("group")
class group(Composite):
    """Calls that run side by side: `group(add.s(2, 2), add.s(4, 4))()`, or of an iterable of signatures.

    Sent in bulk: a thousand calls cost the broker a few exchanges, not a thousand.
    """

    shape = "group"

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Send all, with these arguments in front of each one's own."""
        return self.apply_async(args, **options)

    def apply_async(
        self, args: Any = (), kwargs: Mapping[str, Any] | None = None, add_to_parent: bool = True, **options: Any
    ) -> GroupResult:
        """Send all; arguments and options are added to those of each.

        Raises:
            TypeError: `link` or `link_error` was given; they belong to members.
            OperationalError: As `Task.apply_async`; members sent in exchanges before that one may have been taken.
        """
        if "link" in options or "link_error" in options:
            raise TypeError("a group has no callbacks of its own: link them to its members")
        app = self.app
        options = {**self["options"], **options}
        group_id = options.pop("task_id", None) or uuid()
        if app.conf["task_always_eager"]:
            return self.apply(args, kwargs, group_id=group_id)
        results = []
        for first in range(0, len(self.tasks), SEND_AT_ONCE):
            calls = []
            for index, member in enumerate(self.tasks[first : first + SEND_AT_ONCE], first):
                member_args, member_kwargs, own = member.merged(args, kwargs or {}, options)
                task_id = own.pop("task_id", None) or uuid()
                own.update(group_id=group_id, group_index=index)
                calls.append((member["task"], member_args, member_kwargs, task_id, own))
            results.extend(app.send_calls(calls, add_to_parent=add_to_parent))
        return GroupResult(group_id, results, app=app)

    def apply(
        self, args: Any = (), kwargs: Mapping[str, Any] | None = None, group_id: str | None = None, **options: Any
    ) -> GroupResult:
        """Run all here and now, one after the other."""
        results = [member.apply(args, kwargs, **options) for member in self.tasks]
        return GroupResult(group_id or uuid(), results, app=self.app)

    def clone(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> group:
        """A copy, with arguments and options added to each member."""
        return group(
            *(member.clone(args, kwargs, **options) for member in self.tasks), app=self._app, **self["options"]
        )

    def freeze(self, _id: str | None = None, **options: Any) -> GroupResult:
        """Fix the ids of the group and of all members now."""
        group_id = self["options"].setdefault("task_id", _id or uuid())
        results = [member.freeze(group_id=group_id, group_index=index) for index, member in enumerate(self.tasks)]
        return GroupResult(group_id, results, app=self.app)

    def __repr__(self) -> str:
        return f"group([{', '.join(map(repr, self.tasks))}])"
