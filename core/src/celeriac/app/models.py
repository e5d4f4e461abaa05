"""Pydantic arguments: `@app.task(pydantic=True)`. Imports pydantic when such a task is made, not before.

A caller may give models; they travel as plain data. In the worker each argument whose annotation has a model in it is
validated, and a model that the task returns is dumped, so that results are plain data, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, get_args, get_type_hints

from celeriac.exceptions import ImproperlyConfigured


def validating(
    fun: Callable[..., Any],
    name: str,
    find_app: Callable[[], Any],
    *,
    strict: bool,
    context: Mapping[str, Any] | None,
    dump_kwargs: Mapping[str, Any] | None,
) -> Callable[..., Any]:
    """`fun` with its annotated arguments validated, and its result dumped.

    Args:
        strict: No value is converted from another type.
        context: What validators are given, beside `celery_app` and `celery_task_name`.
        dump_kwargs: For `model_dump`; `mode` is `json` unless it says otherwise.
    Raises:
        ImproperlyConfigured: pydantic is not installed.
    """
    pydantic = _import_pydantic(name)
    signature = inspect.signature(fun)
    dumping = {"mode": "json", **(dump_kwargs or {})}
    readers: dict[str, Any] | None = None

    def find_readers() -> dict[str, Any]:
        # At the first call rather than at decoration: annotations may name what stands further down in the module.
        hints = get_type_hints(fun)
        return {
            key: pydantic.TypeAdapter(hint)
            for key, hint in hints.items()
            if key != "return" and _has_model(hint, pydantic.BaseModel)
        }

    def call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        nonlocal readers
        if readers is None:
            readers = find_readers()
        bound = signature.bind(*args, **kwargs)
        given = {**(context or {}), "celery_app": find_app(), "celery_task_name": name}
        for key, reader in readers.items():
            if key in bound.arguments:
                bound.arguments[key] = reader.validate_python(bound.arguments[key], strict=strict, context=given)
        return fun(*bound.args, **bound.kwargs)

    def run(*args: Any, **kwargs: Any) -> Any:
        return dump_model(call(args, kwargs), dumping)

    async def arun(*args: Any, **kwargs: Any) -> Any:
        return dump_model(await call(args, kwargs), dumping)

    return wraps(fun)(arun if inspect.iscoroutinefunction(fun) else run)


def dump_calls_models(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """A call's arguments with plain data for models."""
    mode = {"mode": "json"}
    return [dump_model(value, mode) for value in args], {key: dump_model(value, mode) for key, value in kwargs.items()}


def dump_model(value: Any, dumping: Mapping[str, Any]) -> Any:
    """Plain data for a model, or for the models in a list or tuple; other values as they are."""
    if hasattr(type(value), "model_dump"):
        return value.model_dump(**dumping)
    if isinstance(value, (list, tuple)) and any(hasattr(type(item), "model_dump") for item in value):
        return [dump_model(item, dumping) for item in value]
    return value


def _has_model(hint: Any, base: type) -> bool:
    """Whether a model stands anywhere in a type: `Model`, `Model | None`, `list[Model]`."""
    if isinstance(hint, type) and not get_args(hint):
        return issubclass(hint, base)
    return any(_has_model(part, base) for part in get_args(hint))


def _import_pydantic(name: str) -> Any:
    try:
        import pydantic
    except ModuleNotFoundError:
        raise ImproperlyConfigured(
            f"the task {name} has pydantic=True, and pydantic is not installed. Try: pip install celeriac[pydantic]"
        ) from None
    return pydantic
