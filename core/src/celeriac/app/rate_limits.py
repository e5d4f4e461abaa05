"""What a task says of its rate: how often, over how many workers, and for which of its calls together.

Read by the worker before it consumes and while it does, and by `celeriac check`.
"""

from __future__ import annotations

import inspect
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from celeriac.utils.rates import parse_rate

SCOPES: Final = ("worker", "cluster")
NO_STATE: Final = (
    "rate_limit_scope='cluster' needs a place that all workers share, and neither the broker nor the result backend of "
    "this app keeps shared state. Set result_backend to one that does (redis, sqlite, database), or the scope to "
    "'worker'."
)

#: From a call's positional and keyword arguments to the key under which it is limited.
KeyMaker = Callable[[Sequence[Any], Mapping[str, Any]], str]


def is_cluster_wide(task: Any) -> bool:
    """Its limit holds for all workers together."""
    return bool(task.rate_limit) and task.rate_limit_scope == "cluster"


def cluster_wide(tasks: Iterable[Any]) -> list[str]:
    """The names of those of these tasks."""
    return sorted(task.name for task in tasks if is_cluster_wide(task))


def trouble_with(task: Any) -> str:
    """What is wrong with what a task says of its rate; empty if nothing is."""
    try:
        parse_rate(task.rate_limit)
    except ValueError as exc:
        return f"{task.name}: {exc}"
    if task.rate_limit_scope not in (None, *SCOPES):
        return f"{task.name}: rate_limit_scope {task.rate_limit_scope!r} is neither 'worker' nor 'cluster'"
    key = _key_of(task)
    if key is None or callable(key):
        return ""
    if not isinstance(key, str):
        return f"{task.name}: rate_limit_key {key!r} is neither text such as '{{tenant}}' nor a function"
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(key) if field is not None]
    except ValueError as exc:
        return f"{task.name}: rate_limit_key {key!r} cannot be read: {exc}"
    parameters = inspect.signature(task.run).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return ""
    known = [parameter.name for parameter in parameters]
    unknown = [name for name in (field.replace("[", ".").partition(".")[0] for field in fields) if name not in known]
    if unknown:
        return (
            f"{task.name}: rate_limit_key {key!r} names {unknown[0]!r}, which is none of its arguments "
            f"({', '.join(known) or 'it has none'})"
        )
    return ""


def make_key_maker(task: Any) -> KeyMaker | None:
    """What finds the key of a call; None: all calls of the task are limited together."""
    key = _key_of(task)
    if key is None:
        return None
    if callable(key):
        function = key
        return lambda args, kwargs: _text(function(*args, **kwargs))
    signature, text = inspect.signature(task.run), str(key)
    others = [name for name, parameter in signature.parameters.items() if parameter.kind is parameter.VAR_KEYWORD]

    def from_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        words = dict(bound.arguments)
        for name in others:
            words.update(words[name])
        return text.format(**words)

    return from_arguments


def _key_of(task: Any) -> Any:
    """As it was given: a function that stands in a class is a method of the task only if it takes `self`."""
    key = inspect.getattr_static(task, "rate_limit_key", None)
    if inspect.isfunction(key):
        return key.__get__(task) if next(iter(inspect.signature(key).parameters), "") == "self" else key
    return key.__func__ if isinstance(key, staticmethod) else key


def _text(key: Any) -> str:
    return "" if key is None else str(key)
