"""Imports one chosen plugin, checks that it keeps its contract, and registers it as `kind:name`.

Called by the kernel only. What goes wrong while a plugin is imported is the plugin's fault whatever it is
(`SystemExit` included), so it comes out as one `PluginBroken` that names the distribution and the reason.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pluggy

from celeriac.exceptions import (
    PluginBroken,
    PluginError,
    PluginIncompatible,
    WorkerShutdown,
    WorkerTerminate,
)
from celeriac.kernel.discovery import PluginInfo
from celeriac.spec.data import API_VERSION
from celeriac.spec.hooks import KINDS, PROJECT


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin that was imported and kept its contract so far.

    Attributes:
        plugin: The module or object behind the entry point.
        call: Its one factory hook; takes the specification's arguments by keyword. None for an extension.
    """

    info: PluginInfo
    plugin: Any
    call: Callable[..., Any] | None


class Loader:
    """Holds the pluggy manager in which the loaded plugins stand."""

    def __init__(self) -> None:
        self.manager = _make_manager()
        self._loaded: dict[tuple[str, int], LoadedPlugin] = {}
        self._lock = threading.Lock()

    def load(self, info: PluginInfo) -> LoadedPlugin:
        """Import a plugin and register it; a second name for the same module gives the same plugin back.

        Raises:
            PluginBroken: It cannot be imported, or lacks its hook, or has hooks nobody knows.
            PluginIncompatible: It was written for another version of the contract.
        """
        plugin = _import(info)
        with self._lock:
            return self._loaded.get((info.kind, id(plugin))) or self._register(info, plugin)

    def after_fork(self) -> None:
        """In a forked child: whoever held the lock may not be here."""
        self._lock = threading.Lock()

    def _register(self, info: PluginInfo, plugin: Any) -> LoadedPlugin:
        try:
            _check_version(info, plugin)
            _check_hooks(info, plugin)
        except PluginError:
            raise
        except Exception as exc:  # a property, or a module's __getattr__, of the plugin's own
            raise broken(info, f"its attributes cannot be read: {describe(exc)}") from exc
        if not self.manager.is_registered(plugin):  # one module may serve two kinds
            name = f"{info.kind}:{info.name}"
            self.manager.register(plugin, f"{name}@{info.dist_name}" if self.manager.has_plugin(name) else name)
        loaded = LoadedPlugin(info, plugin, self._factory(info, plugin))
        self._loaded[info.kind, id(plugin)] = loaded
        return loaded

    def _factory(self, info: PluginInfo, plugin: Any) -> Callable[..., Any] | None:
        hook = KINDS[info.kind][2]
        if not hook:
            return None

        def call(**arguments: Any) -> Any:
            others = [other for other in self.manager.get_plugins() if other is not plugin]
            return self.manager.subset_hook_caller(hook, others)(**arguments)

        return call


def broken(info: PluginInfo, what: str, todo: str = "") -> PluginBroken:
    """The error for a plugin that does not keep its contract: who, what, what to do."""
    dist = info.dist_name or info.module
    todo = todo or f"Reinstall or upgrade {dist}, tell its authors, or choose another {info.kind}."
    return PluginBroken(f"plugin {info} is broken: {what}. {todo}", kind=info.kind, name=info.name)


def describe(exc: BaseException) -> str:
    """An error in one line with the place it came from: `KeyError: 'x' (plugin.py:12)`."""
    if isinstance(exc, SyntaxError):
        return f"SyntaxError: {exc.msg} ({exc.filename}:{exc.lineno})"
    text = " ".join(str(exc).split())
    frames = traceback.extract_tb(exc.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(exc).__name__}{': ' if text else ''}{text}{place}"


def _import(info: PluginInfo) -> Any:
    module = _module_name(info)
    try:
        return info.entry_point.load()
    except (KeyboardInterrupt, WorkerShutdown, WorkerTerminate):
        raise  # a person or a supervisor wants this process to end; that is not the plugin's doing
    except ModuleNotFoundError as exc:
        raise broken(info, *_missing_module(info, module, exc)) from exc
    except BaseException as exc:  # SystemExit too, and whatever else a stranger's module may raise
        if isinstance(exc, AttributeError) and info.module != module and module in sys.modules:
            raise broken(info, f"its entry point names {info.module}, but {module} has no such attribute") from exc
        raise broken(info, f"importing {module} raised {describe(exc)}") from exc


def _module_name(info: PluginInfo) -> str:
    try:
        return str(info.entry_point.module)
    except (AttributeError, ValueError) as exc:  # which of them depends on the version of importlib_metadata
        what = f"its entry point {info.module!r} is not of the form 'package.module' or 'package.module:object'"
        raise broken(info, what) from exc


def _missing_module(info: PluginInfo, own: str, exc: ModuleNotFoundError) -> tuple[str, str]:
    if exc.name and (own == exc.name or own.startswith(exc.name + ".")):
        return f"its entry point names the module {own}, which does not exist", ""
    dist = info.dist_name or info.module
    return (
        f"it needs the module {exc.name!r}, which is not installed",
        f"Try: pip install --force-reinstall {dist}, or choose another {info.kind}.",
    )


def _check_version(info: PluginInfo, plugin: Any) -> None:
    written_for = getattr(plugin, "CELERIAC_API", None)
    if written_for is None:  # the entry point may name an object in the module that says it
        written_for = getattr(sys.modules.get(info.entry_point.module), "CELERIAC_API", None)
    ours = "{}.{}".format(*API_VERSION)
    if written_for is None:
        raise broken(info, f"it does not say which contract it was written for (CELERIAC_API = {API_VERSION})")
    if not (isinstance(written_for, tuple) and [type(part) for part in written_for] == [int, int]):
        raise broken(info, f"its CELERIAC_API is {written_for!r} and should be two numbers, as in {API_VERSION}")
    major, minor = written_for
    if major != API_VERSION[0] or minor > API_VERSION[1]:
        newer = written_for > API_VERSION
        todo = "Upgrade celeriac" if newer else f"Upgrade {info.dist_name or info.module}"
        text = f"plugin {info} was written for contract {major}.{minor}; this celeriac has {ours}. {todo}."
        raise PluginIncompatible(text, kind=info.kind, name=info.name)


def _check_hooks(info: PluginInfo, plugin: Any) -> None:
    """Try the plugin in a manager of its own, so that the shared one never holds half of a bad plugin."""
    trial = _make_manager()
    try:
        trial.register(plugin, f"{info.kind}:{info.name}")
        trial.check_pending()
    except pluggy.PluginValidationError as exc:
        raise broken(info, _explain(exc)) from exc
    hook = KINDS[info.kind][2]
    if hook and not any(caller.name == hook for caller in trial.get_hookcallers(plugin) or ()):
        if callable(getattr(plugin, hook, None)):
            raise broken(info, f"its {hook} is not marked with @hookimpl (from celeriac.spec)")
        raise broken(info, f"it has no hook {hook}")


def _explain(exc: pluggy.PluginValidationError) -> str:
    """What pluggy says, in a few words."""
    text = " ".join(str(exc).split())
    unknown = text.partition("unknown hook ")[2].partition(" in plugin")[0]
    if unknown:
        return f"it implements {unknown}, which is no hook of celeriac (misspelt?)"
    what = text.partition("Argument(s) ")[2]
    hook = text.partition("hook '")[2].partition("'")[0]
    if what:
        return f"its {hook} takes {what.partition(' are declared')[0].strip('{}')}, which the hook does not have"
    return text


def _make_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    for _, hooks, _ in KINDS.values():
        manager.add_hookspecs(hooks)
    return manager
