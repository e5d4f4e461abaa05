"""Tasks and waits much longer than a lease run once, whatever they do to the processor, and beside Celery's workers."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.integration.celery_venv import celery_python
from tests.integration.conftest import House, make_house, stop_until, wait_until

from celeriac_support_redis.wire import Wire, connect, parse_url

pytestmark = pytest.mark.services

#: A worker that is kept waiting for two thirds of it may lose what it holds.
LEASE_S = 5.0
LONG_S = 4 * LEASE_S

PEER = """
from celery import Celery
app = Celery("peer", broker={url!r})
app.conf.update(broker_transport_options={{"visibility_timeout": {timeout}}}, worker_hijack_root_logger=False)
"""


@pytest.fixture
def house(tmp_path: Path, redis_url: str) -> Iterator[House]:
    made = House(tmp_path, f"{redis_url}?lease={LEASE_S:g}", redis_url)
    yield made
    made.close()


@pytest.fixture
def server(redis_url: str) -> Iterator[Wire]:
    wire = connect(parse_url(redis_url)[0])
    yield wire
    wire.close()


def starts(house: House) -> list[str]:
    return sorted(line.split()[1] for line in house.ran() if line.startswith("start"))


def test_tasks_and_waits_much_longer_than_a_lease_run_once(house: House) -> None:
    house.worker("-c", "2")
    house.worker("-P", "threads", "-c", "2")
    later = house.send("sleep", 0.0, "later", countdown=LONG_S)
    running = [house.send("sleep", LONG_S, f"long{n}") for n in range(4)]
    wait_until(lambda: len(starts(house)) == 4, what="all running")
    assert [result.get(timeout=60) for result in running] == [f"long{n}" for n in range(4)]
    assert later.get(timeout=30) == "later"
    assert starts(house) == ["later", "long0", "long1", "long2", "long3"]


def test_a_task_that_keeps_the_processor_in_the_very_process_that_renews_runs_once(
    tmp_path: Path, redis_url: str
) -> None:
    house = House(tmp_path, f"{redis_url}?lease=6", redis_url)
    try:
        for _ in range(2):
            house.worker("-P", "threads", "-c", "1")
        assert house.send("spin", 9.0, "spin").get(timeout=60) == "spin"
        assert starts(house) == ["spin"]
    finally:
        house.close()


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_c_code_that_holds_the_interpreter_costs_no_lease_and_a_stopped_worker_still_loses_its_own(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    plain = make_house(kind, request, tmp_path)
    plain.close()
    house = House(tmp_path, f"{plain.broker}?lease=5", plain.backend)
    try:
        for pool in ("threads", "solo"):
            house.worker("-P", pool, "-c", "1")
        assert house.send("hold_interpreter", 8, "held").get(timeout=60) == "held"
        assert starts(house) == ["held"]
        house.send("hold", "stopped")
        wait_until(lambda: "stopped" in starts(house), what="the task")
        (pid,) = (int(line.split()[2]) for line in house.ran() if line.startswith("start stopped"))
        stop_until(lambda: starts(house).count("stopped") == 2, partial(os.kill, pid), "the other worker's run")
    finally:
        house.close()


@pytest.mark.slow
def test_celerys_workers_leave_alone_what_is_held_here_for_longer_than_their_visibility_timeout(
    house: House, redis_url: str, server: Wire
) -> None:
    """All workers of one Redis share the record of what is held, and any Celery worker gives back what looks old."""
    house.env["SUITE_BROKER"] = f"{redis_url}?visibility_timeout={LEASE_S:g}"
    house.worker("-c", "2")
    (house.place / "peer.py").write_text(PEER.format(url=redis_url, timeout=LEASE_S))
    log = (house.place / "peer.log").open("wb")
    words = ["-m", "celery", "-A", "peer", "worker", "-c", "1", "-P", "solo", "-Q", "peers", "-l", "info"]
    peer = subprocess.Popen(
        [str(celery_python()), *words],
        cwd=house.place,
        env={**os.environ, "C_FORCE_ROOT": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        result = house.send("hold", "held")
        wait_until(lambda: starts(house), what="the task")
        time.sleep(LEASE_S)  # what is not renewed is abandoned from now on
        abandoned = {
            "headers": {},
            "properties": {"delivery_info": {"exchange": "", "routing_key": "probe"}},
            "body": "",
        }
        server.call("HSET", "unacked", "probe", json.dumps([abandoned, "", "probe"]))
        server.call("ZADD", "unacked_index", time.time() - 100, "probe")
        wait_until(lambda: server.call("LLEN", "probe"), what="Celery's search for abandoned messages")
        assert server.call("HLEN", "unacked") == 1, "ours is still recorded"
        house.release("held")
        assert result.get(timeout=60) == "held"
        assert starts(house) == ["held"]
    finally:
        peer.kill()
        peer.wait()
        log.close()
