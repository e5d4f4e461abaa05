"""What a pool process needs that was not forked from its worker: the app, imported anew, and all that the worker added.

`write_recipe` is called in the worker, by the pool; `make_program` in the process, by the recipe
(`worker_pool_start_method = "spawn"`). What cannot be done over there is an error of the start, and says what to do.
"""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, NamedTuple

from celeriac.app.log import LoggedStream
from celeriac.contrib import rdb
from celeriac.exceptions import CeleriacWarning, ImproperlyConfigured
from celeriac.execution.execute import TaskProgram
from celeriac.spec.pool import Recipe

MAKER: Final = f"{__name__}:make_program"


class LogWords(NamedTuple):
    """How the worker was told to log; without a level it was not."""

    level: int | str | None
    file: str | None
    format: str | None
    color: bool


class _Words(NamedTuple):
    """What goes to the process.

    Attributes:
        app: As after `-A`; empty: an app without a name.
        loader: The app's loader, if the command line has chosen one.
        overrides, changes: Settings by name, each pickled by itself; None for a change that cannot be pickled, and is
            there already if it was made when the app was imported.
        tasks: The names of all that the worker has.
        redirect: Whether what is printed goes to the log.
    """

    app: str
    loader: str | None
    overrides: dict[str, bytes | None]
    changes: dict[str, bytes | None]
    include: tuple[str, ...]
    tasks: frozenset[str]
    log: LogWords
    redirect: bool
    node: str
    detail: bool
    worker_pid: int


# -- in the worker ------------------------------------------------------------------------------------------


def write_recipe(
    app: Any, app_name: str | None, *, include: Sequence[str], log: LogWords, node: str, detail: bool
) -> Recipe:
    """How another process makes this worker's program.

    Args:
        app_name: What the command line found the app by; None: it is looked for.
        include: Modules that the worker imported besides.
        node, detail: As for `TaskProgram`.
    Raises:
        ImproperlyConfigured: No other process could import the app, or have its settings.
    """
    name = _find_name(app) if app_name is None else app_name
    if name.partition(":")[0] == "__main__":
        raise ImproperlyConfigured(_not_importable(app))
    overrides = _pickle_each(app.conf.overrides)
    for setting in [setting for setting, value in overrides.items() if value is None]:
        raise ImproperlyConfigured(_not_pickled(setting))
    words = _Words(
        app=name,
        loader=loader if isinstance(loader := vars(app).get("loader_cls"), str) else None,
        overrides=overrides,
        changes=_pickle_each(app.conf.changes),
        include=tuple(include),
        tasks=frozenset(app.tasks),
        log=log,
        redirect=isinstance(sys.stdout, LoggedStream),
        node=node,
        detail=detail,
        worker_pid=os.getpid(),
    )
    return Recipe(MAKER, pickle.dumps(words))


def _find_name(app: Any) -> str:
    """`module:name` of an app that nobody has named."""
    program = sys.modules["__main__"]  # which has other names too, once multiprocessing is used
    for module_name, module in list(sys.modules.items()):
        if module is program or module_name.split(".")[0] == "celeriac":
            continue  # the latter know what app is current
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is app:
                return f"{module_name}:{name}"
    raise ImproperlyConfigured(_not_importable(app))


def _not_importable(app: Any) -> str:
    return (
        "worker_pool_start_method is 'spawn', so each process of the pool imports the app anew, and cannot: no module "
        f"that can be imported has the app {app.main or '__main__'!r} among its variables, only the program that runs "
        f"({sys.argv[0] or 'an interactive one'}) may have. Put it into a module of its own, say tasks.py, and start "
        "«celeriac -A tasks worker»; or leave the setting at 'fork'."
    )


def _not_pickled(setting: str) -> str:
    return (
        f"worker_pool_start_method is 'spawn', and the setting {setting!r} was changed while the worker started (on "
        "the command line, or by a receiver of a signal) to a value that cannot be pickled, so the pool's processes "
        "cannot be told. Set it where the app is made."
    )


def _pickle_each(settings: Mapping[str, Any]) -> dict[str, bytes | None]:
    return {name: _pickled(value) for name, value in settings.items()}


def _pickled(value: Any) -> bytes | None:
    try:
        return pickle.dumps(value)
    except Exception:  # whatever its classes raise; who reads the None decides whether that matters
        return None


# -- in the process -----------------------------------------------------------------------------------------


def make_program(pickled: bytes) -> TaskProgram:
    """Do again what the worker did before it would have forked, and make its program.

    Raises:
        ImproperlyConfigured: The app is not here what it is in the worker.
    """
    words: _Words = pickle.loads(pickled)
    with _without_our_warnings():
        app = _make_app(words)
        app.begin_process()
        app.loader.import_default_modules()
        for name in words.include:
            import_module(name)
        _bring_up_to_date(app, words.changes, is_last=True)
        lacking = sorted(words.tasks - app.tasks.keys())
        if lacking:
            raise ImproperlyConfigured(
                f"worker_pool_start_method is 'spawn', and the worker has tasks that are not there when the app "
                f"{words.app!r} is imported anew: {', '.join(lacking[:5])}{' …' * (len(lacking) > 5)}. They were "
                "registered at run time, or in the program that runs. Put them into a module that the app imports "
                "(include, autodiscover_tasks), or leave the setting at 'fork'."
            )
        rdb.install_handler()
        for info in app.kernel.extensions():
            app.kernel.load(info)
        app.kernel.notify("celeriac_process_starting", app=app)
    unpack = app.make_transport(app.conf["broker_read_url"]).unpack
    return TaskProgram(app, unpack, words.node, detail=words.detail, worker_pid=words.worker_pid)


def _make_app(words: _Words) -> Any:
    """The app with its settings, and the log set up: all that comes before tasks are imported."""
    # The door is above this room, so it is opened by name.
    app = import_module("celeriac.cli.find_app").find_app(words.app)
    if words.loader is not None:
        app.loader_cls = words.loader
    app.set_current()
    app.conf.override({name: pickle.loads(value) for name, value in words.overrides.items() if value is not None})
    _bring_up_to_date(app, words.changes)
    log = words.log
    if log.level is not None:
        app.log.setup_logging_subsystem(log.level, log.file, format=log.format, colorize=None if log.color else False)
    if words.redirect:
        app.log.redirect_stdouts(app.conf["worker_redirect_stdouts_level"])
    return app


def _bring_up_to_date(app: Any, changes: Mapping[str, bytes | None], *, is_last: bool = False) -> None:
    """Make those changes of settings that were not made by importing.

    Args:
        is_last: All has been imported: what cannot be pickled must be there by now.
    """
    own = app.conf.changes
    for name, pickled in changes.items():
        if pickled is None:
            if is_last and name not in own:
                raise ImproperlyConfigured(_not_pickled(name))
        elif own.get(name) is None or _pickled(own[name]) != pickled:
            app.conf[name] = pickle.loads(pickled)


@contextmanager
def _without_our_warnings() -> Iterator[None]:
    """Inside the block celeriac warns of nothing: the worker did. Filters that the user's modules add stay."""
    warnings.simplefilter("ignore", CeleriacWarning)
    ours = warnings.filters[0]
    try:
        yield
    finally:
        if ours in warnings.filters:
            warnings.filters.remove(ours)  # type: ignore[attr-defined] # typed as a sequence, and is a list
