"""Bad plugins and the real command line: a worker that did not choose them starts; one that did says one sentence."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import FakeSite

CELERIAC = Path(sys.executable).parent / "celeriac"
TOP = "from celeriac.spec import hookimpl\nCELERIAC_API = (1, 0)\n"
HOOK = TOP + "@hookimpl\ndef celeriac_make_transport(url, settings): "

#: What the bad broker's module says → what the user is told
BAD_BROKERS = {
    "import a_module_nobody_has": "it needs the module 'a_module_nobody_has'",
    "raise SystemExit(0)": "raised SystemExit: 0",
    "def (:": "SyntaxError",
    TOP: "has no hook celeriac_make_transport",
    TOP + "@hookimpl\ndef celeriac_make_transprot(url): pass": "'celeriac_make_transprot', which is no hook",
    TOP + "@hookimpl\ndef celeriac_make_transport(uri): pass": "takes 'uri'",
    "": "does not say which contract it was written for",
    "CELERIAC_API = (9, 0)": "written for contract 9.0; this celeriac has 1.0",
    "CELERIAC_API = '1.0'": "its CELERIAC_API is '1.0'",
    HOOK + "return None": "it made nothing for 'bad://host'",
    HOOK + "return object()": "the object it made lacks abilities, joint, send",
    HOOK + "return {}['x']": "raised KeyError: 'x'",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with an app whose broker and results are in memory."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "tasks.py").write_text(
        "from celeriac import Celery\napp = Celery('tasks', broker='memory://', backend='memory://')\n"
    )
    return folder


def run(project: Path, fake_site: FakeSite, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**fake_site.environment(), **variables}
    return subprocess.run(
        [CELERIAC, *words], cwd=project, env=environment, capture_output=True, text=True, timeout=110, check=False
    )


def refusal(project: Path, fake_site: FakeSite, *options: str, **variables: str) -> str:
    """Start a worker that must refuse: the one line it says, after the exit code was found right."""
    ran = run(project, fake_site, "-A", "tasks", "worker", "--pool", "solo", *options, **variables)
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr
    (line,) = ran.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize("source", BAD_BROKERS)
def test_a_bad_broker_that_was_chosen_is_one_sentence(project: Path, fake_site: FakeSite, source: str) -> None:
    fake_site.install("broker", "bad", source, dist="acme-bad", version="2.5")
    line = refusal(project, fake_site, "-b", "bad://host")
    assert "broker:bad (acme-bad 2.5)" in line
    assert BAD_BROKERS[source] in line


def test_a_traceback_is_shown_when_asked_for(project: Path, fake_site: FakeSite) -> None:
    fake_site.install("broker", "bad", "1 / 0")
    ran = run(project, fake_site, "-A", "tasks", "-b", "bad://", "--traceback", "worker", "--pool", "solo")
    assert ran.returncode == 2
    assert "ZeroDivisionError: division by zero" in ran.stderr.split("The above exception")[0]


def test_two_dists_with_one_name_are_one_sentence_and_a_choice_ends_it(project: Path, fake_site: FakeSite) -> None:
    fake_site.install("broker", "twice", dist="acme-one")
    fake_site.install("broker", "twice", dist="acme-two")
    line = refusal(project, fake_site, "-b", "twice://")
    assert "acme-one 1.0 and acme-two 1.0" in line
    chosen = run(project, fake_site, "-b", "twice://", "--broker-plugin", "twice@acme-two", "purge", "-f")
    assert "lacks the ability purge" in chosen.stderr  # so it was loaded


def test_a_blocked_plugin_is_one_sentence(project: Path, fake_site: FakeSite) -> None:
    line = refusal(project, fake_site, CELERIAC_PLUGINS_BLOCKED="broker:memory")
    assert "is installed, but blocked by 'broker:memory'" in line


def test_an_unknown_scheme_says_what_to_install(project: Path, fake_site: FakeSite) -> None:
    line = refusal(project, fake_site, "-b", "carrierpigeon://user:secret@roof")
    assert "pip install celeriac-broker-carrierpigeon" in line
    assert "secret" not in line


def test_a_near_miss_says_the_right_name(project: Path, fake_site: FakeSite) -> None:
    assert "Did you mean 'solo'?" in refusal(project, fake_site, "--pool", "sollo")


def test_a_worker_starts_amid_bad_plugins_that_it_did_not_choose(project: Path, fake_site: FakeSite) -> None:
    for number, source in enumerate([*BAD_BROKERS, "import os; os._exit(7)", "while True: pass"]):
        for kind in ("broker", "backend", "serializer", "pool"):
            fake_site.install(kind, f"bad{number}", source)
    fake_site.install("broker", "torn", dist="acme-torn")
    (fake_site.folder / "acme_torn-1.0.dist-info" / "entry_points.txt").write_text(
        "[celeriac.brokers]\nno equals sign\n"
    )
    log = project / "worker.log"
    worker = subprocess.Popen(
        [CELERIAC, "-A", "tasks", "worker", "--loglevel", "info", "--pool", "solo", "--logfile", log],
        cwd=project,
        env=fake_site.environment(),
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (log.exists() and " ready." in log.read_text()):
            assert time.monotonic() < deadline, log.read_text()
            assert worker.poll() is None
            time.sleep(0.05)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    finally:
        worker.kill()
        worker.wait()


def test_the_check_reports_one_that_hangs_and_one_that_kills_its_process(project: Path, fake_site: FakeSite) -> None:
    fake_site.install("broker", "exits", "import os; os._exit(7)", dist="acme-exits")
    fake_site.install("broker", "dies", "import os; os.kill(os.getpid(), 9)", dist="acme-dies")
    fake_site.install("broker", "noisy", "print('{}')\n" + fake_site.good["broker"], dist="acme-noisy")
    errors = check_plugins(project, fake_site, "--timeout", "100")
    assert "ended the process with exit code 7" in errors["exits"]
    assert "ended the process with signal 9" in errors["dies"]
    assert errors["noisy"] == ""
    fake_site.install("broker", "hangs", "import time; time.sleep(600)", dist="acme-hangs")
    errors = check_plugins(project, fake_site, "broker:hangs", "--timeout", "1")
    assert "did not end within 1 s" in errors["hangs"]


def check_plugins(project: Path, fake_site: FakeSite, *words: str) -> dict[str, str]:
    """What `plugins check` says of each, one of which is bad."""
    ran = run(project, fake_site, "plugins", "check", "--json", *words)
    assert ran.returncode == 1, ran.stderr
    return {one["name"]: one["error"] for one in json.loads(ran.stdout)}
