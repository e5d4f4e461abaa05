"""`app.conf`: all settings of one app as a mapping that reads like an object.

Settings come in layers; the upper one wins::

    command line        override()
    environment         CELERIAC_BROKER_URL, CELERY_BROKER_URL, … (`settings_source.ENVIRONMENT`)
    explicit changes    app.conf.x = y, app.conf.update(), Celery('tasks', x=y)
    config source       config_from_object(), config_from_envvar(); without one: what a loader of the program's own
                        reads, or the module that CELERIAC_CONFIG_MODULE or CELERY_CONFIG_MODULE names
                        (`celeriac --config`)
    added defaults      add_defaults(): plugins, integrations
    defaults            `settings_table.TABLE`; `fill_in` says which of them follow from others

Nothing is read or imported before the first setting is asked for. Every value is checked when it is given (or,
from a config source, when it is read): a misspelt name or an impossible value is a `SettingError` then and there.

Made by `app/base.py`, read by everyone; plugins get `as_mapping()`. Reading is a look-up in the instance's own
dict after the first time; any change forgets all that.
"""

from __future__ import annotations

import copy
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from celeriac.app.settings_source import (
    check_unknown,
    config_module_of_environment,
    declare_setting,
    declared,
    near_name,
    new_name,
    read_arguments,
    read_environment,
    read_source,
    warn_of_no_effect,
)
from celeriac.app.settings_table import TABLE, Setting
from celeriac.app.settings_values import read_value
from celeriac.exceptions import ImproperlyConfigured, mask_url

__all__ = ["EMBEDDED_URL", "TABLE", "Found", "Setting", "Settings", "declare_setting", "fill_in"]

#: Broker, and result store, of an app that was told of neither: a SQLite file.
EMBEDDED_URL: Final = "sqlite://"

MASK: Final = "********"
_SECRET_NAME: Final = re.compile(r"api|token|key|secret|pass|signature|credential", re.IGNORECASE)

Defaults = Mapping[str, Any] | Callable[[], Mapping[str, Any]]


class Found(NamedTuple):
    """A setting's name in two parts, and what is declared about it."""

    ns: str
    key: str
    option: Setting


def fill_in(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Settle the settings that follow from others. Changes `values`, which is complete.

    - `broker_url` that nobody gave: made of `broker_host` and its kin if one of these was given; the plugin's own
      default if only `broker_plugin` was given; else the embedded broker.
    - `result_backend` that nobody gave: by `backend_plugin`, likewise; else embedded too if the broker is embedded
      by default; else none, as in Celery.
    - `broker_read_url` and `broker_write_url`: `broker_url`.
    - `task_default_exchange` and `task_default_routing_key`: `task_default_queue`.

    Args:
        given: What was given in any layer above the defaults. An empty or None `broker_url` counts as not given;
            a `result_backend` of None does not: it turns results off.
    """
    embedded = False
    if not given.get("broker_url"):
        embedded = not any(given.get(name) for name in (*_URL_PARTS, "broker_plugin"))
        if any(given.get(name) for name in _URL_PARTS):
            values["broker_url"] = _url_of_parts(values)
        else:
            values["broker_url"] = _url_of_plugin(given.get("broker_plugin"))
    if "result_backend" not in given:
        if given.get("backend_plugin"):
            values["result_backend"] = _url_of_plugin(given["backend_plugin"])
        elif embedded:
            values["result_backend"] = EMBEDDED_URL
    for name in ("broker_read_url", "broker_write_url"):
        values[name] = values[name] or values["broker_url"]
    for name in ("task_default_exchange", "task_default_routing_key"):
        values[name] = values[name] or values["task_default_queue"]


_URL_PARTS: Final = (
    "broker_transport",
    "broker_host",
    "broker_port",
    "broker_user",
    "broker_password",
    "broker_vhost",
)


def _url_of_parts(values: Mapping[str, Any]) -> str:
    user, password, port = values["broker_user"], values["broker_password"], values["broker_port"]
    login = quote(user or "", safe="") + (f":{quote(password, safe='')}" if password else "")
    place = f"{values['broker_host'] or 'localhost'}{f':{port}' if port else ''}"
    vhost = quote(values["broker_vhost"] or "", safe="")
    return f"{values['broker_transport'] or 'amqp'}://{f'{login}@' if login else ''}{place}/{vhost}"


def _url_of_plugin(name: str | None) -> str:
    return f"{name.partition('@')[0]}://" if name else EMBEDDED_URL


class Settings(MutableMapping[str, Any]):
    """All settings of one app: `conf.task_serializer`, `conf["task_serializer"]`, `conf.update(...)`.

    Old upper-case names work wherever a name is taken. Iterating gives every declared name, and whatever else was
    put in. Safe to read from any thread.

    Args:
        changes: Settings given to the app's constructor. Checked here.
        config_source: As for `config_from_object`; read when the first setting is asked for.
        on_configure: Called before the config source is read.
        on_after_configure: Called with these settings after that.
        on_change: Called after each change, under the settings' lock.
        prepare: Given what the config source says, returns what is taken of it.
        from_loader: Gives the config source of an app that names none, or None.
    Raises:
        SettingError: A name in `changes` is a slip of a known one, or a value is impossible.
    """

    def __init__(
        self,
        changes: Mapping[str, Any] | None = None,
        config_source: Any = None,
        namespace: str | None = None,
        silent: bool = False,
        *,
        on_configure: Callable[[], Any] | None = None,
        on_after_configure: Callable[[Settings], Any] | None = None,
        on_change: Callable[[], Any] | None = None,
        prepare: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
        from_loader: Callable[[], Any] | None = None,
    ) -> None:
        self._lock = threading.RLock()
        self._namespace = namespace
        self._source_spec = config_source
        self._silent = silent
        self._on_configure = on_configure
        self._on_after_configure = on_after_configure
        self._on_change = on_change
        self._prepare = prepare
        self._from_loader = from_loader
        self._overrides: dict[str, Any] = {}
        self._environment: dict[str, Any] = {}
        self._changes: dict[str, Any] = {}
        self._source: dict[str, Any] = {}
        self._added: dict[str, Any] = {}
        self._pending_defaults: list[Defaults] = []
        self._defaults: dict[str, Any] = {}
        self._values: dict[str, Any] | None = None
        self._configured = False
        self._configuring = False
        if changes:
            self._changes = self._read(changes, "given to the app")

    # -- loading ------------------------------------------------------------------------------------------

    @property
    def configured(self) -> bool:
        """The config source, if there is one, has been read."""
        return self._configured

    def config_from_object(
        self, source: Any, *, silent: bool = False, force: bool = False, namespace: str | None = None
    ) -> None:
        """Take settings from a module, class, other object or dict, or from text that leads to one.

        Args:
            source: Or `"module"`, `"module:attr"`, `"module.attr"`.
            silent: A missing module is no error.
            force: Read it now rather than when the first setting is asked for.
            namespace: Only upper-case names that start with it count: `CELERY_BROKER_URL` with `"CELERY"`.
        Raises:
            SettingsNotFound: On reading: the module is missing, or something that it imports.
            ImproperlyConfigured: On reading: it raises an error, or old and new names are mixed.
            SettingError: On reading: a misspelt name or an impossible value.
        """
        with self._lock:
            # A name that is empty names no module, as in Celery: what a variable says that is not set.
            self._source_spec = None if isinstance(source, str) and not source else source
            self._silent, self._namespace = silent, namespace
            again = self._configured
            self._configured = False
            self._source = {}
            self._forget()
            if force or again:
                self.finalize()

    def config_from_envvar(self, variable: str, *, silent: bool = False, force: bool = False) -> bool:
        """Take settings from the module that an environment variable names.

        Returns:
            False if the variable is not set and `silent` is true.
        Raises:
            ImproperlyConfigured: The variable is not set.
        """
        module = os.environ.get(variable)
        if module:
            self.config_from_object(module, silent=silent, force=force)
            return True
        if silent:
            return False
        raise ImproperlyConfigured(
            f"The environment variable {variable!r} is not set; it should name a module of settings."
        )

    def config_from_cmdline(self, argv: Iterable[str], namespace: str = "celery") -> None:
        """Take settings from words such as `worker.prefetch_multiplier=1`; they beat all other layers."""
        self.override(read_arguments(argv, namespace))

    def add_defaults(self, defaults: Defaults) -> None:
        """Put a mapping, or a function that returns one, between the config source and the defaults."""
        with self._lock:
            self._pending_defaults.append(defaults)
            self._forget()

    def override(self, changes: Mapping[str, Any]) -> None:
        """Set settings from the command line, which beat even the environment."""
        read = self._read(changes, "on the command line")
        with self._lock:
            self._overrides.update(read)
            self._forget()

    def finalize(self) -> None:
        """Read the config source and settle every setting now."""
        self._all()

    def after_fork(self) -> None:
        """In a forked child: whoever held the lock may not be here."""
        self._lock = threading.RLock()
        self._configuring = False

    # -- the mapping --------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        values = self._values
        if values is None:
            values = self._all()
        try:
            return values[key]
        except KeyError:
            known = new_name(key, self._namespace)
            if known is None:
                raise
            return values[known]

    def __setitem__(self, key: str, value: Any) -> None:
        read = self._read({key: value}, "set in the program")
        with self._lock:
            self._changes.update(read)
            self._forget()

    def __delitem__(self, key: str) -> None:
        """Take an explicit change back.

        Raises:
            KeyError: It was not changed.
        """
        with self._lock:
            del self._changes[self._name(key)]
            self._forget()

    def clear(self) -> None:
        """Take all explicit changes back."""
        with self._lock:
            self._changes.clear()
            self._forget()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and (key in self._all() or self._name(key) in self._all())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            value = self[name]
        except KeyError:
            near = near_name(name)
            hint = f" Did you mean {near!r}?" if near else ""
            raise AttributeError(f"There is no setting {name!r}.{hint}") from None
        self._remember(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"The setting {name!r} was not changed.") from None

    def __repr__(self) -> str:
        return f"<Settings: {self.humanize()}>" if self._configured else "<Settings: not read yet>"

    def __copy__(self) -> Settings:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (dict(self._changes), self._source_spec, self._namespace, self._silent)

    def update(self, *args: Any, **changes: Any) -> None:
        """Change several settings at once: all of them, or none if one is wrong."""
        read = self._read(dict(*args, **changes), "set in the program")
        with self._lock:
            self._changes.update(read)
            self._forget()

    def copy(self) -> Settings:
        """Settings of the same layers; changing one leaves the other as it is."""
        with self._lock:
            other = Settings(None, self._source_spec, self._namespace, self._silent, prepare=self._prepare)
            other._from_loader = self._from_loader
            other._changes = dict(self._changes)
            other._overrides = dict(self._overrides)
            other._added = dict(self._added)
            other._pending_defaults = list(self._pending_defaults)
            return other

    def as_mapping(self) -> Mapping[str, Any]:
        """All settings, read only, by their lower-case names; later changes show."""
        return _View(self)

    # -- questions ----------------------------------------------------------------------------------------

    @property
    def source(self) -> Any:
        """Where settings are read from: what `config_from_object` was given."""
        return self._source_spec

    @property
    def defaults(self) -> list[dict[str, Any]]:
        """The layers below the explicit changes: config source, added defaults, the table's."""
        self._all()
        return [dict(self._source), dict(self._added), dict(self._defaults)]

    @property
    def changes(self) -> dict[str, Any]:
        """What was changed explicitly, by name."""
        return dict(self._changes)

    @property
    def overrides(self) -> dict[str, Any]:
        """What the command line set, by name."""
        return dict(self._overrides)

    def value_set_for(self, key: str) -> bool:
        """Someone gave this setting, in whatever layer above the defaults."""
        self._all()
        return self._name(key) in self._given()

    def without_defaults(self) -> dict[str, Any]:
        """Only the settings whose value somebody gave, or that differ from the declared default."""
        given = self._given()
        return {
            name: value
            for name, value in self._all().items()
            if name in given or (name in self._defaults and self._defaults[name] != declared()[name].default)
        }

    def first(self, *keys: str) -> Any:
        """The first value that is not None among these settings; names that do not exist count as None."""
        return next((value for value in map(self.get, keys) if value is not None), None)

    def get_by_parts(self, *parts: str) -> Any:
        """`get_by_parts("task", "default", "queue")`; empty parts are left out."""
        return self["_".join(part for part in parts if part)]

    def find_option(self, name: str, namespace: str = "") -> Found:
        """The declared setting that `name` means, in full or without its first word.

        Raises:
            KeyError: There is none.
        """
        for candidate in (f"{namespace}_{name}" if namespace else name, name):
            known = new_name(candidate.lower(), self._namespace)
            if known is not None:
                return _found(known)
        ending = f"_{name.lower()}"
        known = next(
            (known for known in declared() if known.endswith(ending) and known.count("_") == name.count("_") + 1), None
        )
        if known is None:
            raise KeyError(name)
        return _found(known)

    def find_value_for_key(self, name: str, namespace: str = "celery") -> Any:
        """The value of the setting that `find_option` finds."""
        found = self.find_option(name, namespace=namespace)
        return self.get_by_parts(found.ns, found.key)

    def table(self, with_defaults: bool = False, censored: bool = True) -> dict[str, Any]:
        """Settings as a plain dict for people to read.

        Args:
            with_defaults: Those that nobody gave, too.
            censored: Passwords, keys and the like are replaced, also inside URLs and dicts.
        """
        values = self._all() if with_defaults else self.without_defaults()
        return {name: _censor(name, value) if censored else value for name, value in values.items()}

    def humanize(self, with_defaults: bool = False, censored: bool = True) -> str:
        """The same as text, one setting a line."""
        return "\n".join(f"{name}: {value!r}" for name, value in self.table(with_defaults, censored).items())

    # -- inside -------------------------------------------------------------------------------------------

    def _name(self, key: str) -> str:
        return new_name(key, self._namespace) or key

    def _read(self, changes: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Names and values as they will be kept."""
        named = {self._name(key): value for key, value in changes.items()}
        check_unknown([name for name in named if name not in declared()], where)
        return _read_values(named)

    def _given(self) -> dict[str, Any]:
        """All layers above the defaults, as one."""
        return {**self._added, **self._source, **self._changes, **self._environment, **self._overrides}

    def _all(self) -> dict[str, Any]:
        """Every setting, settled; configures at the first call."""
        values = self._values
        if values is not None:
            return values
        with self._lock:
            self._configure()
            for defaults in self._pending_defaults:
                self._added.update(self._read(defaults() if callable(defaults) else defaults, "in added defaults"))
            self._pending_defaults.clear()
            given = self._given()
            # A dict or list among the defaults is this app's own: `conf.beat_schedule["x"] = …` must last.
            for name, setting in declared().items():
                if name not in self._defaults:
                    self._defaults[name] = copy.deepcopy(setting.default)
            values = {**self._defaults, **given}
            fill_in(values, given)
            if not self._configuring:
                self._values = values
            return values

    def _configure(self) -> None:
        if self._configured or self._configuring:
            return
        self._configuring = True
        try:
            if self._on_configure is not None:
                self._on_configure()
            self._environment = self._read(read_environment(), "in the environment")
            source = self._source_spec
            if source is None and self._from_loader is not None:
                source = self._from_loader()
            if source is None:
                source = config_module_of_environment()
            if source is not None:
                found = read_source(source, self._namespace, self._silent)
                self._source = _read_values(found if self._prepare is None else self._prepare(dict(found)))
            self._configured = True
        finally:
            self._configuring = False
        if self._on_after_configure is not None:
            self._on_after_configure(self)

    def _remember(self, name: str, value: Any) -> None:
        with self._lock:
            # A change in another thread may have come between; then the value is not to be kept.
            if self._values is not None and self._values.get(name, self) is value:
                self.__dict__[name] = value

    def _forget(self) -> None:
        self._values = None
        for name in [name for name in self.__dict__ if not name.startswith("_")]:
            del self.__dict__[name]
        if self._on_change is not None:
            self._on_change()


class _View(Mapping[str, Any]):
    """Settings for those who may only read."""

    __slots__ = ("_settings",)

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __getitem__(self, key: str) -> Any:
        return self._settings[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def __repr__(self) -> str:
        return repr(self._settings)


def _read_values(named: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they will be kept; those of names that nobody declared as they are."""
    known = declared()
    values = {name: read_value(known[name], value) if name in known else value for name, value in named.items()}
    warn_of_no_effect(values)
    return values


def _rebuild(changes: dict[str, Any], source: Any, namespace: str | None, silent: bool) -> Settings:
    return Settings(changes, source, namespace, silent)


def _found(name: str) -> Found:
    first, separator, rest = name.partition("_")
    return Found(first, rest, declared()[name]) if separator else Found("", name, declared()[name])


def _censor(name: str, value: Any) -> Any:
    """The value without its secrets."""
    setting = declared().get(name)
    if value is not None and (setting.kind == "secret" if setting is not None else _SECRET_NAME.search(name)):
        return MASK
    if isinstance(value, str):
        return mask_url(value)
    if isinstance(value, Mapping):
        return {key: _censor_inner(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_censor("", item) for item in value) if type(value) in (list, tuple) else value
    return value


def _censor_inner(key: str, value: Any) -> Any:
    if value is not None and _SECRET_NAME.search(key) and not key.endswith("routing_key"):
        return MASK
    return _censor("", value)
