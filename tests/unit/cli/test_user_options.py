"""Options of a program's own on celeriac's command line, and the signal that tells of those of every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import click
from celeriac import Celery, bootsteps, signals

app = Celery("mine", broker="memory://mine", worker_redirect_stdouts=False)
app.user_options["worker"].add(click.Option(["--shade"], default="grey", help="A shade of mine."))
app.user_options["preload"].add(click.Option(["--site"], default="none", help="For every command."))

@signals.user_preload_options.connect
def take(options, app, **_):
    print("preload", app.main, options, flush=True)

class Step(bootsteps.StartStopStep):
    def __init__(self, parent, shade=None, **options):
        print("step", shade, sorted(options)[:1], flush=True)
    def start(self, parent):
        parent.stop()

app.steps["worker"].add(Step)
"""


def run(place: Path, *words: str) -> str:
    (place / "mine.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "celeriac", "-A", "mine", "worker", "-P", "solo", *words]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_they_are_in_the_help(tmp_path: Path) -> None:
    text = run(tmp_path, "--help")
    assert "A shade of mine." in text
    assert "For every command." in text


def test_steps_get_them_and_the_signal_tells_of_the_others(tmp_path: Path) -> None:
    lines = run(tmp_path, "--shade", "blue", "--site", "here").splitlines()
    assert "preload mine {'site': 'here'}" in lines
    assert "step blue ['concurrency']" in lines
