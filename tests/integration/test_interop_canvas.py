"""Canvases in a mixed fleet on one Redis: celeriac and a real Celery, each calling what the other runs, and both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.integration.celery_venv import celery_python
from tests.integration.conftest import APPS, wait_until
from tests.integration.test_interop_celery_redis import end_group

from celeriac.testing.services import RedisService

pytestmark = [pytest.mark.services, pytest.mark.slow]

START_S = 60.0
RUN_S = 180.0
#: failure → the class of its error
FAILURES = {
    "a chain": "ValueError",
    "a part": "ChordError",
    "retries used up": "ValueError",
    "retries used up in a part": "ChordError",
    "a chain in a header": "ChordError",
    "before a chord": "ValueError",
    "a member": "ValueError",
}
#: client → queue: of the other's worker, or of both
WAYS = [("celery", "for-celeriac"), ("celeriac", "for-celery"), ("celery", "both"), ("celeriac", "both")]


class Fleet:
    """A worker of each library on one broker and one result store; each serves a queue of its own and one that both
    serve.

    Args:
        shapes, failures: The names of those that its clients send.
        verbs: What else they do.
    """

    def __init__(
        self,
        place: Path,
        broker: str,
        backend: str,
        stack: ExitStack,
        *,
        shapes: Sequence[str] = (),
        failures: Sequence[str] = tuple(FAILURES),
        verbs: Sequence[str] = (
            "shapes",
            "growing",
            "failures",
            "callbacks",
            "stamped",
            "chord_error",
            "header_errbacks",
        ),
    ) -> None:
        self.place = place
        self._stack = stack
        self._given: dict[tuple[str, str], Any] = {}
        self._words = ["--verbs", *verbs, "--shapes", *shapes, "--failures", *failures]
        self._env = {
            **os.environ,
            "C_FORCE_ROOT": "1",
            "HOME": str(place),
            "PYTHONPATH": str(APPS),
            "SUITE_BACKEND": backend,
            "SUITE_BROKER": broker,
            "SUITE_PATIENCE": "600",
            "SUITE_PLACE": str(place),
        }

    def start(self, library: str) -> None:
        path = self.place / f"{library}.log"
        log = self._stack.enter_context(path.open("wb"))
        queue = f"for-{library}"
        # With two processes Celery's RETRY, stored after its message is sent, may take the place of the next try's end.
        slots = "1" if library == "celery" else "2"
        words = ["-A", "canvas_app", "worker", "-c", slots, "-l", "info", "-Q", f"{queue},both"]
        worker = subprocess.Popen(
            [python_of(library).with_name(library), *words],
            cwd=self.place, env={**self._env, "CANVAS_LIB": library, "SUITE_QUEUE": queue},
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._stack.callback(end_group, worker)
        wait_until(lambda: " ready." in path.read_text(errors="replace"), START_S, f"{library}'s worker is ready")

    def ask(self, library: str, queue: str) -> Any:
        """What a client of this library gets that sends to this queue; asked once."""
        if (library, queue) not in self._given:
            before = self.notes()
            done = subprocess.run(
                [python_of(library), "-m", "canvas_client", *self._words], cwd=self.place, timeout=RUN_S,
                env={**self._env, "CANVAS_LIB": library, "SUITE_QUEUE": queue}, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            self._given[library, queue] = {**json.loads(done.stdout.splitlines()[-1]), "before": before}
        return self._given[library, queue]

    def wait_for_errbacks(self, library: str, queue: str) -> None:
        """Of both styles, of the calls that failed when this was asked."""
        before = self.ask(library, queue)["before"]

        def told() -> bool:
            new = self.notes()[len(before) :]
            return "old " in new and "ValueError True" in new

        wait_until(told, 60.0, "both errbacks were called")

    def notes(self) -> str:
        path = self.place / "ran"
        return path.read_text() if path.exists() else ""


def python_of(library: str) -> Path:
    return celery_python() if library == "celery" else Path(sys.executable)


@pytest.fixture(scope="module")
def fleet(redis_service: RedisService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with ExitStack() as stack:
        url = redis_service.fresh_url()
        made = Fleet(tmp_path_factory.mktemp("fleet"), url, url, stack)
        for library in ("celery", "celeriac"):
            made.start(library)
        yield made


@pytest.fixture(scope="module")
def shapes() -> dict[str, Any]:
    code = "import json; from canvas_app import SHAPES; print(json.dumps({name: SHAPES[name][1] for name in SHAPES}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(APPS)}, capture_output=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("client", "queue"), WAYS)
def test_every_shape_gives_the_same_whoever_calls_and_whoever_runs(
    fleet: Fleet, shapes: dict[str, Any], client: str, queue: str
) -> None:
    assert fleet.ask(client, queue)["shapes"] == shapes


@pytest.mark.parametrize(("client", "queue"), WAYS)
def test_a_chord_grows_in_a_mixed_fleet(fleet: Fleet, client: str, queue: str) -> None:
    assert fleet.ask(client, queue)["growing"] == [2, 9, 100, 101]


@pytest.mark.parametrize(("client", "queue"), WAYS)
def test_failures_are_told_across(fleet: Fleet, client: str, queue: str) -> None:
    assert fleet.ask(client, queue)["failures"] == FAILURES


@pytest.mark.parametrize(("client", "queue"), WAYS)
def test_the_error_of_a_chord_says_the_same(fleet: Fleet, client: str, queue: str) -> None:
    assert fleet.ask(client, queue)["chord_error"] == "Dependency ID raised ValueError('boom')"


@pytest.mark.parametrize(("client", "queue"), WAYS)
def test_errbacks_of_a_chord_are_its_headers_too_if_that_is_set(fleet: Fleet, client: str, queue: str) -> None:
    failed = fleet.ask(client, queue)["header_errbacks"]

    def told() -> bool:
        return all(f"old {task_id}" in fleet.notes() for task_id in failed)

    wait_until(told, 60.0, "the errback was called for the part and for the body")


@pytest.mark.parametrize(("client", "queue"), WAYS)
def test_callbacks_and_errbacks_of_both_styles_are_called(fleet: Fleet, client: str, queue: str) -> None:
    fleet.wait_for_errbacks(client, queue)


def test_stamps_are_seen_alike(fleet: Fleet) -> None:
    seen = [fleet.ask(client, queue)["stamped"] for client, queue in WAYS]
    assert seen == [seen[0]] * len(WAYS)
    assert seen[0][0]["customer"] in ("acme", ["acme"])
