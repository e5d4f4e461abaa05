"""Reads a page (docs/tutorial.md, README.md) as a list of steps, and walks through them as a newcomer would.

A step is a comment and, below it, a block. The comment at the top of docs/tutorial.md says what each word does.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
BIN = Path(sys.executable).parent
WAIT_S = 60.0

_STEP = re.compile(
    r"^<!-- (?P<words>[^\n]+?) -->\n(?:```(?P<language>\w*)\n(?P<text>.*?)^```$)?", re.DOTALL | re.MULTILINE
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

#: What a busy machine needs longer for than a reader has the patience for.
_LONGER = {
    "timeout=10)": "timeout=60)",
    "timeout=20)": "timeout=60)",
    "timeout=10,": "timeout=60,",
    "countdown=1)": "countdown=6)",
}

#: Runs examples typed into Python; its exit status is the number of wrong answers.
_SESSION = """
import doctest, sys
options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
test = doctest.DocTestParser().get_doctest(sys.stdin.read(), {"__name__": "__main__"}, "session", "tutorial.md", 0)
sys.exit(doctest.DocTestRunner(optionflags=options).run(test).failed)
"""


@dataclass(frozen=True)
class Step:
    """One step: what to do, with what, for which broker (empty: all), and the block's text."""

    verb: str
    argument: str
    broker: str
    text: str
    page: str
    line: int

    def __str__(self) -> str:
        return f"{self.page}:{self.line} ({self.verb} {self.argument})"


def read_steps(page: Path = PAGE) -> list[Step]:
    """All steps of the page, in order. A session that goes on is one step with the one before it."""
    text = page.read_text(encoding="utf-8")
    steps: list[Step] = []
    for match in _STEP.finditer(text):
        words, _, broker = match["words"].partition(" for ")
        verb, _, argument = words.partition(" ")
        step = Step(verb, argument, broker, match["text"] or "", page.name, text.count("\n", 0, match.start()) + 1)
        if (verb, argument) == ("session", "more"):
            steps[-1] = replace(steps[-1], text=steps[-1].text + step.text)
        else:
            steps.append(step)
    return steps


def find_step(verb: str) -> Step:
    """The one step with this verb."""
    (found,) = [step for step in read_steps() if step.verb == verb]
    return found


def commands(text: str) -> list[str]:
    """The commands of a console block, lines that end in a backslash joined."""
    joined = text.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


class Walk:
    """One newcomer's folder and terminal windows.

    Args:
        urls: What to put in place of the addresses on the page.
    """

    def __init__(self, folder: Path, broker: str, urls: dict[str, str]) -> None:
        self.folder = folder / "project"
        self.home = folder / "home"
        self.broker = broker
        self.urls = urls
        self.worker: subprocess.Popen[bytes] | None = None
        self.log = folder / "worker.log"
        self.folder.mkdir()
        self.home.mkdir()
        self.environment = clean_environment(self.home)

    def walk(self, steps: list[Step]) -> int:
        """Take every step that concerns this broker; returns how many there were."""
        verbs: dict[str, Callable[[Step], None]] = {
            "file": self.write,
            "run": self.run,
            "worker": self.start_worker,
            "log": self.look_at_log,
            "session": self.type_session,
            "stop": self.stop_worker,
            "fails": self.run_and_fail,
        }
        elsewhere = {"install", "systemd", "supervisor"}  # each has a test of its own
        taken = 0
        for step in steps:
            if step.broker in ("", self.broker) and step.verb not in elsewhere:
                verbs[step.verb](step)
                taken += 1
        return taken

    def close(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()

    def text_of(self, step: Step) -> str:
        text = step.text
        for written, real in {**self.urls, **_LONGER}.items():
            text = text.replace(written, real)
        return text

    def write(self, step: Step) -> None:
        (self.folder / step.argument).write_text(self.text_of(step), encoding="utf-8")

    def run(self, step: Step) -> None:
        for command in commands(self.text_of(step)):
            done = self.shell(command)
            assert done.returncode == 0, f"{step}: {command}\n{done.stdout}"
            assert done.stdout.strip(), f"{step}: {command} printed nothing"

    def run_and_fail(self, step: Step) -> None:
        for command in commands(self.text_of(step)):
            done = self.shell(command)
            assert done.returncode != 0, f"{step}: {command}\n{done.stdout}"
            assert "Traceback" not in done.stdout, f"{step}: {command}\n{done.stdout}"
            assert "Error" in done.stdout, f"{step}: {command}\n{done.stdout}"

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=WAIT_S,
        )

    def type_session(self, step: Step) -> None:
        done = subprocess.run(
            [sys.executable, "-c", _SESSION],
            input=self.text_of(step),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=WAIT_S,
        )
        assert done.returncode == 0, f"{step}\n{done.stdout}\nworker:\n{self.read_log()[-4000:]}"

    def start_worker(self, step: Step) -> None:
        (command,) = commands(self.text_of(step))
        with self.log.open("wb") as log:
            self.worker = subprocess.Popen(
                command.split(), cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        self.wait_for_log(" ready.", step)

    def stop_worker(self, step: Step) -> None:
        assert self.worker is not None
        self.worker.send_signal(signal.SIGINT)
        code = self.worker.wait(WAIT_S)
        assert code == 0, f"{step}: exit code {code}\n{self.read_log()[-4000:]}"
        self.worker = None

    def look_at_log(self, step: Step) -> None:
        for line in step.text.splitlines():
            self.wait_for_log(line, step)

    def wait_for_log(self, wanted: str, step: Step) -> None:
        """Wait for a line of the worker's; `...` in it stands for anything."""
        pattern = re.compile(".*".join(re.escape(part) for part in wanted.split("...")))
        for _ in until(WAIT_S):
            has_ended = self.worker is not None and self.worker.poll() is not None
            if any(map(pattern.search, self.read_log().splitlines())):
                return
            if has_ended:
                break
        raise AssertionError(f"{step}: no {wanted!r} in the worker's log:\n{self.read_log()[-4000:]}")

    def read_log(self) -> str:
        return _COLOURS.sub("", self.log.read_text(errors="replace")) if self.log.exists() else ""


def clean_environment(home: Path) -> dict[str, str]:
    """A newcomer's environment: an empty home, the commands of this installation, nothing else of ours."""
    return {
        "PATH": f"{BIN}{os.pathsep}{os.defpath}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",  # tasks.py is written anew within a second
    }


def until(seconds: float, pause_s: float = 0.05) -> Iterator[None]:
    """Turn after turn until the time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(pause_s)
