"""From dotted paths to what they lead to, and back."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any


def get_cls_by_name(name: Any, aliases: Mapping[str, str] | None = None, default: Any = None) -> Any:
    """What `module.attr` or `module:attr` leads to; what is no text is returned as it is.

    Raises:
        ImportError, AttributeError: Nothing is there, and there is no default.
    """
    if not isinstance(name, str):
        return name
    path: str = (aliases or {}).get(name) or name
    module, _, attribute = path.replace(":", ".").rpartition(".")
    try:
        return getattr(import_module(module), attribute) if module else import_module(attribute)
    except (ImportError, AttributeError):
        if default is None:
            raise
        return default


def get_full_cls_name(kind: Any) -> str:
    """`module.Class` of a class or function."""
    return f"{kind.__module__}.{kind.__qualname__}"


def instantiate(name: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what a path leads to."""
    return get_cls_by_name(name)(*args, **kwargs)


def import_from_cwd(module: str) -> Any:
    """Import a module that may lie in the current folder."""
    here = str(Path.cwd())
    if here in sys.path:
        return import_module(module)
    sys.path.insert(0, here)
    try:
        return import_module(module)
    finally:
        sys.path.remove(here)


def import_package(path: str) -> str:
    """Import a package; its name.

    Args:
        path: The name, or the path of a class whose `name` is the package's: of an AppConfig, as in INSTALLED_APPS.
    Raises:
        ModuleNotFoundError: There is no such package, or no such class.
    """
    try:
        import_module(path)
    except ModuleNotFoundError as exc:
        module, _, attribute = path.rpartition(".")
        if exc.name != path or not module:  # something that it imports is missing
            raise
        name = getattr(getattr(import_module(module), attribute, None), "name", None)
        if not isinstance(name, str):
            raise
        import_module(name)
        return name
    return path


def gen_task_name(app: Any, name: str, module_name: str) -> str:
    """The name that `app` gives to a function's task; the module of a script has the app's."""
    return str(app.gen_task_name(name, module_name))
