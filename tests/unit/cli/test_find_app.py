"""`-A`: every form in which Celery's users name their app, and what is said when there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celeriac.cli.errors import UserCodeFailed, report_error
from celeriac.cli.find_app import find_app
from celeriac.exceptions import ImproperlyConfigured

APP = "from celeriac import Celery\n{name} = Celery('found', broker='memory://')\n"
Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes modules into the current folder; they are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(path: str, text: str = "") -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.parent != tmp_path:
            (file.parent / "__init__.py").touch()
        file.write_text(text)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("app_"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("asked", "path", "variable"),
    [
        ("app_a", "app_a.py", "app"),
        ("app_b", "app_b.py", "celery"),
        ("app_c", "app_c.py", "celeriac"),
        ("app_d", "app_d.py", "anything"),
        ("app_e:queue", "app_e.py", "queue"),
        ("app_f.queue", "app_f.py", "queue"),
        ("app_g", "app_g/celery.py", "app"),
        ("app_h", "app_h/celeriac.py", "app"),
        ("app_i.celery", "app_i/celery.py", "app"),
        ("app_j.tasks", "app_j/tasks.py", "app"),
        ("app_k.tasks:queue", "app_k/tasks.py", "queue"),
        ("app_l.tasks.queue", "app_l/tasks.py", "queue"),
        ("app_m", "app_m/__init__.py", "app"),
    ],
)
def test_every_form_finds_the_app(write: Write, asked: str, path: str, variable: str) -> None:
    write(path, APP.format(name=variable))
    assert find_app(asked).main == "found"


def test_a_package_whose_init_imports_its_celery_module_is_found(write: Write) -> None:
    write("app_pkg/celery.py", APP.format(name="app"))
    (Path("app_pkg") / "__init__.py").write_text("from app_pkg import celery\n")
    assert find_app("app_pkg").main == "found"


def test_without_a_name_there_is_an_app_of_its_own(write: Write) -> None:
    assert find_app(None).main == "default"


def test_a_missing_module_says_where_it_was_looked_for_and_what_is_there(write: Write, tmp_path: Path) -> None:
    write("app_right.py")
    with pytest.raises(ImproperlyConfigured, match=rf"no module 'app_rihgt'.*{tmp_path}.*Did you mean 'app_right'\?"):
        find_app("app_rihgt")


def test_a_missing_submodule_is_named(write: Write) -> None:
    write("app_sub/other.py")
    with pytest.raises(ImproperlyConfigured, match=r"no module 'app_sub\.nothing'"):
        find_app("app_sub.nothing")


def test_a_module_without_an_app_says_so(write: Write) -> None:
    write("app_none.py", "x = 1\n")
    with pytest.raises(ImproperlyConfigured, match=r"'app_none' .*has no app: no variable holds a Celery"):
        find_app("app_none")


def test_a_wrong_variable_is_answered_with_the_near_one(write: Write) -> None:
    write("app_near.py", APP.format(name="queue"))
    with pytest.raises(ImproperlyConfigured, match=r"has no 'quuee'. Its app is 'queue': -A app_near:queue"):
        find_app("app_near:quuee")


def test_something_else_than_an_app_is_refused(write: Write) -> None:
    write("app_seven.py", "app = 7\n")
    with pytest.raises(ImproperlyConfigured, match="app_seven is 7, which is no celeriac app"):
        find_app("app_seven")


@pytest.mark.parametrize("asked", [":app", "."])
def test_a_name_without_a_module_is_refused(write: Write, asked: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="names no module"):
        find_app(asked)


@pytest.mark.parametrize("cause", ["import app_nothing_there", "1 / 0", "raise SystemExit(0)", "def (:"])
def test_a_module_that_fails_shows_its_own_traceback(
    write: Write, cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("app_fails.py", f"\n{cause}\n")
    with pytest.raises(UserCodeFailed) as caught:
        find_app("app_fails")
    assert report_error(caught.value) == 2
    said = capsys.readouterr().err
    assert "app_fails.py" in said
    assert "line 2" in said
    assert "find_app.py" not in said
    assert "importlib" not in said
    sys.modules.pop("app_fails", None)
