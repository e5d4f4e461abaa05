"""Finds the app that `-A` names, as Celery finds it: `proj`, `proj:app`, `proj.attr`, `proj.celery`.

For a module: its `app`, its `celery` or `celeriac`, the submodule `proj.celery` or `proj.celeriac`, the first
app among its names. The current folder comes first on `sys.path`.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from celeriac.app.base import Celery, make_default_app
from celeriac.cli.errors import UserCodeFailed
from celeriac.exceptions import ImproperlyConfigured

NAMES = ("app", "celery", "celeriac")


def find_app(name: str | None) -> Celery:
    """The app of this name; if there is no name, one with the settings of `celeriacconfig` or `celeryconfig`.

    Raises:
        ImproperlyConfigured: There is no such module, or no app in it; says where it looked.
        UserCodeFailed: The module is there, but importing it raised.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if not name:
        app = make_default_app()
        app.set_current()
        return app
    module_name, colon, attribute = name.partition(":")
    if colon:
        found = _attribute(_import(module_name, name), attribute)
    else:
        found = _module_or_attribute(name)
    if isinstance(found, ModuleType):
        found = _app_in(found)
    if not isinstance(found, Celery):
        raise ImproperlyConfigured(f"{name} is {found!r}, which is no celeriac app. {_hint_if_celery(found)}".strip())
    return found


def import_tasks(app: Any) -> None:
    """All modules with tasks of the app; an error is the user's, and is shown with its traceback."""
    try:
        app.loader.import_default_modules()
    except (SystemExit, Exception) as exc:
        raise UserCodeFailed(f"The app's tasks could not be imported: {type(exc).__name__}: {exc}") from exc


def has_task(app: Any, name: str) -> bool:
    """Whether the app has this task; what it names to be imported is imported if it is not there yet."""
    if name not in app.tasks:
        with contextlib.suppress(UserCodeFailed):  # what a client may lack: then it is not known here
            import_tasks(app)
    return name in app.tasks


def _module_or_attribute(name: str) -> Any:
    """`proj.celery` may be a module, or a name in the module `proj`."""
    parent, dot, last = name.rpartition(".")
    if not dot:
        return _import(name, name)
    module = _import(parent, name)
    if hasattr(module, last) and not isinstance(getattr(module, last), ModuleType):
        return getattr(module, last)
    if hasattr(module, "__path__"):
        return _import(name, name)
    return _attribute(module, last)


def _app_in(module: ModuleType) -> Any:
    for name in NAMES:
        found = getattr(module, name, None)
        if found is not None and not isinstance(found, ModuleType):
            return found
    if hasattr(module, "__path__"):
        for name in NAMES:
            whole = f"{module.__name__}.{name}"
            try:
                submodule = import_module(whole)
            except ModuleNotFoundError as exc:
                if exc.name == whole:
                    continue
                raise _failed(whole, exc) from exc
            except BaseException as exc:
                raise _failed(whole, exc) from exc
            return _app_in(submodule)
    for value in vars(module).values():
        if isinstance(value, Celery):
            return value
    raise ImproperlyConfigured(
        f"The module {module.__name__!r} ({module.__file__}) has no app: no variable holds a Celery(…). "
        f"If it has another name or place, give it as -A module:name."
    )


def _attribute(module: ModuleType, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            apps = [name for name, value in vars(module).items() if isinstance(value, Celery)]
            near = difflib.get_close_matches(path, apps, n=1) or apps[:1]
            hint = f" Its app is {near[0]!r}: -A {module.__name__}:{near[0]}." if near else ""
            raise ImproperlyConfigured(f"The module {module.__name__!r} ({module.__file__}) has no {path!r}.{hint}")
        found = getattr(found, part)
    return found


def _import(name: str, asked: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name and (name == exc.name or name.startswith(exc.name + ".")):
            raise ImproperlyConfigured(_not_found(exc.name, asked)) from exc
        raise _failed(name, exc) from exc
    except (TypeError, ValueError) as exc:
        if not name or name.startswith("."):
            raise ImproperlyConfigured(
                f"-A {asked!r} names no module. Give one as in -A tasks or -A tasks:app."
            ) from exc
        raise _failed(name, exc) from exc
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # SystemExit too: the user's module must not end this without a word
        raise _failed(name, exc) from exc


def _failed(name: str, exc: BaseException) -> UserCodeFailed:
    return UserCodeFailed(f"The module {name!r} could not be imported: {type(exc).__name__}: {exc}")


def _not_found(name: str, asked: str) -> str:
    here = sorted(entry[:-3] for entry in os.listdir() if entry.endswith(".py"))
    near = difflib.get_close_matches(name, here, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else " Are you in the right folder? (--workdir goes to another.)"
    extra = os.environ.get("PYTHONPATH")
    places = f"{os.getcwd()}, in PYTHONPATH ({extra})" if extra else os.getcwd()
    return f"There is no module {name!r} (for -A {asked}) in {places}, nor is it installed in {sys.prefix}.{hint}"


def _hint_if_celery(found: Any) -> str:
    if type(found).__module__.split(".")[0] == "celery":
        return "It is an app of Celery itself: change the import to «from celeriac import Celery»."
    return "Name one as in -A module:app."
