"""What the pages of the repository point to exists."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celeriac.app.settings_table import OWN

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "core/*.md", "plugins/*/*.md", "plugins/*/*/*.md", "examples/*/*.md")
    for path in ROOT.glob(pattern)
)

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
#: Names of files and folders of the repository, as text in backticks.
_PATH = re.compile(r"`((?:core|plugins|docs|tests|scripts|examples|benchmarks)/[\w./-]*)`")
_IMPORT = re.compile(r"^(?:>>> )?from (celeriac(?:\.\w+)*) import ([^(\n]+)$", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> Iterator[str]:
    """The places within a page that links can lead to, as GitHub names them."""
    for heading in re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
    yield from re.findall(r'<a id="([^"]+)">', page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in set(anchors(target)), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    for name in _PATH.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), f"{name} does not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_examples_import_from_celeriac_exists(page: Path) -> None:
    for module, names in _IMPORT.findall(page.read_text(encoding="utf-8")):
        imported = importlib.import_module(module)
        for name in names.split("#")[0].split(","):
            assert hasattr(imported, name.strip()), f"from {module} import {name.strip()}"


def test_every_setting_of_our_own_is_named_to_those_who_come_from_celery() -> None:
    text = (ROOT / "docs" / "coming-from-celery.md").read_text(encoding="utf-8")
    assert not [name for name in OWN if f"`{name}`" not in text and f"`{name} =" not in text]


def test_the_readme_names_every_distribution_and_plugin() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in ROOT.glob("plugins/*/*/pyproject.toml"):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        kind = project["name"].split("-")[1]
        assert project["name"] in text or f"`celeriac-{kind}-…`" in text, project["name"]
        for names in project.get("entry-points", {}).values():
            assert not [name for name in names if f"`{name}`" not in text], project["name"]


@pytest.mark.parametrize(
    "page",
    [*ROOT.glob("plugins/serializers/*/README.md"), ROOT / "plugins" / "_template" / "README.md"],
    ids=lambda page: page.parent.name,
)
def test_who_chooses_a_serializer_as_its_page_says_can_read_results(page: Path) -> None:
    section = page.read_text(encoding="utf-8").partition("## Choosing it")[2].partition("\n## ")[0]
    given = re.findall(r"\b(\w+) ?= ?(\"\w+\"|\[[^]]*\])", re.sub("#.*", "", section))
    chosen = {name: ast.literal_eval(value) for name, value in reversed(given)}  # of two ways, the first
    assert chosen["task_serializer"] in chosen["accept_content"]
    assert chosen["result_serializer"] in chosen.get("result_accept_content", chosen["accept_content"])


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    queue = [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page in seen:
            continue
        seen.add(page)
        for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.is_file():
                queue.append(target)
    lost = [str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("**/*.md") if page not in seen]
    assert not lost
