"""The examples of the reference pages about canvas and results give what they say."""

from __future__ import annotations

import doctest
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import House

PAGES = Path(__file__).resolve().parents[2] / "docs" / "reference"
EXAMPLES = re.compile(r"^```pycon\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TASKS = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the page's own tasks module has, with a worker that runs it."""
    place = tmp_path_factory.mktemp("pages")
    code = TASKS.search((PAGES / "canvas.md").read_text(encoding="utf-8"))
    assert code is not None
    url = f"sqlite:///{place}/tasks.db"
    (place / "tasks.py").write_text(code[1].replace("sqlite:///tasks.db", url))
    house = House(place, url, url)
    sys.path.insert(0, str(place))
    try:
        house.worker(app="tasks")
        yield vars(importlib.import_module("tasks"))
    finally:
        house.close()
        sys.path.remove(str(place))
        sys.modules.pop("tasks", None)


@pytest.mark.parametrize("page", ["canvas", "results"])
def test_the_examples_give_what_they_say(page: str, names: dict[str, Any]) -> None:
    names["app"].set_current()
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    told: list[str] = []
    tried, shared = 0, dict(names)
    for number, example in enumerate(EXAMPLES.findall(text)):
        test = doctest.DocTestParser().get_doctest(example, {}, f"{page}.md, example {number}", None, 0)
        test.globs = shared
        tried += runner.run(test, out=told.append, clear_globs=False).attempted
    assert tried > 5
    assert runner.failures == 0, "".join(told)
