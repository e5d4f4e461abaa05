"""Result backends that are no plugins: a class, an object, or the path of one, named by the program itself.

Asked by the kernel when it makes a result backend. Where one may be named, in this order:

==========================================  ===========================================================================
`result_backend` is a class or an object    `Celery(backend=MyBackend)`, `app.conf.result_backend = MyBackend(…)`
`override_backends`                         by the URL's scheme, ahead of the plugins: `{"redis": "my.module:Backend"}`
a plugin of celeriac's                      which is not this module's business
`result_backend` is a path                  `my.module.Backend`, `my.module:Backend`, `my.module:Backend+redis://host`
entry points of `celery.result_backends`    by the URL's scheme: Celery's own way to name backends of others
==========================================  ===========================================================================

A class, or any function, is called as a plugin's hook is: `(url, settings, host)`. What it makes must keep the contract
of result backends; those written for Celery make other promises, and are refused with a word on what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from celeriac.exceptions import CeleriacError, ImproperlyConfigured, mask_url
from celeriac.kernel.discovery import named_objects
from celeriac.kernel.loader import describe
from celeriac.kernel.shape import find_faults

if TYPE_CHECKING:
    from celeriac.spec.backend import Host

CELERYS_GROUP: Final = "celery.result_backends"
SETTING: Final = "result_backend"
PATH: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*")
CONTRACT: Final = "What a result backend must have stands in docs/plugins/backend.md"
#: Methods that all of Celery's own backends have, and none of ours.
CELERYS_METHODS: Final = ("get_task_meta", "store_result", "on_chord_part_return")


class Named(Struct, frozen=True):
    """A backend that a program named.

    Attributes:
        what: The class, function or object, or the path of one.
        url: What it is called with; "" when only the class was named.
        said_by: Where it stands, for errors.
    """

    what: Any
    url: str
    said_by: str


def find_named(wanted: Any, overrides: Mapping[str, Any], is_plugin: Callable[[str], bool]) -> Named | None:
    """What `result_backend` names, if that is no plugin.

    Args:
        wanted: The setting's value.
        overrides: The setting `override_backends`.
        is_plugin: Whether a plugin has this name.
    """
    if not isinstance(wanted, str):
        return None if wanted is None or isinstance(wanted, (list, tuple)) else Named(wanted, "", SETTING)
    before, colon, _ = wanted.partition("://")
    scheme = before.strip()
    first, plus, _ = scheme.partition("+")
    url = wanted if colon else ""
    inner = wanted.partition("+")[2] if colon and plus else url
    names = dict.fromkeys((scheme.lower(), first.lower()))
    for name in names:
        if name in overrides:
            return Named(overrides[name], url if name == scheme.lower() else inner, f"override_backends[{name!r}]")
    if any(map(is_plugin, names)):
        return None
    if PATH.fullmatch(first):
        return Named(first, inner, SETTING)
    found = named_objects([CELERYS_GROUP])
    for name in names:
        if name in found:
            entry = found[name]
            dist = getattr(entry.dist, "name", "") or "an unnamed distribution"
            return Named(entry.value, url if name == scheme.lower() else inner, f"an entry point of {dist}")
    return None


def make_named(named: Named, settings: Mapping[str, Any], host: Host, installed: list[str]) -> Any:
    """The backend.

    Args:
        installed: Names of plugins to offer instead.
    Raises:
        ImproperlyConfigured: It cannot be found, is one of Celery's, or does not keep the contract.
    """
    title = _title(named)
    what = _load(named, title)
    if what is None or _is_celerys(what):
        raise ImproperlyConfigured(
            f"{title} is a result backend written for Celery, which celeriac cannot use: it stores one result at a "
            f"time and promises less. Take a plugin (installed: {', '.join(installed)}), or bring it to the contract. "
            f"{CONTRACT}."
        )
    made = what if _is_made(what) else _call(what, named.url, settings, host, title)
    faults = find_faults("backend", made)
    if faults:
        raise ImproperlyConfigured(f"{title} is no result backend: {'; '.join(faults)}. {CONTRACT}.")
    return made


def name_of(value: Any) -> str:
    """`module:Class` for a class, a function, or an object of a class; a path as it is."""
    if isinstance(value, str):
        return value
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}:{kind.__qualname__}"


def _title(named: Named) -> str:
    return f"{name_of(named.what)!r} ({named.said_by})"


def _load(named: Named, title: str) -> Any:
    """What is named; None if only a Celery could import it."""
    if not isinstance(named.what, str):
        return named.what
    module, _, name = named.what.replace(":", ".").rpartition(".")
    try:
        return getattr(import_module(module), name)
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] == "celery":
            return None
        raise ImproperlyConfigured(
            f"{title} cannot be imported: {exc}. Write 'package.module:Class', or a URL such as 'redis://host/0'."
        ) from exc
    except AttributeError as exc:
        raise ImproperlyConfigured(f"{title} is not there: the module {module} has no {name!r}.") from exc
    except Exception as exc:
        raise ImproperlyConfigured(f"{title} cannot be imported: {describe(exc)}.") from exc


def _is_made(what: Any) -> bool:
    return not isinstance(what, type) and hasattr(what, "abilities")


def _is_celerys(what: Any) -> bool:
    return all(hasattr(what, name) for name in CELERYS_METHODS) and not hasattr(what, "abilities")


def _call(what: Any, url: str, settings: Mapping[str, Any], host: Host, title: str) -> Any:
    try:
        return what(url, settings, host)
    except CeleriacError:
        raise  # it says itself what is wrong, and with what
    except Exception as exc:
        raise ImproperlyConfigured(
            f"{title}, called with ({mask_url(url)!r}, settings, host), raised {describe(exc)}. {CONTRACT}."
        ) from exc
