"""Exceptions as data, and back. Nothing is imported and no constructor of the sender's choosing runs, but Python's own.

Stored form (Celery's): `{"exc_type": qualified name, "exc_message": arguments, "exc_module": module}`.
"""

from __future__ import annotations

import builtins
import sys
import traceback as traceback_module
from collections.abc import Mapping
from typing import Any

from celeriac import exceptions
from celeriac.exceptions import SecurityError

#: Celery's module names → ours, so that its workers' errors come back as our classes.
_SAME_MODULE = {"celery.exceptions": "celeriac.exceptions", "billiard.exceptions": "celeriac.exceptions"}


def describe(exc: BaseException, encodable: Any = None) -> dict[str, Any]:
    """The stored form of an exception.

    Args:
        encodable: A function that raises when a value cannot be serialized; such arguments are stored as text.
    """
    kind = type(exc)
    args = exc.args
    if isinstance(exc, exceptions.Retry):
        args = (exc.message, exc.excs, exc.when if isinstance(exc.when, (int, float)) else str(exc.when))
    return {
        "exc_type": kind.__qualname__,
        "exc_message": [_as_data(arg, encodable) for arg in args],
        "exc_module": kind.__module__,
    }


def rebuild(data: Any) -> BaseException | None:
    """The exception in a stored form.

    Its own class if that is already imported here, is a subclass of Exception and can be made; else a plain class of
    the same name: what ends a program or a coroutine (SystemExit, CancelledError …) ended the task, not whoever reads
    of it. Where its class cannot show it without what its constructor would have set, it is shown by its arguments. An
    instance that is an exception already (pickled results) is returned as it is.

    Raises:
        SecurityError: The named class is not an exception class.
    """
    if data is None or isinstance(data, BaseException):
        return data
    if not isinstance(data, dict) or "exc_type" not in data:
        return Exception(data)
    name, module = str(data["exc_type"]), data.get("exc_module")
    message = data.get("exc_message")
    args = tuple(message) if isinstance(message, (list, tuple)) else (message,)
    kind = _find_class(name, module)
    exc = _make(kind, args) if kind is not None and issubclass(kind, Exception) else None
    if exc is None:
        plain = type(name.rpartition(".")[2] or "Error", (Exception,), {"__module__": str(module or __name__)})
        exc = plain(*args)
    _restore(exc, args)
    return exc if _can_be_shown(exc) else _shown_by_its_arguments(exc)


def format_traceback(exc: BaseException) -> str:
    """The traceback as text, without the frames of this library that led to the task."""
    frames = exc.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith("celeriac.execution"):
        frames = frames.tb_next
    return "".join(traceback_module.format_exception(type(exc), exc, frames or exc.__traceback__))


def _make(kind: type[Exception], args: tuple[Any, ...]) -> Exception | None:
    """None if it cannot be made without knowing more of it, as an ExceptionGroup."""
    try:
        if kind.__module__ == "builtins":
            return kind(*args)  # which fills `errno`, `value` and their kin
        # Never through __init__: it may want other arguments, or do things.
        exc = kind.__new__(kind)
        exc.args = args
    except Exception:  # whatever a class says to being made so
        return None
    return exc


def _can_be_shown(exc: BaseException) -> bool:
    try:
        str(exc), repr(exc)
    except Exception:  # whatever a class says to being shown without its attributes
        return False
    return True


def _shown_by_its_arguments(exc: Exception) -> Exception:
    """The same, still caught as what it is."""
    kind = type(exc)
    names = {"__str__": Exception.__str__, "__repr__": Exception.__repr__, "__module__": kind.__module__}
    exc.__class__ = type(kind.__name__, (kind,), {**names, "__qualname__": kind.__qualname__})
    return exc


def _as_data(value: Any, encodable: Any) -> Any:
    if type(value) in (int, float, bool, type(None)) or (type(value) is str and value.isascii()):
        return value
    if encodable is None:
        return value
    try:
        encodable(value)
    except Exception:  # whatever the serializer says: text always works
        return legible(value) if type(value) is str else _text(value)
    return value


def legible(text: str) -> str:
    """With what UTF-8 cannot write escaped: the halves of characters that stand for odd bytes in names of files,
    of which an error may tell."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _text(value: Any) -> str:
    try:
        return repr(value)
    except Exception as exc:  # whatever a class says to being shown
        return f"<{type(value).__qualname__}: repr raised {type(exc).__name__}>"


def _find_class(name: str, module: Any) -> type[BaseException] | None:
    if module is None:
        holder: Any = builtins if hasattr(builtins, name) else exceptions
    else:
        module = str(module)
        holder = sys.modules.get(module) or sys.modules.get(_SAME_MODULE.get(module, ""))
        if module in _SAME_MODULE and name.partition(".")[0] not in _names_in(holder):
            holder = sys.modules.get(_SAME_MODULE[module])
    found = holder
    for part in name.split("."):
        found = _names_in(found).get(part)
        if found is None:
            return None
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        raise SecurityError(f"expected an exception class, got {module}.{name} with payload of a stored result")
    return found


def _names_in(holder: Any) -> Mapping[str, Any]:
    """What a module or a class has by itself. It is not asked for, since a module may import what is asked of it."""
    return getattr(holder, "__dict__", {})


def _restore(exc: BaseException, args: tuple[Any, ...]) -> None:
    if isinstance(exc, exceptions.Retry):
        message, excs, when = (*args, None, None, None)[:3]
        exc.message, exc.exc, exc.excs, exc.when, exc.is_eager, exc.sig = message, None, excs, when, False, None
    elif isinstance(exc, exceptions.Reject):
        exc.reason, exc.requeue = (*args, None, False)[:2]
