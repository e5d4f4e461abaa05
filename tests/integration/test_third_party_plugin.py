"""A plugin by somebody else, in a folder of its own, is installed by pip, chosen by name, and runs tasks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[2] / "examples" / "plugin-broker-file"
CELERIAC = Path(sys.executable).parent / "celeriac"
TASKS = """
from celeriac import Celery

app = Celery("tasks")

@app.task
def add(x, y):
    return x + y
"""

pytestmark = pytest.mark.xdist_group("third-party-plugin")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the plugin."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", folder]
    subprocess.run([*pip, PLUGIN], check=True, timeout=110)
    return folder


@pytest.fixture
def environment(installed: Path, tmp_path: Path) -> dict[str, str]:
    """Where the plugin is installed and `tasks.py` is the app, with results in a file."""
    (tmp_path / "tasks.py").write_text(TASKS)
    return {
        **os.environ,
        "PYTHONPATH": str(installed),
        "CELERIAC_APP": "tasks",
        "CELERIAC_BROKER": f"file://{tmp_path}/spool",
        "CELERIAC_BROKER_PLUGIN": "file@celeriac-broker-file",
        "CELERIAC_RESULT_BACKEND": f"sqlite:///{tmp_path}/results.db",
    }


def celeriac(tmp_path: Path, environment: dict[str, str], *words: str) -> str:
    ran = subprocess.run(
        [CELERIAC, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture
def worker(tmp_path: Path, environment: dict[str, str]) -> Iterator[Path]:
    """A worker that consumes; its log."""
    log = tmp_path / "worker.log"
    command = [CELERIAC, "worker", "--loglevel", "info", "--pool", "solo", "--log-format", "json"]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(log, "worker.ready")
        yield log
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def wait_for(log: Path, text: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while text not in log.read_text():
        assert time.monotonic() < deadline, f"{text!r} never came:\n{log.read_text()}"
        time.sleep(0.05)


def test_it_is_listed_with_its_dist_and_version(tmp_path: Path, environment: dict[str, str]) -> None:
    listed = json.loads(celeriac(tmp_path, environment, "plugins", "list", "--json"))
    mine = [one for one in listed if (one["kind"], one["name"]) == ("broker", "file")]
    assert [(one["dist"], one["version"]) for one in mine] == [("celeriac-broker-file", "1.0.0")]


def test_it_passes_the_check(tmp_path: Path, environment: dict[str, str]) -> None:
    assert "broker:file" in celeriac(tmp_path, environment, "plugins", "check", "broker:file")


def test_a_worker_on_it_runs_tasks_and_says_whose_plugin_it_uses(
    tmp_path: Path, environment: dict[str, str], worker: Path
) -> None:
    task_id = celeriac(tmp_path, environment, "call", "tasks.add", "--args", "[40, 2]").strip()
    assert celeriac(tmp_path, environment, "result", task_id, "--timeout", "60").strip() == "42"
    assert "file (celeriac-broker-file 1.0.0)" in worker.read_text()


def test_what_it_cannot_do_is_refused_with_its_name(tmp_path: Path, environment: dict[str, str]) -> None:
    program = "from tasks import app; app.kernel.require(app.transport, ['fanout'])"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**environment, "CELERIAC_BROKER_URL": environment["CELERIAC_BROKER"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Unsupported: plugin broker:file (celeriac-broker-file 1.0.0) lacks the ability fanout" in ran.stderr


@pytest.mark.slow
@pytest.mark.timeout(320)
def test_it_keeps_the_contract_of_brokers(environment: dict[str, str]) -> None:
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", PLUGIN / "tests"]
    ran = subprocess.run(tests, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:]
