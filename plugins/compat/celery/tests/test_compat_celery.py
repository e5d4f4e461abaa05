"""`celery` is celeriac: the same objects, no dearer, not beside a real one, and clear where it ends."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
CELERY = Path(sys.executable).with_name("celery")


def run(program: str, *paths: Path, code: int = 0) -> str:
    """What a program prints in a Python of its own, without the current folder on `sys.path`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    finished = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert finished.returncode == code, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


def test_every_path_leads_to_the_module_that_celeriac_has_there() -> None:
    program = """
import importlib, pkgutil, sys
import celeriac

names = [one.name for one in pkgutil.walk_packages(celeriac.__path__, "celeriac.")]
names = [name for name in names if not name.startswith(("celeriac.testing", "celeriac.contrib", "celeriac.__main__"))]
assert len(names) > 50
for name in names:
    ours = importlib.import_module(name)
parents = {name: dict(vars(sys.modules[name.rpartition(".")[0]])) for name in names}
for name in names:
    ours = sys.modules[name]
    spec, path = ours.__spec__, name.replace("celeriac", "celery", 1)
    assert importlib.import_module(path) is ours, path
    assert ours.__spec__ is spec and ours.__name__ == name, path
    parent, _, child = name.rpartition(".")
    if parent != "celeriac":
        assert getattr(sys.modules[parent], child) is parents[name][child], path
"""
    run(program)


def test_paths_that_are_imported_first_by_celerys_name_are_the_same_modules() -> None:
    program = """
import celery.canvas.chain
import celery.app.task, celery.exceptions
from celery.utils.log import get_task_logger
from celery import chain, Task
import celeriac.canvas, celeriac.app.task, celeriac.exceptions
assert celery.canvas is celeriac.canvas and celery.canvas.chain is chain is celeriac.chain
assert celery.app.task is celeriac.app.task and Task is celeriac.app.task.Task
assert celery.exceptions.Retry is celeriac.exceptions.Retry
import importlib
assert importlib.reload(celery.exceptions).__spec__.name == "celeriac.exceptions"
"""
    run(program)


def test_the_names_of_the_module_are_celeriacs_and_modules_need_no_import() -> None:
    program = """
import celery, celeriac
own = {"SERIES", "VERSION", "VERSION_BANNER", "__version__", "version_info"}
assert set(celery.__all__) == set(celeriac.__all__) - {"hookimpl"}
for name in set(celery.__all__) - own:
    assert getattr(celery, name) is getattr(celeriac, name), name
assert celery.VERSION >= (5, 7) and celery.version_info.major == 5
assert celery.signals.task_success is celeriac.signals.task_success
assert not hasattr(celery, "current") and "chord" in dir(celery)
"""
    run(program)


def test_importing_it_imports_no_more_than_importing_celeriac_does() -> None:
    program = """
import sys
import {module}
names = set(sys.modules)
names = {{name for name in names if name.split(".")[0] not in ("celery", "celeriac")}}
print(*sorted(names))
"""
    celery, celeriac = (set(run(program.format(module=name)).split()) for name in ("celery", "celeriac"))
    assert "importlib.metadata" not in celery
    assert "kombu" not in celery
    # what a finder is made of
    assert celery - celeriac <= {"importlib._abc", "importlib.machinery", "importlib.util", "_weakrefset", "threading"}


def test_what_celeriac_does_not_have_is_an_import_error_that_says_what_to_read() -> None:
    program = """
import pickle
try:
    import celery.backends.mongodb
except ModuleNotFoundError as exc:
    print(exc.name, exc)
"""
    said = run(program)
    assert said.startswith("celery.backends ")
    assert "celeriac-compat-celery" in said
    assert "docs/coming-from-celery.md" in said
    assert (ROOT / "docs" / "coming-from-celery.md").exists()


def test_pickles_of_celerys_errors_and_signatures_are_read_and_written() -> None:
    program = """
import pickle
import celery.exceptions
by_celery = b"ccelery.exceptions\\nWorkerLostError\\n(S'gone'\\ntR."
error = pickle.loads(by_celery)
assert type(error) is celery.exceptions.WorkerLostError and error.args == ("gone",)
signature = celery.signature("some.task", args=(1,))
assert pickle.loads(pickle.dumps(signature)) == signature
assert type(pickle.loads(b"ccelery.canvas\\nSignature\\n.")) is type
"""
    run(program)


def test_beside_a_real_celery_it_refuses(tmp_path: Path) -> None:
    info = tmp_path / "celery-5.6.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: celery\nVersion: 5.6.1\n")
    said = run("import celery.app", tmp_path, code=1)
    assert "ImportError" in said
    assert f"celery 5.6.1 ({tmp_path}" in said
    assert "pip uninstall celery celeriac-compat-celery" in said
    assert run("import celeriac; print(celeriac.SERIES)", tmp_path) == "celeriac\n"


def test_dists_that_are_named_like_it_are_no_celery(tmp_path: Path) -> None:
    for name in ("celery_types-0.23.0.dist-info", "celery_batches-0.9.dist-info", "pytest_celery-1.0.dist-info"):
        (tmp_path / name).mkdir()
    run("import celery.app", tmp_path)


def test_type_checkers_find_a_stub_for_each_module() -> None:
    source = ROOT / "plugins" / "compat" / "celery" / "src" / "celery"
    wanted = dict(runpy.run_path(str(ROOT / "scripts" / "make_celery_stubs.py"))["stubs"]())
    found = {path.relative_to(source): path.read_text() for path in source.glob("**/*.pyi")}
    assert found == wanted, "run scripts/make_celery_stubs.py"
    assert found[Path("app/task.pyi")] == "from celeriac.app.task import *\n"


def test_the_command_is_celeriacs_by_this_name(tmp_path: Path) -> None:
    for command in ([str(CELERY)], [sys.executable, "-m", "celery"]):
        finished = subprocess.run([*command, "worker", "--help"], cwd=tmp_path, capture_output=True, text=True)
        assert finished.returncode == 0
        assert finished.stdout.startswith("Usage: celery worker ")
    finished = subprocess.run([str(CELERY), "wroker"], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 2
    assert "Usage: celery " in finished.stderr
    assert "worker" in finished.stderr
