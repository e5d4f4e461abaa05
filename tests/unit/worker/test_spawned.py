"""How a process that was not forked makes its worker's program, as far as that can be seen without one."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType
from typing import Any

import pytest

from celeriac import Celery
from celeriac.exceptions import ImproperlyConfigured
from celeriac.worker.spawned import LogWords, _find_name, _without_our_warnings, write_recipe

SILENT = LogWords(None, None, None, color=False)


@pytest.fixture
def app() -> Celery:
    return Celery("a", broker="memory://", set_as_current=False)


def write(app: Celery, name: str | None = "somewhere:app") -> Any:
    return write_recipe(app, name, include=(), log=SILENT, node="w@host", detail=False)


def test_an_app_that_nobody_named_is_found_in_the_module_that_has_it(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("some.place")
    module.__dict__["made"] = app
    monkeypatch.setitem(sys.modules, "some.place", module)
    monkeypatch.setattr(sys.modules["__main__"], "app", app, raising=False)
    assert _find_name(app) == "some.place:made"


@pytest.mark.parametrize("in_program", [True, False])
def test_an_app_that_cannot_be_imported_is_refused(
    app: Celery, in_program: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_program:
        monkeypatch.setattr(sys.modules["__main__"], "app", app, raising=False)
    with pytest.raises(ImproperlyConfigured, match=r"cannot: no module .* the app 'a'"):
        write(app, None)


def test_a_setting_of_the_command_line_that_cannot_be_told_is_named(app: Celery) -> None:
    app.conf.override({"task_annotations": {"*": {"on_failure": lambda: None}}})
    with pytest.raises(ImproperlyConfigured, match=r"'task_annotations' .* cannot be pickled"):
        write(app)


def test_a_setting_of_the_app_itself_need_not_be_told(app: Celery) -> None:
    app.conf.task_annotations = {"*": {"on_failure": lambda: None}}
    assert write(app).maker == "celeriac.worker.spawned:make_program"


def test_filters_of_warnings_that_a_users_module_adds_outlive_its_import() -> None:
    with warnings.catch_warnings():
        before = list(warnings.filters)
        with _without_our_warnings():
            warnings.filterwarnings("ignore", message="of the user's")
        assert len(warnings.filters) == len(before) + 1
        assert warnings.filters[1:] == before
