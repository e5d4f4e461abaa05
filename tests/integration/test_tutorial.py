"""Every step of docs/tutorial.md works as it is written: with no server, on Redis, and on RabbitMQ."""

from __future__ import annotations

import getpass
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_path = Path(__file__).with_name("tutorial_steps.py")
_spec = importlib.util.spec_from_file_location("tutorial_steps", _path)
assert _spec is not None
assert _spec.loader is not None
tutorial_steps = importlib.util.module_from_spec(_spec)
sys.modules["tutorial_steps"] = tutorial_steps
_spec.loader.exec_module(tutorial_steps)

ROOT = tutorial_steps.ROOT
REDIS_ON_PAGE = "redis://localhost:6379/0"
AMQP_ON_PAGE = "amqp://guest:guest@localhost:5672//"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def walk_through(tmp_path: Path, broker: str, urls: dict[str, str], page: Path = tutorial_steps.PAGE) -> int:
    walk = tutorial_steps.Walk(tmp_path, broker, urls)
    try:
        taken: int = walk.walk(tutorial_steps.read_steps(page))
        return taken
    finally:
        walk.close()


def test_the_tutorial_works_with_no_server(tmp_path: Path) -> None:
    assert walk_through(tmp_path, "none", {}) > 15


def test_the_tutorial_works_on_redis(tmp_path: Path, redis_url: str) -> None:
    assert walk_through(tmp_path, "redis", {REDIS_ON_PAGE: redis_url}) > 15


def test_the_tutorial_works_on_rabbitmq(tmp_path: Path, amqp_url: str) -> None:
    assert walk_through(tmp_path, "amqp", {AMQP_ON_PAGE: amqp_url}) > 15


def test_the_examples_of_the_readme_work(tmp_path: Path, redis_url: str) -> None:
    assert walk_through(tmp_path, "redis", {REDIS_ON_PAGE: redis_url}, ROOT / "README.md") == 8


def test_no_block_of_the_page_is_left_out() -> None:
    text = tutorial_steps.PAGE.read_text(encoding="utf-8")
    blocks = len(re.findall(r"^```", text, re.MULTILINE)) // 2
    steps = len(re.findall(r"^<!-- [^\n]+ -->\n```", text, re.MULTILINE))
    assert blocks - steps == 1, "a block without a step (only the pip lines for the first release have none)"


def test_the_way_to_install_from_a_clone_works(tmp_path: Path) -> None:
    """In a copy of what the commands name, so that nothing is left in the checkout."""
    for folder in ("core", "plugins"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    shutil.copy(ROOT / "LICENSE", tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")
    for command in tutorial_steps.commands(tutorial_steps.find_step("install").text):
        command = command.replace("python3 ", f"{sys.executable} ")
        subprocess.run(command, shell=True, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    listed = subprocess.run(
        [tmp_path / "venv/bin/celeriac", "plugins", "list"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    for plugin in ("celeriac-broker-sqlite", "celeriac-backend-sqlite", "celeriac-pool-prefork"):
        assert plugin in listed


# -- supervision ------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What the files of the page expect in /srv/tasks: a program and its virtual environment."""
    folder = tmp_path / "srv"
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "bin" / "celeriac").symlink_to(tutorial_steps.BIN / "celeriac")
    step = next(s for s in tutorial_steps.read_steps() if (s.argument, s.broker) == ("tasks.py", "none"))
    (folder / "tasks.py").write_text(step.text)
    return folder


def file_of_page(name: str, project: Path) -> str:
    step = next(step for step in tutorial_steps.read_steps() if step.verb == "file" and step.argument == name)
    text = step.text.replace("/srv/tasks", str(project))
    return re.sub("(?m)^([Uu]ser)=tasks$", rf"\1={getpass.getuser()}", text)


def test_the_systemd_unit_is_in_order(project: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed (Debian package systemd)")
    name = tutorial_steps.find_step("systemd").argument
    unit = tmp_path / name
    unit.write_text(file_of_page(name, project))
    done = subprocess.run(
        [analyze, "verify", "--man=no", unit], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    complaints = [line for line in done.stdout.splitlines() if name in line]
    assert not complaints, done.stdout
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def supervisor_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of supervisor, from PyPI, in an environment of their own."""
    folder = tmp_path_factory.mktemp("supervisor")
    venv.create(folder, with_pip=True, symlinks=True)
    pip = [folder / "bin" / "pip", "--disable-pip-version-check", "install", "--quiet", "supervisor>=4.2"]
    subprocess.run(pip, check=True, timeout=200)
    return folder / "bin"


@contextmanager
def supervisord(supervisor_bin: Path, project: Path, program: str) -> Iterator[list[str | Path]]:
    """A supervisord with this one program; gives the words that begin a command to it."""
    configuration = project / "supervisord.conf"
    configuration.write_text(f"""
[unix_http_server]
file=s.sock
[supervisord]
nodaemon=true
logfile={project}/supervisord.log
pidfile={project}/supervisord.pid
{"user=" + getpass.getuser() if os.getuid() == 0 else ""}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://s.sock
{program}
""")
    environment = tutorial_steps.clean_environment(project)
    daemon = subprocess.Popen(
        [supervisor_bin / "supervisord", "-c", configuration], cwd=project, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        yield [supervisor_bin / "supervisorctl", "-c", configuration]
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def test_the_supervisor_file_starts_a_worker_and_stops_it_warmly(supervisor_bin: Path, project: Path) -> None:
    log = project / "worker.log"
    program = file_of_page(tutorial_steps.find_step("supervisor").argument, project)
    program = program.replace("/var/log/celeriac-tasks.log", str(log))
    with supervisord(supervisor_bin, project, program) as control:

        def ask(*words: str) -> str:
            return subprocess.run(
                [*control, *words], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
            ).stdout

        status = ""
        for _ in tutorial_steps.until(60, pause_s=0.5):
            status = ask("status", "celeriac-tasks")
            if "RUNNING" in status:
                break
        assert "RUNNING" in status, f"{status}\n{log.read_text() if log.exists() else 'no log'}"

        call = "from tasks import add; print(add.delay(4, 4).get(timeout=30))"
        environment = tutorial_steps.clean_environment(project)
        done = subprocess.run(
            [sys.executable, "-c", call], cwd=project, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == "8", f"{done.stderr}\n{log.read_text()}"

        ask("stop", "celeriac-tasks")
        assert "STOPPED" in ask("status", "celeriac-tasks")
        assert "stopped: celeriac-tasks (exit status 0)" in (project / "supervisord.log").read_text()
