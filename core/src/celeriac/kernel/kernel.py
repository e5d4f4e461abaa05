"""The kernel, one per app: chooses plugins, has them make their objects, and knows what is in use.

Which plugin is taken: the name given (a flag), else the setting `broker_plugin` or `backend_plugin`, else the
URL's scheme, whole or up to its `+`. A name may be `name@dist` where two distributions claim it.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from celeriac.exceptions import (
    CeleriacError,
    ImproperlyConfigured,
    PluginAmbiguous,
    PluginBlocked,
    PluginNotFound,
    Unsupported,
    WorkerShutdown,
    WorkerTerminate,
    join_words,
    mask_url,
)
from celeriac.kernel.discovery import PluginInfo, catalog, describe_own, own_dists, same_dist
from celeriac.kernel.loader import LoadedPlugin, Loader, broken, describe
from celeriac.kernel.own import find_named, make_named, name_of
from celeriac.kernel.registered import find_registered, name_of_registered
from celeriac.kernel.shape import find_faults
from celeriac.spec.backend import Host, ResultBackend
from celeriac.spec.hooks import KINDS
from celeriac.spec.pool import Pool, PoolOptions, SlotProgram
from celeriac.spec.serializer import Serializer
from celeriac.spec.transport import Transport
from celeriac.utils.text import bounded_repr

#: kind → how a user chooses a plugin of it by name, for errors
CHOSEN_BY = {
    "broker": "--broker-plugin or the setting broker_plugin",
    "backend": "--backend-plugin or the setting backend_plugin",
    "serializer": "the settings task_serializer, result_serializer and accept_content",
    "pool": "--pool or the setting worker_pool",
    "extension": "the setting plugins_enabled",
}

#: Names that Celery's users know and that no plugin has → what to do instead, for errors
INSTEAD = {
    ("pool", "eventlet"): (
        "eventlet is no longer developed. Greenlets run in the pool gevent: pip install celeriac-pool-gevent, "
        "then -P gevent in place of -P eventlet."
    ),
}

#: Words that users of Celery type (schemes, mostly) → the plugin that has them, where its distribution is called by
#: another of its names
OTHER_NAMES = {
    ("broker", "amqps"): "amqp",
    ("broker", "pyamqp"): "amqp",
    ("broker", "rediss"): "redis",
    ("broker", "sentinel"): "redis",
    ("backend", "cache"): "memcached",
    ("backend", "db"): "database",
    ("backend", "django-cache"): "django",
    ("backend", "django-db"): "django",
    ("backend", "file"): "filesystem",
    ("backend", "rediss"): "redis",
    ("backend", "sentinel"): "redis",
    ("pool", "processes"): "prefork",
}


@dataclass(frozen=True)
class Choice:
    """What was asked for: a kind, the names to try in order, and who asked, for errors."""

    kind: str
    names: tuple[str, ...]
    asked_by: str
    bare: bool = False  # a URL without a scheme


class Kernel:
    """Makes an app's transports, backends, serializers and pools.

    Nothing is scanned or imported before the first `make_…`. All methods raise `PluginError`s (not found,
    ambiguous, blocked, broken, incompatible) with a text that says what to do.

    Args:
        settings: The app's settings by lower-case name; read anew at every call.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._loader = Loader()
        self._in_use: dict[tuple[str, str], PluginInfo] = {}
        self._makers: dict[type, PluginInfo] = {}
        self._serializers: dict[str, Serializer] = {}
        self._searched_all_serializers = False

    # -- what it makes ------------------------------------------------------------------------------------

    def make_transport(self, url: str | None = None, plugin: str | None = None) -> Transport:
        """Make a transport for `url` (default: `broker_url`), without connecting."""
        url = first_url(url if url is not None else self._settings.get("broker_url"))
        plugin = plugin or self._settings.get("broker_plugin")
        choice = self._choose("broker", url, plugin)
        if ";" in url and not plugin:
            self._require_one_plugin(choice, url)
        made = self._make(choice, url, url=url, settings=self._settings)
        return cast(Transport, made)

    def make_backend(self, url: Any, plugin: str | None, host: Host) -> ResultBackend:
        """Make a result backend for `url` (default: `result_backend`), without connecting.

        Args:
            url: Also a class, an object, or the path of one: see `own`.
            plugin: Its name; None takes the setting `backend_plugin`, and "" goes by the URL.
        """
        wanted = url if url is not None else self._settings.get("result_backend")
        plugin = self._settings.get("backend_plugin") if plugin is None else plugin
        if not plugin:
            overrides = self._settings.get("override_backends") or {}
            named = find_named(wanted, overrides, lambda name: bool(catalog().named("backend", name)))
            if named is not None:
                own = make_named(named, self._settings, host, catalog().names("backend"))
                self._makers[type(own)] = info = describe_own(name_of(named.what))
                self._remember(info)
                return cast(ResultBackend, own)
        url = first_url(wanted)
        choice = self._choose("backend", url, plugin)
        made = self._make(choice, url, url=url, settings=self._settings, host=host)
        return cast(ResultBackend, made)

    def make_serializer(self, name: str) -> Serializer:
        """The serializer of this name; the same object at every call until settings change."""
        if name not in self._serializers:
            choice = Choice("serializer", (name,), f"serializer {name!r}")
            found = None if catalog().named("serializer", _bare(name)) else find_registered(name)
            self._serializers[name] = found or cast(
                Serializer, self._make(choice, name, name=_bare(name), settings=self._settings, host=self)
            )
        return self._serializers[name]

    def after_fork(self) -> None:
        """In a forked child: see `Loader.after_fork`."""
        self._loader.after_fork()

    def forget_serializers(self) -> None:
        """Make them anew when they are next asked for: settings on which they may depend have changed."""
        self._serializers.clear()
        self._searched_all_serializers = False

    def serializer_for_content_type(self, content_type: str) -> Serializer:
        """The serializer that reads this content type (`application/json`).

        Asks the serializers made so far; then, once, every installed one that can be loaded. Call it with
        types that the app accepts, not with whatever stands in a message.

        Raises:
            PluginNotFound: None of them reads it.
        """
        found = self._by_content_type(content_type)
        if found is None and not self._searched_all_serializers:
            for name in catalog().names("serializer"):
                try:
                    self.make_serializer(name)
                except ImproperlyConfigured:  # every PluginError is one
                    continue  # nobody chose this one; whoever does is told
            self._searched_all_serializers = True
            found = self._by_content_type(content_type)
        if found is None:
            registered = name_of_registered(content_type)
            found = self.make_serializer(registered) if registered else None
        if found is None:
            readable = join_words(sorted({one.content_type for one in self._serializers.values()})) or "none"
            text = f"no serializer plugin reads the content type {content_type!r}. Installed ones read: {readable}."
            raise PluginNotFound(text, kind="serializer", name=content_type)
        return found

    def make_pool(self, name: str, program: SlotProgram, options: PoolOptions) -> Pool:
        """Make the pool of this name, without starting it."""
        choice = Choice("pool", (name,), f"pool {name!r}")
        return cast(Pool, self._make(choice, name, name=_bare(name), program=program, options=options))

    def check_consumer(self, transport: Transport, consumer: Any) -> None:
        """Compare with its contract what a transport of this kernel made for a worker.

        Raises:
            PluginBroken: It lacks something, which would come out when a message is held, if not in the night.
        """
        faults = find_faults("consumer", consumer)
        if faults:
            raise broken(self.maker_of(transport), "; ".join(faults))

    def check_returned(self, made: Any, verb: str, due: type, returned: Any) -> None:
        """Make sure that what a verb of a transport or pool of this kernel has returned is a list of these.

        For when something went wrong with it: a check of each would cost what it costs.

        Args:
            made: The transport, also for a verb of its consumer.
        Raises:
            PluginBroken: It is something else.
        """
        info = self._makers.get(type(made))
        if info is None:
            return
        if not isinstance(returned, Sequence):
            raise broken(info, f"its {verb} returned {bounded_repr(returned, 100)}, which is no list")
        for item in returned:
            if not isinstance(item, due):
                what = f"its {verb} returned a list with {bounded_repr(item, 100)} in it, which is no {due.__name__}"
                raise broken(info, what)

    # -- extensions ---------------------------------------------------------------------------------------

    def extensions(self) -> list[PluginInfo]:
        """The extensions to load: those that `plugins_enabled` names, else every installed one; never blocked ones."""
        enabled = self._settings.get("plugins_enabled")
        if enabled is None:
            return [info for info in catalog().all("extension") if not self._forbidden_by(info)]
        return [self.find("extension", name) for name in enabled]

    def load(self, info: PluginInfo) -> LoadedPlugin:
        """Load a plugin without making anything; from then on `notify` reaches an extension."""
        loaded = self._loader.load(info)
        self._remember(info)
        return loaded

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call a hook of all loaded extensions."""
        getattr(self._loader.manager.hook, hook)(**arguments)

    # -- what it knows ------------------------------------------------------------------------------------

    def loaded(self) -> list[PluginInfo]:
        """The plugins in use, by kind and in the order in which they were first used."""
        kinds = list(KINDS)
        return sorted(self._in_use.values(), key=lambda info: kinds.index(info.kind))

    def culprit(self, exc: BaseException) -> PluginInfo | None:
        """The plugin in use in whose code, or below it, this was raised.

        None if celeriac's own code stood in between, as where a plugin has it run what is the user's.
        """
        modules: list[str] = []
        trace = exc.__traceback__
        while trace is not None:
            modules.append(str(trace.tb_frame.f_globals.get("__name__", "")))
            trace = trace.tb_next
        return self.owner_of(modules)

    def owner_of(self, modules: Iterable[str]) -> PluginInfo | None:
        """The plugin in use in whose code, or below it, a stack of calls ends; None as for `culprit`.

        Args:
            modules: Whose functions they are, outermost first.
        """
        packages = {re.split(r"[.:]", info.module)[0]: info for info in reversed(self.loaded())}
        found: PluginInfo | None = None
        for module in modules:
            package = module.partition(".")[0]
            found = None if package == "celeriac" else packages.get(package, found)
        return found

    def blame(self, exc: Exception, when: str) -> Exception:
        """What to raise in place of an error that ends something: it names the `culprit`, if there is one.

        Args:
            when: Where it was raised, for the text: `"while the worker ran"`.
        """
        info = None if isinstance(exc, CeleriacError) else self.culprit(exc)
        if info is None:
            return exc
        todo = f"Upgrade {info.dist_name or info.module}, or tell its authors."
        return CeleriacError(f"plugin {info} raised {describe(exc)} {when}. {todo}")

    def maker_of(self, made: Any) -> PluginInfo:
        """Which plugin made this object.

        Raises:
            LookupError: None of this kernel's.
        """
        return self._makers[type(made)]

    def require(self, made: Any, abilities: Iterable[str], *, because: str = "") -> None:
        """Make sure that a transport, backend or pool of this kernel has these abilities.

        Args:
            because: What needs them, as a clause: `the task tasks.add has a countdown`.
        Raises:
            Unsupported: It lacks some.
        """
        lacking = sorted(set(abilities) - set(made.abilities))
        if lacking:
            info = self.maker_of(made)
            reason = f", which is needed because {because}" if because else ""
            noun = "ability" if len(lacking) == 1 else "abilities"
            others = [name for name in catalog().names(info.kind) if name != info.name]
            remedy = f"Choose another {info.kind} by {CHOSEN_BY[info.kind]}"
            remedy += f" (installed: {', '.join(others)})" if others else ""
            raise Unsupported(f"plugin {info} lacks the {noun} {join_words(lacking)}{reason}. {remedy}, or do without.")

    def find(self, kind: str, name: str) -> PluginInfo:
        """The plugin that a name (`redis` or `redis@dist`) stands for, without importing it."""
        return self._select(Choice(kind, (name,), f"{kind} {name!r}"))

    # -- choosing -----------------------------------------------------------------------------------------

    def _choose(self, kind: str, url: str, plugin: str | None) -> Choice:
        if plugin:
            return Choice(kind, (plugin,), f"plugin {plugin!r}")
        if not url:
            setting = "broker_url" if kind == "broker" else "result_backend"
            raise ImproperlyConfigured(f"no {kind} is configured. Set {setting}, as in 'redis://localhost:6379/0'.")
        scheme = scheme_of(url)
        names = (scheme, scheme.partition("+")[0]) if "+" in scheme else (scheme,)
        return Choice(kind, names, f"the {kind} URL {mask_url(url)!r}", bare="://" not in url)

    def _select(self, choice: Choice) -> PluginInfo:
        for name in choice.names:
            bare, _, dist = name.partition("@")
            found = catalog().named(choice.kind, bare)
            if dist:
                found = tuple(info for info in found if same_dist(info.dist_name, dist))
            if len(found) > 1:
                raise _ambiguous(choice, found)
            if found:
                self._check_allowed(found[0])
                return found[0]
        raise _not_found(choice)

    def _check_allowed(self, info: PluginInfo) -> None:
        reason = self._forbidden_by(info)
        if reason:
            text = f"plugin {info} is installed, but {reason}. Change that list or choose another {info.kind}."
            raise PluginBlocked(text, kind=info.kind, name=info.name)

    def _forbidden_by(self, info: PluginInfo) -> str:
        """Which list forbids this plugin, as a clause; empty if none does.

        An entry of a list is a pattern for `redis`, `broker:redis`, or either with `@dist` behind it.
        """
        blocked = self._list_of("plugins_blocked", "CELERIAC_PLUGINS_BLOCKED")
        for pattern in blocked or ():
            if _matches(info, pattern):
                return f"blocked by {pattern!r} (setting plugins_blocked or CELERIAC_PLUGINS_BLOCKED)"
        allowed = self._list_of("plugins_allowed", "CELERIAC_PLUGINS_ALLOWED")
        if allowed is not None and not any(_matches(info, pattern) for pattern in allowed):
            return f"not on the list of allowed ones: {', '.join(allowed)} (plugins_allowed, CELERIAC_PLUGINS_ALLOWED)"
        return ""

    def _list_of(self, setting: str, variable: str) -> list[str] | None:
        """Both lists together; None if neither is set, which for an allow list means: everything."""
        value = self._settings.get(setting)
        parts = _split(value) if isinstance(value, str) else list(value or ())
        parts += _split(os.environ.get(variable, ""))
        return parts or None

    def _require_one_plugin(self, choice: Choice, url: str) -> None:
        """Of several URLs one is used at a time, and all by one plugin."""
        info = self._select(choice)
        for other in url.split(";")[1:]:
            if "://" in other and self._select(self._choose("broker", other.strip(), None)) != info:
                raise ImproperlyConfigured(
                    f"the broker URLs {mask_url(url)!r} are for different brokers. Of several URLs one is used at a "
                    "time, so all are servers of one kind."
                )

    # -- making -------------------------------------------------------------------------------------------

    def _make(self, choice: Choice, asked: str, **arguments: Any) -> Any:
        info = self._select(choice)
        loaded = self._loader.load(info)
        made = _call(info, cast(Callable[..., Any], loaded.call), arguments)
        if made is None:
            raise _declined(info, asked)
        faults = find_faults(info.kind, made)
        if faults:
            raise broken(info, "; ".join(faults))
        self._remember(info)
        self._makers[type(made)] = info
        return made

    def _remember(self, info: PluginInfo) -> None:
        self._in_use.setdefault((info.kind, info.module), info)

    def _by_content_type(self, content_type: str) -> Serializer | None:
        return next((one for one in list(self._serializers.values()) if one.content_type == content_type), None)


def scheme_of(url: str) -> str:
    """The scheme in lower case; `rpc` for the bare word `rpc`."""
    return url.partition("://")[0].partition(":")[0].strip().lower()


def first_url(urls: Any) -> str:
    """One text of what a setting may hold: nothing, a URL, several for failover (then joined by `;`), or the class or
    object of a result backend (then its path)."""
    if urls is None:
        return ""
    return ";".join(urls) if isinstance(urls, (list, tuple)) else name_of(urls)


def _call(info: PluginInfo, call: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return call(**arguments)
    except (CeleriacError, WorkerShutdown, WorkerTerminate):
        raise  # the plugin says itself what is wrong, and with what; or this process is asked to end
    except ModuleNotFoundError as exc:
        dist = info.dist_name or info.module
        todo = f"Try: pip install --force-reinstall {dist}, or choose another {info.kind}."
        raise broken(info, f"it needs the module {exc.name!r}, which is not installed", todo) from exc
    except (Exception, SystemExit) as exc:
        raise broken(info, f"its {KINDS[info.kind][2]} raised {describe(exc)}") from exc


def _declined(info: PluginInfo, asked: str) -> ImproperlyConfigured:
    """The plugin's hook gave None: a fault of its own for its own name, of the user's for another."""
    if info.kind in ("broker", "backend") and scheme_of(asked).partition("+")[0] != info.name.partition("+")[0]:
        return ImproperlyConfigured(
            f"plugin {info} was chosen, but does not take the URL {mask_url(asked)!r}. "
            f"Give it a URL that begins with {info.name}://, or leave the choice to the URL."
        )
    return broken(info, f"it made nothing for {mask_url(asked)!r}, which is its own")


def _ambiguous(choice: Choice, found: Iterable[PluginInfo]) -> PluginAmbiguous:
    infos = sorted(found, key=lambda info: info.dist_name)
    name = infos[0].name
    text = (
        f"{len(infos)} installed distributions have a {choice.kind} plugin named {name!r}: "
        f"{join_words(info.dist for info in infos)} (asked for by {choice.asked_by}). "
        f"Choose one by {CHOSEN_BY[choice.kind]}, as in {name}@{infos[0].dist_name}, or uninstall the other."
    )
    return PluginAmbiguous(text, kind=choice.kind, name=name)


def _not_found(choice: Choice) -> PluginNotFound:
    name, _, dist = choice.names[-1].partition("@")
    found = catalog().named(choice.kind, name)
    if dist and found:
        have = join_words(info.dist for info in found)
        text = f"the {choice.kind} plugin {name!r} is not in the distribution {dist!r}, but in {have}."
        return PluginNotFound(text, kind=choice.kind, name=name)
    installed = catalog().names(choice.kind)
    near = difflib.get_close_matches(name, installed, n=1, cutoff=0.75)
    parts = [f"no {choice.kind} plugin is named {name!r} (asked for by {choice.asked_by})."]
    parts.append(f"Installed: {', '.join(installed)}." if installed else f"No {choice.kind} plugin is installed.")
    if (choice.kind, name) in INSTEAD:
        parts.append(INSTEAD[choice.kind, name])
    elif near:
        parts.append(f"Did you mean {near[0]!r}?")
    elif choice.bare:
        parts.append("A URL begins with its scheme, as in redis://localhost/0.")
    elif re.fullmatch(r"[a-z][a-z0-9-]*", name):
        parts.append(_how_to_get(choice.kind, name))
    parts += catalog().troubles  # it may be in one of those
    return PluginNotFound(" ".join(parts), kind=choice.kind, name=name)


def _how_to_get(kind: str, name: str) -> str:
    dist = f"celeriac-{kind}-{OTHER_NAMES.get((kind, name), name)}"
    if dist in own_dists():
        return f"Try: pip install {dist}"
    return f"celeriac itself has none of that name. If somebody else has: pip install {dist}"


def _matches(info: PluginInfo, pattern: str) -> bool:
    names = [info.name, f"{info.kind}:{info.name}"]
    pattern, at, dist = pattern.partition("@")
    if at and not same_dist(info.dist_name, dist):
        return False
    return not pattern or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _bare(name: str) -> str:
    return name.partition("@")[0]


def _split(text: str) -> list[str]:
    return [part for part in re.split(r"[,\s]+", text) if part]
