"""What canvases do when they are run here and now is what a real Celery does, but for what is listed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.celery_venv import celery_python
from tests.integration.conftest import APPS

pytestmark = [pytest.mark.slow]

#: `apply()` runs callbacks here and now too; Celery sends them to the broker, unless `task_always_eager` is set.
CALLBACKS = {"link", "links in links", "a link that fails", "retry with a link"}
#: With `task_eager_propagates` a retry is run all the same; Celery raises `Retry` at the caller.
RETRIES = {
    "retry", "retry in a chain", "retry in a group", "retry in a chord", "retry with a link", "retries used up",
    "retries used up, errback as an option",
}  # fmt: skip


def seen_by(library: str) -> Any:
    python = celery_python() if library == "celery" else Path(sys.executable)
    done = subprocess.run(
        [python, "-m", "eager_app"], env={**os.environ, "CANVAS_LIB": library, "PYTHONPATH": str(APPS)},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    return seen_by("celeriac"), seen_by("celery")


@pytest.mark.parametrize(
    ("way", "differing"),
    [("apply", CALLBACKS), ("always eager", set()), ("always eager, raising", RETRIES)],
    ids=["apply", "always eager", "raising"],
)
def test_results_callbacks_errbacks_and_retries_are_alike(both: tuple[Any, Any], way: str, differing: set[str]) -> None:
    ours, theirs = both[0][way], both[1][way]
    assert {case: ours[case] for case in ours if case not in differing} == {
        case: theirs[case] for case in theirs if case not in differing
    }
    assert {case for case in ours if ours[case] != theirs[case]} == differing


def test_what_differs_is_run_to_its_end(both: tuple[Any, Any]) -> None:
    ours = both[0]
    assert ours["apply"]["links in links"]["told"] == ["add 1 2", "add 3 10", "add 13 100"]
    raising = ours["always eager, raising"]
    assert raising["retry in a chain"]["given"] == ["SUCCESS", 11]
    assert raising["retries used up"] == {
        "given": "raised KeyError('again')",
        "told": ["try 0 of id0", "try 1 of id0", "try 2 of id0"],
    }
