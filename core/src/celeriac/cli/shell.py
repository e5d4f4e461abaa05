"""`celeriac shell`: an interactive Python with the app and its tasks at hand."""

from __future__ import annotations

import code
import sys
from importlib import import_module
from typing import Any

import click

from celeriac.cli.group import Command, State, option


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@option("-I", "--ipython", "kind", flag_value="ipython", help="Use IPython.")
@option("-B", "--bpython", "kind", flag_value="bpython", help="Use bpython.")
@option("--python", "kind", flag_value="python", help="Use Python's own.")
@option("-T", "--without-tasks", is_flag=True, help="Do not put tasks among the names.")
@option("--eventlet", is_flag=True, hidden=True, help="No effect; there is no such pool here.")
@option("--gevent", is_flag=True, hidden=True, help="No effect; patch in a module of yours.")
@click.pass_obj
def shell(state: State, /, kind: str | None, without_tasks: bool, eventlet: bool, gevent: bool) -> None:
    """Start a Python shell with the names app (also celery), the canvas, and every task of the app.

    Without an option it is IPython or bpython where they are installed, else Python's own.
    """
    from celeriac.cli.find_app import import_tasks

    app = state.app()
    import_tasks(app)
    names = shell_names(app, with_tasks=not without_tasks)
    start = _starter(kind)
    start(names, f"celeriac shell: app is {app.main or 'default'}; {len(app.tasks.regular())} tasks")


def shell_names(app: Any, *, with_tasks: bool) -> dict[str, Any]:
    """What the shell knows: `app`, `celery`, the canvas, `AsyncResult`, and tasks by the last word of their names."""
    from celeriac import canvas

    names: dict[str, Any] = {"app": app, "celery": app, "AsyncResult": app.AsyncResult}
    for name in ("chain", "group", "chord", "signature", "xmap", "xstarmap", "chunks"):
        if hasattr(canvas, name):
            names[name] = getattr(canvas, name)
    if with_tasks:
        for name, task in sorted(app.tasks.regular().items()):
            names.setdefault(name.rpartition(".")[2], task)
    return names


def _starter(kind: str | None) -> Any:
    for name, start in (("ipython", _ipython), ("bpython", _bpython), ("python", _python)):
        if kind not in (None, name):
            continue
        try:
            return start()
        except ImportError as exc:
            if kind == name:
                raise click.UsageError(f"{name} is not installed ({exc}). Try: pip install {name}") from exc
    raise AssertionError("Python's own is always there")


def _ipython() -> Any:
    ipython = import_module("IPython")
    return lambda names, banner: ipython.start_ipython(argv=[], user_ns=names)


def _bpython() -> Any:
    bpython = import_module("bpython")
    return lambda names, banner: bpython.embed(names, banner=banner)


def _python() -> Any:
    def start(names: dict[str, Any], banner: str) -> None:
        if sys.stdin.isatty():
            try:
                import readline
                import rlcompleter

                readline.set_completer(rlcompleter.Completer(names).complete)
                readline.parse_and_bind("tab: complete")
            except ImportError:
                pass  # built without it: no completion
        code.interact(banner=banner, local=names, exitmsg="")

    return start
