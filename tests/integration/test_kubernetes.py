"""The example for Kubernetes: its commands run as they stand there, its probes answer, and its numbers fit together."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.integration.conftest import CELERIAC, House, wait_until

from celeriac.testing.services import free_ports

pytestmark = pytest.mark.services
PAGE = Path(__file__).parents[2] / "examples" / "kubernetes" / "celeriac.yaml"


def pod_of(name: str) -> Any:
    """The pod of a deployment, and its one container."""
    for document in yaml.safe_load_all(PAGE.read_text()):
        if document["metadata"]["name"] == name:
            pod = document["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            return pod, container
    raise AssertionError(f"{PAGE} has no {name}")


@contextmanager
def running(house: House, container: Any, port: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """Its command, with our app for the user's, and a port of this machine that nobody else sees."""
    words = [str(word) for word in [*container["command"], *container["args"]]]
    for old, new in {"8123": str(port), "0.0.0.0": "127.0.0.1"}.items():
        words = [word.replace(old, new) for word in words]
    words = [CELERIAC, *("suite_app" if word == "tasks" else word for word in words[1:])]
    with (house.place / "log").open("wb") as log:
        process = subprocess.Popen(
            words, cwd=house.place, env={**os.environ, **house.env}, stdout=subprocess.DEVNULL, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def ask(container: Any, probe: str, port: int) -> int:
    """What the kubelet gets from a probe: a status, 0 for none."""
    request = container[probe]["httpGet"]
    assert request["port"] in {known["name"] for known in container["ports"]}
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{request['path']}", timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return 0


def test_the_worker_is_ready_lives_and_ends_within_its_grace(sqlite_house: House) -> None:
    house, (port,) = sqlite_house, free_ports(1)
    pod, container = pod_of("tasks-worker")
    with running(house, container, port) as worker:
        wait_until(lambda: ask(container, "startupProbe", port) == 200, 60, "its start")
        for probe in ("readinessProbe", "livenessProbe"):  # who asks too slowly is hung up on, and asks again
            wait_until(lambda probe=probe: ask(container, probe, port) == 200, what=probe)
        result = house.send("hold", "long")
        wait_until(lambda: any(line.startswith("start long") for line in house.ran()), 60, "the long task")
        worker.send_signal(signal.SIGTERM)
        wait_until(lambda: ask(container, "readinessProbe", port) == 503, 60, "no more traffic")
        wait_until(
            lambda: ask(container, "livenessProbe", port) == 200, what="it is not killed for finishing its tasks"
        )
        house.release("long")
        assert worker.wait(pod["terminationGracePeriodSeconds"]) == 0
    assert result.get(timeout=30) == "long"
    events = [json.loads(line)["event"] for line in (house.place / "log").read_text().splitlines()]
    assert "worker.ready" in events


def test_the_numbers_of_the_worker_fit_together() -> None:
    pod, container = pod_of("tasks-worker")
    options = dict(word.lstrip("-").split("=") for word in container["args"])
    assert float(options["worker.shutdown_grace"]) < pod["terminationGracePeriodSeconds"]
    assert str(container["ports"][0]["containerPort"]) == options["health-port"]
    assert options["concurrency"] == container["resources"]["limits"]["cpu"]
    memory_kib = int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 1024**2
    assert int(options["concurrency"]) * int(options["max-memory-per-child"]) <= memory_kib / 2


def test_beat_is_found_alive_by_its_probe(sqlite_house: House) -> None:
    house = sqlite_house
    _, container = pod_of("tasks-beat")
    probe = [word.replace("-A tasks", "-A suite_app") for word in container["livenessProbe"]["exec"]["command"]]
    env = {
        **os.environ, **house.env, "HOSTNAME": platform.node(), "PATH": f"{Path(CELERIAC).parent}:{os.environ['PATH']}"
    }  # fmt: skip
    with running(house, container) as beat:
        wait_until(lambda: "beat.starting" in (house.place / "log").read_text(), 60, "its start")
        said: list[str] = []

        def is_alive() -> bool:  # it listens a little after it has begun, and the kubelet asks again too
            done = subprocess.run(probe, cwd=house.place, env=env, capture_output=True, text=True, timeout=60)
            said[:] = done.stdout, done.stderr
            return done.returncode == 0 and "pong" in done.stdout

        wait_until(is_alive, 60, lambda: f"an answer to the probe: {said}")
        beat.terminate()
        assert beat.wait(60) == 0
