"""One line of a schedule: what to call, when, and when it last was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from celeriac._state import get_current_app
from celeriac.beat.due import CatchUp, read_catch_up
from celeriac.schedules import maybe_schedule


class BeatLazyFunc:
    """An argument that is computed when the call is sent: `BeatLazyFunc(func, *args, **kwargs)`."""

    def __init__(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._func = func
        self._func_params = {"args": args, "kwargs": kwargs}

    def __call__(self) -> Any:
        return self.delay()

    def delay(self) -> Any:
        """Its value, now."""
        return self._func(*self._func_params["args"], **self._func_params["kwargs"])  # type: ignore[arg-type]


class ScheduleEntry:
    """An entry of a scheduler.

    Args:
        name: Its key in the schedule.
        task: Name of the task.
        last_run_at: When it was sent last, aware; default: now.
        total_run_count: How often it was sent.
        schedule: A schedule, seconds or a timedelta.
        args, kwargs, options: Of the call, as for `apply_async`.
        relative: As for `schedule`.
        catch_up: What is made up for after an outage: `last`, `skip`, `all` or `all:N`.
        paused: It is not sent.
    """

    name: str
    task: str
    schedule: Any
    total_run_count: int = 0

    def __init__(
        self,
        name: str | None = None,
        task: str | None = None,
        last_run_at: datetime | None = None,
        total_run_count: int | None = None,
        schedule: Any = None,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        relative: bool = False,
        app: Any = None,
        catch_up: Any = None,
        paused: bool = False,
    ) -> None:
        self.app = app
        self.name = name  # type: ignore[assignment] # subclasses of others may set it later
        self.task = task  # type: ignore[assignment]
        self.args = args
        self.kwargs = dict(kwargs or {})
        self.options = dict(options or {})
        self.schedule = maybe_schedule(schedule, relative, app=app or get_current_app())
        self.last_run_at = last_run_at or self.default_now()
        self.total_run_count = total_run_count or 0
        self.catch_up: CatchUp = read_catch_up(catch_up)
        self.paused = paused

    def default_now(self) -> datetime:
        """The time now, by the schedule's clock."""
        now: datetime = self.schedule.now() if self.schedule else self.app.now()
        return now

    _default_now = default_now

    def is_due(self) -> Any:
        """`(is_due, seconds until to ask again)`."""
        return self.schedule.is_due(self.last_run_at)

    def next(self, last_run_at: datetime | None = None) -> ScheduleEntry:
        """The entry after a run at that time (default: now)."""
        words = dict(self)
        words.update(last_run_at=last_run_at or self.default_now(), total_run_count=self.total_run_count + 1)
        return type(self)(**words)

    __next__ = _next_instance = next

    def update(self, other: ScheduleEntry) -> None:
        """Take what a person may edit from another entry; what was counted stays."""
        self.task, self.schedule, self.args = other.task, other.schedule, other.args
        self.kwargs, self.options = other.kwargs, other.options
        self.catch_up, self.paused = other.catch_up, other.paused

    def editable_fields_equal(self, other: ScheduleEntry) -> bool:
        """Whether all that a person may edit is the same."""
        return _editable(self) == _editable(other)

    def __iter__(self) -> Any:
        yield from vars(self).items()

    def __reduce__(self) -> tuple[Any, ...]:
        words = (
            self.name, self.task, self.last_run_at, self.total_run_count,
            self.schedule, self.args, self.kwargs, self.options,
        )  # fmt: skip
        # Not as words of a constructor, for classes of programs may have Celery's, which takes none for these.
        ours = {name: value for name, value in vars(self).items() if name in ("catch_up", "paused")}
        return type(self), words, ours

    def __repr__(self) -> str:
        words = [*map(repr, self.args or ()), *(f"{key}={value!r}" for key, value in (self.kwargs or {}).items())]
        return f"<{type(self).__name__}: {self.name} {self.task}({', '.join(words)}) {self.schedule!r}"

    def __eq__(self, other: object) -> bool:
        return self.editable_fields_equal(other) if isinstance(other, ScheduleEntry) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, other: object) -> bool:
        # So that a heap of (time, priority, entry) never fails to compare; the order among equals is no matter.
        return id(self) < id(other) if isinstance(other, ScheduleEntry) else NotImplemented


def _editable(entry: ScheduleEntry) -> tuple[Any, ...]:
    catch_up = getattr(entry, "catch_up", None), getattr(entry, "paused", False)
    return entry.task, entry.args, entry.kwargs, entry.options, entry.schedule, *catch_up


def evaluated(value: Any) -> Any:
    """A `BeatLazyFunc`'s value, or the value itself."""
    return value() if isinstance(value, BeatLazyFunc) else value


def call_arguments(entry: Any) -> tuple[list[Any], dict[str, Any]]:
    """The arguments with which the task is called now."""
    args = [evaluated(value) for value in entry.args or ()]
    return args, {key: evaluated(value) for key, value in (entry.kwargs or {}).items()}
