"""What fits an app into its surroundings: which fix-ups are called, and what that of Django changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from celeriac import Celery, Task
from celeriac.exceptions import ImproperlyConfigured
from celeriac.fixups.django import DJANGO_TASK, skips_checks

PROGRAM = """
import os, sys
from celeriac import Celery, Task, signals
from celeriac.contrib.django.task import DjangoTask

app = Celery("proj", set_as_current=True)
assert app.Task is DjangoTask
assert Celery("own", task_cls=Task).Task is DjangoTask  # the plain class is as good as none
class Own(Task): pass
assert Celery("own", task_cls=Own).Task is Own
app.autodiscover_tasks()
app.import_default_modules()
assert "shop.tasks.buy" in app.tasks, list(app.tasks)

from django.db import connection, connections, transaction
sent = []
buy = app.tasks["shop.tasks.buy"]
type(buy).apply_async = lambda self, args=None, kwargs=None, **options: sent.append((args, kwargs, options))
with transaction.atomic():
    assert buy.delay_on_commit(1, n=2) is None
    assert buy.apply_async_on_commit((3,), countdown=4) is None
    assert sent == []
assert sent == [((1,), {"n": 2}, {}), ((3,), None, {"countdown": 4})], sent
try:
    with transaction.atomic():
        buy.delay_on_commit(5)
        raise KeyError
except KeyError:
    pass
assert len(sent) == 2
buy.delay_on_commit(6)
assert len(sent) == 3

# as in a worker: broken connections are closed around tasks, and every so many tasks all of them
class Worker:
    pass
worker = Worker()
worker.app = app
signals.worker_init.send(sender=worker)
def run():
    for signal in (signals.task_prerun, signals.task_postrun):
        signal.send(sender=buy, task_id="x", task=buy)
connection.ensure_connection()
first = connection.connection
connection.settings_dict["CONN_MAX_AGE"] = connection.close_at = None
run(), run(), run()
assert connection.connection is first if app.conf.db_reuse_max is None else connection.connection is not first
first = connection.connection
connection.ensure_connection()
if os.fork() == 0:
    code = 1
    try:
        signals.worker_process_init.send(sender="w")
        code = 0 if not hasattr(connections._connections, "default") else 2
    finally:
        os._exit(code)
assert os.wait()[1] == 0
"""


def test_fixups_are_called_with_the_app_and_may_be_paths() -> None:
    seen: list[Any] = []
    app = Celery("a", fixups=[seen.append], set_as_current=False)
    assert seen == [app]
    with pytest.raises(ImproperlyConfigured, match="'nowhere:fixup'"):
        Celery("a", fixups=["nowhere:fixup"], set_as_current=False)


def test_an_app_asks_its_fixups_for_packages() -> None:
    class Fixed:
        def autodiscovered_packages(self) -> list[str]:
            return ["celeriac.spec"]

    app = Celery("a", fixups=[lambda app: Fixed()], set_as_current=False)
    app.autodiscover_tasks(related_name="no_such_module")
    app.autodiscover_tasks([], related_name=None)
    app.import_default_modules()


def test_without_a_project_django_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    assert Celery("a", set_as_current=False).Task is Task
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "proj.settings")
    assert Celery("a", set_as_current=False).task_cls == DJANGO_TASK


@pytest.mark.parametrize("name", ["CELERIAC_SKIP_CHECKS", "CELERY_SKIP_CHECKS", "SKIP_CHECKS"])
def test_checks_are_skipped_by_environment(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert not skips_checks()
    monkeypatch.setenv(name, "0")
    assert not skips_checks()
    monkeypatch.setenv(name, "1")
    assert skips_checks()


@pytest.mark.parametrize("reuse_max", [None, 1])
def test_in_a_project_the_app_fits_in(tmp_path: Path, reuse_max: int | None) -> None:
    (tmp_path / "settings.py").write_text(
        "SECRET_KEY = 'x'\nINSTALLED_APPS = ['shop']\n"
        f"CELERY_DB_REUSE_MAX = {reuse_max}\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'db.sqlite3'}}\n"
    )
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "tasks.py").write_text(
        "from celeriac import shared_task\n\n@shared_task\ndef buy(*args, **kwargs):\n    pass\n"
    )
    program = PROGRAM.replace('"proj", set', '"proj", config_source="django.conf:settings", namespace="CELERY", set')
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": str(tmp_path)}
    run = [sys.executable, "-W", "error::UserWarning", "-c", program]
    finished = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")
