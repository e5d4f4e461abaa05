"""`task_annotations`: attributes that the settings, rather than the code, give to tasks.

A dict by task name (or `'*'`), an object with `annotate(task)` and maybe `annotate_any()`, a dotted path to one, or a
list of those. A key that begins with `@` wraps a method: its value is called with the old one and returns the new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celeriac.exceptions import ImproperlyConfigured
from celeriac.utils.names import get_cls_by_name


def read_annotations(setting: Any) -> list[Any]:
    """The annotations as a list of objects and mappings.

    Raises:
        ImproperlyConfigured: One is neither.
    """
    if setting is None:
        return []
    return [_read(entry) for entry in (setting if isinstance(setting, (list, tuple)) else [setting])]


def annotate(task: Any, annotations: list[Any]) -> None:
    """Give a task what the annotations have for it; what is said by name comes after what is said of all."""
    kind = type(task)
    for attributes in _of(task, annotations):
        for key, value in attributes.items():
            if key.startswith("@"):
                add_around(kind, key[1:], value)
            else:
                setattr(kind, key, value)


def add_around(kind: type, attribute: str, around: Callable[[Any], Any]) -> None:
    """Put `around(method)` in a method's place; doing it again replaces the first."""
    old = getattr(kind, attribute)
    old = getattr(old, "__around__", old)
    new = around(old)
    new.__around__ = old
    # A task's body that does not take the task is a static method, and must remain one.
    is_static = isinstance(_in_class(kind, attribute), staticmethod)
    setattr(kind, attribute, staticmethod(new) if is_static else new)


def _of(task: Any, annotations: list[Any]) -> Iterator[Mapping[str, Any]]:
    for entry in annotations:
        if isinstance(entry, Mapping):
            found = [entry.get("*"), entry.get(task.name)]
        else:
            found = [entry.annotate_any() if hasattr(entry, "annotate_any") else None, entry.annotate(task)]
        yield from (attributes for attributes in found if attributes)


def _read(entry: Any) -> Any:
    if isinstance(entry, str):
        try:
            entry = get_cls_by_name(entry)
        except (ImportError, AttributeError, ValueError) as exc:
            raise ImproperlyConfigured(f"task_annotations: cannot import {entry!r}: {exc}") from exc
    if isinstance(entry, type):
        entry = entry()
    if not isinstance(entry, Mapping) and not hasattr(entry, "annotate"):
        raise ImproperlyConfigured(
            f"task_annotations: {entry!r} is neither a dict by task name nor an object with annotate(task)"
        )
    return entry


def _in_class(kind: type, attribute: str) -> Any:
    return next((base.__dict__[attribute] for base in kind.__mro__ if attribute in base.__dict__), None)
