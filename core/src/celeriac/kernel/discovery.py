"""What is installed: entry points read into `PluginInfo`s. Imports no plugin, and scans once per process.

Called by the kernel when a plugin is chosen, and by `celeriac plugins`. A distribution whose metadata cannot
be read takes no other one down with it: it is left out and named in `Catalog.troubles`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celeriac.spec.hooks import KINDS

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint


@dataclass(frozen=True)
class PluginInfo:
    """One entry point: a name that a distribution gives to one of its modules.

    Attributes:
        kind: `broker`, `backend`, `serializer`, `pool` or `extension`.
        name: What a user types.
        module: The entry point's value, `package.module` or `package.module:object`.
    """

    kind: str
    name: str
    module: str
    entry_point: EntryPoint

    # Both read the distribution's METADATA, a millisecond or two each: ask for the chosen plugin, not for all.
    @functools.cached_property
    def dist_name(self) -> str:
        """The name to give to pip; empty if the metadata does not say."""
        return _read_metadata(self.entry_point.dist, "Name")

    @functools.cached_property
    def dist_version(self) -> str:
        """The distribution's version; empty if the metadata does not say."""
        return _read_metadata(self.entry_point.dist, "Version")

    @property
    def dist(self) -> str:
        """`celeriac-broker-redis 0.1.0`, or as much of it as is known."""
        return f"{self.dist_name or 'an unnamed distribution'} {self.dist_version}".strip()

    def __str__(self) -> str:
        return f"{self.kind}:{self.name} ({self.dist})"


class OwnInfo(PluginInfo):
    """Stands, where plugins are listed, for a result backend that a program names itself."""

    @property
    def dist(self) -> str:
        return "the program's own"


@dataclass(frozen=True)
class Catalog:
    """All that is installed.

    Attributes:
        plugins: (kind, name) → everyone who claims that name; two or more need a choice.
        troubles: Distributions that could not be read, one sentence each.
    """

    plugins: dict[tuple[str, str], tuple[PluginInfo, ...]] = field(default_factory=dict)
    troubles: tuple[str, ...] = ()

    def named(self, kind: str, name: str) -> tuple[PluginInfo, ...]:
        """Everyone who claims this name."""
        return self.plugins.get((kind, name), ())

    def names(self, kind: str) -> list[str]:
        """The installed names of one kind, sorted."""
        return sorted(name for other, name in self.plugins if other == kind)

    def all(self, kind: str | None = None) -> list[PluginInfo]:
        """Every plugin, or every one of a kind, by kind and name."""
        order = list(KINDS)
        found = [info for infos in self.plugins.values() for info in infos if kind in (None, info.kind)]
        return sorted(found, key=lambda info: (order.index(info.kind), info.name))


@functools.cache
def catalog() -> Catalog:
    """Everything installed, scanned at the first call (about 10 ms for 200 distributions).

    `catalog.cache_clear()` makes the next call scan again.
    """
    # Imported here because an app that has not chosen a plugin yet should not pay its 15 ms.
    import importlib_metadata

    try:
        return Catalog(_group(importlib_metadata.entry_points()))
    except Exception:
        # One unreadable distribution spoils that call for everybody; read them one by one to find it.
        troubles: list[str] = []
        return Catalog(_group(_read_one_by_one(importlib_metadata.distributions(), troubles)), tuple(troubles))


@functools.cache
def own_dists() -> frozenset[str]:
    """The distributions that celeriac's extras name: those of its own repository. Empty if its metadata do not say."""
    import importlib_metadata  # see `catalog`

    try:
        wanted = importlib_metadata.requires("celeriac") or ()
    except Exception:  # a copied folder without metadata: then nothing is known of any
        wanted = ()
    return frozenset(_normalize(re.split(r"[^\w.-]", one, maxsplit=1)[0]) for one in wanted)


def named_objects(groups: Iterable[str]) -> dict[str, EntryPoint]:
    """Name → entry point of some groups that are no plugin kinds; of two with one name, that of the earlier group."""
    import importlib_metadata  # see `catalog`

    found: dict[str, EntryPoint] = {}
    for group in groups:
        for entry_point in importlib_metadata.entry_points(group=group):
            found.setdefault(entry_point.name, entry_point)
    return found


def describe_own(path: str) -> PluginInfo:
    """How the result backend at this path is listed, which is no plugin."""
    import importlib_metadata  # see `catalog`

    return OwnInfo("backend", path, path, importlib_metadata.EntryPoint(path, path, KINDS["backend"][0]))


def same_dist(one: str, other: str) -> bool:
    """Whether two names mean one distribution (PEP 503: case and the kind of dash do not count)."""
    return _normalize(one) == _normalize(other)


def _group(entry_points: Iterable[EntryPoint]) -> dict[tuple[str, str], tuple[PluginInfo, ...]]:
    kinds = {group: kind for kind, (group, _, _) in KINDS.items()}
    found: dict[tuple[str, str], tuple[PluginInfo, ...]] = {}
    for entry_point in entry_points:
        kind = kinds.get(entry_point.group)
        if kind is not None:
            key = (kind, entry_point.name)
            found[key] = (*found.get(key, ()), PluginInfo(kind, entry_point.name, entry_point.value, entry_point))
    return found


def _read_one_by_one(distributions: Iterable[Any], troubles: list[str]) -> Iterator[EntryPoint]:
    seen: set[str] = set()
    for dist in distributions:
        folder = _folder(dist)
        project = _normalize(re.split(r"-\d|\.(?:dist|egg)-info$", folder)[0])
        if project in seen:  # the first on sys.path is the one that gets imported
            continue
        seen.add(project)
        try:
            yield from dist.entry_points
        except Exception as exc:
            troubles.append(f"The entry points of {folder} cannot be read ({type(exc).__name__}: {exc}); reinstall it.")


def _read_metadata(dist: Any, key: str) -> str:
    if dist is None:
        return ""
    try:
        value = dist.metadata[key]
    except Exception:  # any failure means the same here: the metadata does not say
        value = None
    if value:
        return str(value)
    # A dist-info folder is called `name-version.dist-info`, which is nearly as good.
    match = re.fullmatch(r"(?P<Name>[^-]+)(-(?P<Version>[^-]+))?\.(dist|egg)-info", _folder(dist))
    return (match[key] or "") if match else ""


def _folder(dist: Any) -> str:
    return str(getattr(getattr(dist, "_path", None), "name", "")) or repr(dist)


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
