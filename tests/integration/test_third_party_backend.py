"""A result backend by somebody else is installed by pip, keeps the contract, and is found by the scheme of a URL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[2] / "examples" / "plugin-backend-dbm"
BIN = Path(sys.executable).parent
TASKS = """
from celeriac import Celery

app = Celery("tasks")

@app.task
def add(x, y):
    return x + y
"""

pytestmark = pytest.mark.xdist_group("third-party-plugin")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of programs for which pip has installed the plugin."""
    folder = tmp_path_factory.mktemp("installed-backend")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", folder]
    subprocess.run([*pip, PLUGIN], check=True, timeout=110)
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_it_keeps_the_contract(installed: dict[str, str], tmp_path: Path) -> None:
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, PLUGIN / "tests"]
    finished = subprocess.run(run, cwd=tmp_path, env=installed, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert "skipped" not in finished.stdout


def test_a_worker_keeps_results_in_it(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    environment = {
        **installed,
        "CELERIAC_APP": "tasks",
        "CELERIAC_BROKER": f"sqlite:///{tmp_path}/calls.db",
        "CELERIAC_RESULT_BACKEND": f"dbm://{tmp_path}/results",
    }
    log = tmp_path / "worker.log"
    command = [BIN / "celeriac", "worker", "-l", "info", "-P", "solo"]
    with log.open("w") as file:
        worker = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        ask = "from tasks import add; print(add.delay(2, 3).get(timeout=60))"
        settings = "from tasks import app; app.conf.update(broker_url=B, result_backend=R);"
        settings = settings.replace("B,", repr(environment["CELERIAC_BROKER"]) + ",")
        settings = settings.replace("R)", repr(environment["CELERIAC_RESULT_BACKEND"]) + ")")
        run = [sys.executable, "-c", settings + ask]
        answer = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
        assert (answer.stdout, answer.stderr) == ("5\n", ""), log.read_text()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    finally:
        worker.kill()
        worker.wait()
    assert "celeriac-backend-dbm" in log.read_text()
    assert (tmp_path / "results.dat").exists()
