"""No plugin is forgotten: each folder of plugins/*/* is a whole dist, installed, and known to every list of them.

The folders of plugins/support are no plugins: libraries that the plugins of one store, or of one kind, share. Nor are
those of plugins/compat: each is a module of somebody else's name, answered by celeriac.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import importlib_metadata
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core"
KINDS = {
    "brokers": "broker",
    "backends": "backend",
    "serializers": "serializer",
    "pools": "pool",
    "extensions": "extension",
}
FOLDERS = sorted(path.parent for path in ROOT.glob("plugins/*/*/pyproject.toml"))
PLUGINS = [folder for folder in FOLDERS if folder.parent.name in KINDS]
SUPPORT = [folder for folder in FOLDERS if folder.parent.name == "support"]
COMPAT = [folder for folder in FOLDERS if folder.parent.name == "compat"]
MEMBERS = [CORE, *PLUGINS, *SUPPORT, *COMPAT]


def users_of(support: Path) -> list[Path]:
    """The plugins that may stand on a folder of plugins/support: it has the name of their store, or of their kind."""
    return [plugin for plugin in PLUGINS if support.name in (plugin.name, plugin.parent.name)]


def folder_id(folder: Path) -> str:
    return str(folder.relative_to(ROOT))


def read_toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def project_of(folder: Path) -> dict[str, Any]:
    project: dict[str, Any] = read_toml(folder / "pyproject.toml")["project"]
    return project


def dist_name(folder: Path) -> str:
    """`plugins/brokers/redis` → `celeriac-broker-redis`."""
    return (
        "celeriac" if folder == CORE else f"celeriac-{KINDS.get(folder.parent.name, folder.parent.name)}-{folder.name}"
    )


def package_name(folder: Path) -> str:
    """The dist's name with underscores; a dist of compat has the name that it answers to."""
    return folder.name if folder in COMPAT else dist_name(folder).replace("-", "_")


def requirement_name(requirement: str) -> str:
    """`PyYAML>=6` → `pyyaml`."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def all_requirements() -> Iterator[str]:
    for folder in MEMBERS:
        project = project_of(folder)
        yield from project.get("dependencies", [])
        for extra in project.get("optional-dependencies", {}).values():
            yield from extra


def test_every_folder_of_plugins_is_a_dist() -> None:
    folders = [path for path in ROOT.glob("plugins/[!._]*/*") if path.name[0] not in "._"]
    assert sorted(folders) == FOLDERS == sorted([*PLUGINS, *SUPPORT, *COMPAT])


@pytest.mark.parametrize("folder", MEMBERS, ids=folder_id)
def test_a_dist_is_whole(folder: Path) -> None:
    source = folder / "src" / package_name(folder)
    assert (folder / "README.md").read_text().startswith(f"# {dist_name(folder)}\n")
    assert (source / "__init__.py").is_file()
    assert (source / "py.typed").is_file()


@pytest.mark.parametrize("folder", MEMBERS, ids=folder_id)
def test_a_dist_is_named_after_its_folder_and_like_its_siblings(folder: Path) -> None:
    project, core = project_of(folder), project_of(CORE)
    assert project["name"] == dist_name(folder)
    same = ("version", "requires-python", "license", "authors", "classifiers", "readme")
    assert {key: project[key] for key in same} == {key: core[key] for key in same}


@pytest.mark.parametrize("folder", MEMBERS, ids=folder_id)
def test_a_dist_is_installed_from_its_folder(folder: Path) -> None:
    package = importlib_metadata.distribution(dist_name(folder))
    assert package.version == project_of(folder)["version"]
    assert package.origin is not None, "not an editable install"
    assert Path(package.origin.url.removeprefix("file://")) == folder


@pytest.mark.parametrize("folder", PLUGINS, ids=folder_id)
def test_a_plugin_has_one_kind_and_its_folder_s_name(folder: Path) -> None:
    groups = project_of(folder)["entry-points"]
    assert list(groups) == [f"celeriac.{folder.parent.name}"]
    (names,) = groups.values()
    assert folder.name in names
    assert set(names.values()) == {package_name(folder)}


@pytest.mark.parametrize("folder", SUPPORT, ids=folder_id)
def test_a_support_dist_is_no_plugin_and_serves_several_of_a_store_or_a_kind(folder: Path) -> None:
    assert "entry-points" not in project_of(folder)
    needed = f"{dist_name(folder)}>=0.1,<0.2"
    standing = [plugin for plugin in PLUGINS if needed in project_of(plugin)["dependencies"]]
    assert len(standing) > 1
    assert set(standing) <= set(users_of(folder))


@pytest.mark.parametrize("folder", COMPAT, ids=folder_id)
def test_a_compat_dist_is_no_plugin_and_comes_only_by_its_own_name(folder: Path) -> None:
    assert "entry-points" not in project_of(folder)
    assert dist_name(folder) not in map(requirement_name, all_requirements())


@pytest.mark.parametrize("folder", [*PLUGINS, *SUPPORT, *COMPAT], ids=folder_id)
def test_a_plugin_needs_this_minor_version_of_core(folder: Path) -> None:
    assert "celeriac>=0.1,<0.2" in project_of(folder)["dependencies"]


def test_the_extra_all_has_every_plugin() -> None:
    everything = project_of(CORE)["optional-dependencies"]["all"]
    assert sorted(map(requirement_name, everything)) == sorted(map(dist_name, PLUGINS))


def test_extras_name_dists_of_this_repository_as_they_are_versioned() -> None:
    extras = project_of(CORE)["optional-dependencies"]
    ours = {requirement for extra in extras.values() for requirement in extra if requirement.startswith("celeriac")}
    assert ours == {f"{dist_name(folder)}>=0.1,<0.2" for folder in PLUGINS}


def test_the_workspace_has_every_dist() -> None:
    sources = read_toml(ROOT / "pyproject.toml")["tool"]["uv"]["sources"]
    assert sorted(sources) == sorted(map(dist_name, MEMBERS))


def test_the_import_linter_sees_every_package() -> None:
    settings = read_toml(ROOT / "pyproject.toml")["tool"]["importlinter"]
    plugins, support = sorted(map(package_name, PLUGINS)), sorted(map(package_name, SUPPORT))
    packages = sorted([*plugins, *support])
    compat = list(map(package_name, COMPAT))
    assert sorted(settings["root_packages"]) == sorted(["celeriac", *packages, *compat])
    contracts = {contract["id"]: contract for contract in settings["contracts"]}
    assert sorted(contracts["core-names-no-plugin"]["forbidden_modules"]) == packages
    assert sorted(contracts["plugins-stand-alone"]["modules"]) == plugins
    assert sorted(contracts["plugins-see-the-contract-only"]["source_modules"]) == packages
    assert sorted(contracts["nobody-imports-compat"]["source_modules"]) == ["celeriac", *packages]
    assert sorted(contracts["nobody-imports-compat"]["forbidden_modules"]) == compat
    assert sorted(contracts["support-imports-no-plugin"]["source_modules"]) == support
    assert sorted(contracts["support-imports-no-plugin"]["forbidden_modules"]) == plugins


@pytest.mark.parametrize("folder", SUPPORT, ids=folder_id)
def test_the_import_linter_keeps_support_for_its_plugins(folder: Path) -> None:
    contracts = read_toml(ROOT / "pyproject.toml")["tool"]["importlinter"]["contracts"]
    (contract,) = (contract for contract in contracts if contract["id"] == f"support-of-{folder.name}")
    kept_for = [folder, *users_of(folder)]
    others = [package_name(other) for other in [*PLUGINS, *SUPPORT] if other not in kept_for]
    assert contract["forbidden_modules"] == [package_name(folder)]
    assert sorted(contract["source_modules"]) == sorted(others)


def test_the_import_linter_keeps_every_room_of_core_from_the_plugins() -> None:
    (contract,) = (
        contract
        for contract in read_toml(ROOT / "pyproject.toml")["tool"]["importlinter"]["contracts"]
        if contract["id"] == "plugins-see-the-contract-only"
    )
    source = CORE / "src" / "celeriac"
    rooms = {f"celeriac.{path.stem}" for path in source.iterdir() if not path.stem.startswith("__")}
    open_to_plugins = {"celeriac.spec", "celeriac.exceptions", "celeriac.states", "celeriac.py"}  # the last is py.typed
    assert set(contract["forbidden_modules"]) == rooms - open_to_plugins


def test_constraints_are_names_and_versions_and_nothing_else() -> None:
    line = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.+]*( ; [A-Za-z0-9_<>=!'. ]+)?")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [text for text in lines if line.fullmatch(text) is None] == []


def test_constraints_hold_every_dependency_and_tool() -> None:
    tools = read_toml(ROOT / "pyproject.toml")["dependency-groups"]["dev"]
    wanted = {requirement_name(requirement) for requirement in [*all_requirements(), *tools]}
    held = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {name for name in wanted - held if not name.startswith("celeriac")} == set()
