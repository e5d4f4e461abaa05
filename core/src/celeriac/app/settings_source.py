"""Where settings come from: modules, objects, dicts, the environment, the command line.

Turns each source into a plain dict of new-style names and unread values; `settings.py` reads the values.
Also knows every spelling of a name, and which wrong names are likely misspelt.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import sys
import types
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from celeriac.app.settings_table import NOT_YET, TABLE, Setting
from celeriac.exceptions import (
    CeleriacError,
    CeleriacWarning,
    ImproperlyConfigured,
    SettingError,
    SettingsNotFound,
    join_words,
)

#: Setting → the environment variables that beat everything else, the better one first.
CONFIG_VARIABLES: Final = ("CELERIAC_CONFIG_MODULE", "CELERY_CONFIG_MODULE")
ENVIRONMENT: Final = {
    name: (f"CELERIAC_{name.upper()}", f"CELERY_{name.upper()}")
    for name in ("broker_url", "broker_read_url", "broker_write_url", "result_backend")
}

#: Names that start so are nobody's mistake: a program's own.
FREE_PREFIX: Final = "x_"

#: Upper-case names that start so are meant for us.
OUR_UPPER_PREFIXES: Final = ("CELERY_", "CELERYD_", "CELERYBEAT_", "CELERIAC_", "BROKER_")

#: New names of these families, written in capitals, are slips too: Celery ignored `RESULT_BACKEND` in silence.
#: Not so `REDIS_HOST` or `S3_BUCKET`, which web frameworks' settings have for themselves.
OUR_FAMILIES: Final = ("beat_", "broker_", "event_", "result_", "task_", "worker_")

#: How alike two names must be for one to pass as a slip of the other. `broke_url` and `broker_url`: 0.95;
#: `task_queue` and `task_queues`: 0.95; `redis_hosts` and `redis_host`: 0.95; `broker_uri`, `broker_url`: 0.9.
NEAR: Final = 0.88

_declared: dict[str, Setting] = dict(TABLE)
_by_old: dict[str, str] = {setting.old: setting.name for setting in TABLE.values() if setting.old}
_warned: set[str] = set()


def declare_setting(setting: Setting) -> None:
    """Make one more setting known, for a plugin that has its own.

    Raises:
        SettingError: The name is declared already, differently.
    """
    known = _declared.get(setting.name)
    if known is not None and known != setting:
        raise SettingError(f"The setting {setting.name} is declared already.", setting=setting.name)
    _declared[setting.name] = setting


def declared() -> Mapping[str, Setting]:
    """All settings that are known, by name."""
    return _declared


# -- names ------------------------------------------------------------------------------------------------


def new_name(name: str, namespace: str | None = None) -> str | None:
    """The declared name that `name` stands for; None if it stands for none.

    Understood are the new name, the one from before Celery 4 (`CELERYD_CONCURRENCY`), the new one in capitals
    after `CELERY_` (`CELERY_BROKER_URL`), and the same after another namespace.
    """
    if name in _declared:
        return name
    old = _by_old.get(name)
    if old is not None:
        return old
    for prefix in (f"{namespace.rstrip('_').upper()}_" if namespace else "CELERY_", "CELERY_", "CELERIAC_"):
        if name.startswith(prefix) and name[len(prefix) :].lower() in _declared:
            return name[len(prefix) :].lower()
    return None


def near_name(name: str) -> str | None:
    """The declared name that was likely meant, spelt in the manner of `name`; None if there is none."""
    if name in _declared:
        return None
    if not name.isupper():
        return _nearest(name, _declared)
    if name.lower() in _declared:
        return name.lower()
    return _nearest(name, (*_by_old, *(f"CELERY_{known.upper()}" for known in _declared)))


def check_unknown(names: Iterable[str], where: str) -> None:
    """Refuse names that are slips of known ones; warn, once for each, about the others.

    A name in capitals without a prefix of ours belongs to someone else (Flask's and Django's settings are often
    handed over whole), so it passes. So do names that start with `x_`.

    Raises:
        SettingError: With the name that was likely meant.
    """
    strange = []
    for name in names:
        if name.startswith(FREE_PREFIX) or _is_anothers(name):
            continue
        near = near_name(name)
        if near is not None:
            raise SettingError(
                f"There is no setting {name!r} ({where}). Did you mean {near!r}?", setting=name, suggestion=near
            )
        if name not in _warned:
            _warned.add(name)
            strange.append(name)
    if strange:
        warnings.warn(
            f"No setting has the name {', '.join(map(repr, strange))} ({where}). What celeriac and its plugins do not "
            f"read has no effect; a name that starts with {FREE_PREFIX!r} is taken for the program's own.",
            CeleriacWarning,
            stacklevel=_level_of_the_program(),
        )


def check_keywords(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keywords of the app's constructor that are slips of others; settings may be given there too.

    Raises:
        SettingError: With the keyword that was likely meant.
    """
    for name in given:
        if name.startswith(FREE_PREFIX) or new_name(name) is not None:
            continue
        near = _nearest(name, known)
        if near is not None:
            raise SettingError(f"An app takes no {name!r}. Did you mean {near!r}?", setting=name, suggestion=near)


def warn_of_no_effect(values: Mapping[str, Any]) -> None:
    """Warn, once for each, about settings that are Celery's but that nothing here reads so far."""
    idle = [
        name
        for name, value in values.items()
        if name in NOT_YET and name not in _warned and repr(value) != repr(_declared[name].default)
    ]
    if idle:
        _warned.update(idle)
        text = f"So far this version does not heed {join_words(sorted(idle))}."
        warnings.warn(text, CeleriacWarning, stacklevel=_level_of_the_program())


def _level_of_the_program() -> int:
    """The `stacklevel` of a warning by the caller, to name the line of the program's own that led to it."""
    frame: types.FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "celeriac":
        frame, level = frame.f_back, level + 1
    return level


def _is_anothers(name: str) -> bool:
    if not name.isupper() or name.startswith(OUR_UPPER_PREFIXES):
        return False
    return not (name.lower() in _declared and name.lower().startswith(OUR_FAMILIES))


def _nearest(name: str, known: Iterable[str]) -> str | None:
    import difflib  # only a wrong name pays for it

    found = difflib.get_close_matches(name, list(known), n=1, cutoff=NEAR)
    return found[0] if found else None


# -- objects ----------------------------------------------------------------------------------------------


def config_module_of_environment() -> str | None:
    """The module of settings that the environment names, for apps that name none."""
    return next((value for name in CONFIG_VARIABLES if (value := os.environ.get(name))), None)


def read_source(source: Any, namespace: str | None, silent: bool) -> dict[str, Any]:
    """All settings that a configuration source holds, by their new names.

    Args:
        source: A module, class, other object or mapping; or text that leads to one: `module`, `module:attr`.
        namespace: Only names that start with it count, and are read without it: `CELERY_BROKER_URL`.
        silent: A module that is missing gives no settings instead of an error.
    Raises:
        SettingsNotFound: The module is missing, or something that it imports.
        ImproperlyConfigured: It raises an error, or its names are in part old and in part new.
        SettingError: A name is a slip of a known one.
    """
    where = f"in {source!r}" if isinstance(source, str) else f"in {_describe(source)}"
    if isinstance(source, str):
        try:
            source = import_source(source)
        except ModuleNotFoundError as exc:
            wanted_module = source.partition(":")[0]
            if exc.name is None or not f"{wanted_module}.".startswith(f"{exc.name}."):
                # it is there, but something that it imports is not
                raise SettingsNotFound(_failed_module(source, exc), name=exc.name) from exc
            if silent:
                return {}
            raise SettingsNotFound(_missing_module(source, exc), name=exc.name) from exc
        except CeleriacError:
            raise
        except ImportError as exc:
            raise SettingsNotFound(_failed_module(source, exc), name=exc.name) from exc
        except Exception as exc:
            raise ImproperlyConfigured(_failed_module(source, exc)) from exc
    mapping = source if isinstance(source, Mapping) else None
    names = [name for name in (mapping if mapping is not None else dir(source)) if isinstance(name, str)]
    if mapping is None:
        names = [name for name in names if not name.startswith("_")]
    chosen = _choose_in_namespace(names, namespace, where) if namespace else _choose(names, where, source)
    if "TIME_ZONE" in names and "timezone" not in chosen.values():
        chosen["TIME_ZONE"] = "timezone"  # Django's
    read = mapping.__getitem__ if mapping is not None else functools.partial(getattr, source)
    return {new: read(name) for name, new in chosen.items()}


def import_source(path: str) -> Any:
    """Import what `module`, `module:attr` or `module.attr` names; the current folder counts as on the path.

    Raises:
        ModuleNotFoundError: There is no such module, or no such name in it. Other errors come from inside of it.
    """
    module_name, _, attribute = path.partition(":")
    with _CurrentFolderOnPath():
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as exc:
            parent, _, last = module_name.rpartition(".")
            # `module.attr`: only if it was the last word that could not be found
            if attribute or not parent or exc.name != module_name:
                raise
            module = importlib.import_module(parent)
            if not hasattr(module, last):
                raise
            return getattr(module, last)
    for word in filter(None, attribute.split(".")):
        try:
            found = getattr(found, word)
        except AttributeError as exc:
            text = f"The module {module_name!r} has no {attribute!r} to read settings from."
            raise SettingsNotFound(text, name=module_name) from exc
    return found


class _CurrentFolderOnPath:
    """The current folder is the last place to look in, unless it is on the path anyway."""

    def __enter__(self) -> None:
        self.folder = os.getcwd()
        self.added = self.folder not in sys.path and "" not in sys.path
        if self.added:
            sys.path.append(self.folder)

    def __exit__(self, *exc_info: object) -> None:
        if self.added and self.folder in sys.path:
            sys.path.remove(self.folder)


def _missing_module(path: str, exc: ModuleNotFoundError) -> str:
    text = f"The module of settings {path!r} cannot be found ({exc})."
    if path.endswith(".py"):
        return f"{text} Give its name without «.py»: {path[:-3]!r}."
    return f"{text} It is looked for in the current folder and on Python's path."


def _failed_module(path: str, exc: Exception) -> str:
    """With the last line of the module's own, or of whatever it imported, that Python was at."""
    import traceback  # only a module that fails pays for it

    if isinstance(exc, SyntaxError):
        place = f"{exc.filename}, line {exc.lineno}"
    else:
        last = traceback.extract_tb(exc.__traceback__)[-1]
        place = f"{last.filename}, line {last.lineno}"
    reason = exc.msg if isinstance(exc, SyntaxError) else str(exc)
    return f"The module of settings {path!r} cannot be imported: {type(exc).__name__}: {reason} ({place})."


def _describe(source: Any) -> str:
    if isinstance(source, Mapping):
        return "a dict of settings"
    if isinstance(source, (types.ModuleType, type)):
        return f"{source.__name__!r}"
    return f"an object of {type(source).__name__!r}"


def _choose(names: list[str], where: str, source: Any) -> dict[str, str]:
    """Name as written → new name, for a source without namespace."""
    new = {name: name for name in names if name in _declared}
    old = {name: known for name in names if name not in new and (known := new_name(name)) is not None}
    # One setting may be there under both names (for programs that ran on both); the new one counts.
    old = {name: known for name, known in old.items() if known not in new}
    oldest = {name: known for name, known in old.items() if name in _by_old and name.startswith(OUR_UPPER_PREFIXES)}
    if new and oldest:
        raise ImproperlyConfigured(_mixed_names(new, oldest, where))
    rest = [name for name in names if name not in new and new_name(name) is None]
    if not isinstance(source, Mapping):
        rest = [name for name in rest if _looks_like_a_setting(name, source)]
    check_unknown(rest, where)
    # Names that nobody declared are kept as they are: the program, or a plugin, may ask for them.
    return {**{name: name for name in rest}, **old, **new}


def _looks_like_a_setting(name: str, source: Any) -> bool:
    """A module holds helpers too: only names in the manner of settings, with plain values, are judged."""
    first, separator, _ = name.partition("_")
    if not name.isupper() and not (separator and near_name(name) is not None) and f"{first}_" not in _FIRST_WORDS:
        return False
    value = getattr(source, name, None)
    return not isinstance(
        value, (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
    )


_FIRST_WORDS: Final = frozenset({f"{name.partition('_')[0]}_" for name in TABLE if "_" in name})


def _choose_in_namespace(names: list[str], namespace: str, where: str) -> dict[str, str]:
    """Name as written → new name, for the names that start with the namespace."""
    prefix = f"{namespace.rstrip('_')}_"
    chosen, unknown = {}, {}
    for name in names:
        if not name.startswith((prefix.upper(), prefix.lower())):
            continue
        bare = name[len(prefix) :].lower()
        if bare in _declared:
            chosen[name] = bare
        elif name in _by_old:
            right = f"{prefix}{_by_old[name]}".upper()
            raise SettingError(
                f"{name} is the name of {_by_old[name]} from before Celery 4; with namespace={namespace!r} "
                f"it has no effect ({where}). Write {right}.",
                setting=name,
                suggestion=right,
            )
        else:
            unknown[name] = bare
    check_unknown(unknown.values(), f"{where}, namespace {namespace!r}")
    return {**chosen, **unknown}


def _mixed_names(new: dict[str, str], old: dict[str, str], where: str) -> str:
    """Whichever manner is rarer is the one to be renamed."""
    if len(old) > len(new):
        pairs = [(name, _declared[name].old or f"CELERY_{name.upper()}") for name in new]
    else:
        pairs = list(old.items())
    width = max(len(name) for name, _ in pairs)
    renames = "\n".join(f"    {name:<{width}} -> {right}" for name, right in sorted(pairs))
    return f"Old and new names of settings cannot be mixed ({where}). Rename:\n{renames}"


# -- environment and command line -------------------------------------------------------------------------


def read_environment() -> dict[str, str]:
    """The settings that environment variables give; empty ones do not count."""
    found = {}
    for name, variables in ENVIRONMENT.items():
        for variable in variables:
            if os.environ.get(variable):
                found[name] = os.environ[variable]
                break
    return found


def read_arguments(argv: Iterable[str], namespace: str = "celery") -> dict[str, Any]:
    """Settings from a command line: `worker.prefetch_multiplier=1`, `task_routes=(json){...}`.

    Args:
        argv: Words of the form `name=value` or `name=(type)value`; types are int, float, bool, string (str),
            list, tuple, dict and json.
        namespace: The command; `concurrency=2` after `worker` means `worker_concurrency`.
    Raises:
        SettingError: A word has no `=`, an unknown name or type, or a value that is not of that type.
    """
    found: dict[str, Any] = {}
    for word in argv:
        written, equals, text = word.partition("=")
        if not equals:
            raise SettingError(f"{word!r} is no setting; write name=value.", setting=word)
        name = written.strip().replace(".", "_").replace("-", "_")
        known = new_name(name) or new_name(f"{namespace}_{name.lstrip('_')}") or new_name(name.lower())
        if known is None:
            check_unknown([name], f"on the command line, {word!r}")
        found[known or name] = _read_typed(name, text)
    return found


_TYPED: Final = re.compile(r"\((\w+)\)(.*)", re.DOTALL)
_JSON_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "list": (list,),
    "tuple": (list,),
    "dict": (dict,),
    "json": (object,),
}


def _read_typed(name: str, text: str) -> Any:
    match = _TYPED.fullmatch(text)
    if match is None:
        return text
    kind, text = match.groups()
    try:
        if kind in _JSON_TYPES:
            value: Any = json.loads(text)
            if not isinstance(value, _JSON_TYPES[kind]):
                raise ValueError("it is another type")
            return tuple(cast("list[Any]", value)) if kind == "tuple" else value
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
        if kind == "bool":
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if kind in ("string", "str"):
            return text
    except (ValueError, KeyError) as exc:
        raise SettingError(f"The value of {name} is not of the type ({kind}): {text!r}.", setting=name) from exc
    types_ = "int, float, bool, string, list, tuple, dict, json"
    raise SettingError(f"({kind}) in the value of {name} is no type; there are {types_}.", setting=name)
