"""Calling from the places where programs call from: threads, forked children, scripts, a REPL, pickles."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from typing import Any

import pytest
from tests.integration.conftest import House

from celeriac.exceptions import BackendMismatch
from celeriac.resultstore import NoResultBackend

pytestmark = pytest.mark.services


def test_many_threads_of_one_client_call_at_once(house: House) -> None:
    house.worker()
    answers: dict[int, Any] = {}

    def call(n: int) -> None:
        answers[n] = [house.send("add", n, k).get(timeout=30) for k in range(20)]

    threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {n: [n + k for k in range(20)] for n in range(8)}


def test_a_forked_child_calls_for_itself_and_the_parent_goes_on(house: House) -> None:
    """As a web server does that imports the app, calls once, and then forks."""
    house.worker()
    assert house.send("add", 1, 1).get(timeout=30) == 2
    children = []
    for n in range(3):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = (
                    0
                    if [house.send("add", n, k).get(timeout=30) for k in range(10)] == [n + k for k in range(10)]
                    else 2
                )
            finally:
                os._exit(code)
        children.append(pid)
    assert [house.send("add", 5, k).get(timeout=30) for k in range(10)] == [5 + k for k in range(10)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]


def python(house: House, *words: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **house.env}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=house.place, env=env, input=input, capture_output=True, text=True, timeout=60)


SCRIPT = """
from suite_app import add, app
result = add.delay(4, 4)
print(result.get(timeout=30), result.ready(), result.state)
"""


def test_a_script_prints_its_answer_and_nothing_else(house: House) -> None:
    house.worker()
    done = python(house, "-c", SCRIPT)
    assert (done.returncode, done.stderr) == (0, "")
    if house.backend.startswith("rpc"):
        assert done.stdout.startswith("8 ")
    else:
        assert done.stdout == "8 True SUCCESS\n"


def test_a_repl_shows_results_as_people_expect(sqlite_house: House) -> None:
    sqlite_house.worker()
    lines = "from suite_app import add\nr = add.delay(2, 2)\nr.get(timeout=30)\nr\nadd\nr.ready()\n"
    done = python(sqlite_house, "-i", "-q", input=lines)
    shown = done.stdout.splitlines()
    assert shown[0] == "4"
    assert shown[1].startswith("<AsyncResult: ")
    assert shown[2] == "<@task: suite_app.add of suite_app>"
    assert shown[3] == "True"


def test_a_pickled_result_is_still_one(sqlite_house: House) -> None:
    sqlite_house.worker()
    result = sqlite_house.send("add", 1, 2)
    again = pickle.loads(pickle.dumps(result))
    assert again == result
    assert again.get(timeout=30) == 3


def test_an_app_without_results_says_so_at_once(sqlite_house: House) -> None:
    sqlite_house.app.conf.result_backend = None
    sqlite_house.app.close()
    result = sqlite_house.send("add", 1, 1)
    for ask in (lambda: result.get(timeout=30), lambda: result.state, result.ready, result.forget):
        with pytest.raises(NoResultBackend, match="this app has no result backend"):
            ask()


@pytest.mark.parametrize("kept", ["", "other"])
def test_a_worker_with_other_results_is_named_to_who_waits(house: House, kept: str) -> None:
    """The tutorial's last chapter: an old worker, or one with other settings, has run the task."""
    if house.backend.startswith("rpc"):
        house.backend = house.app.conf.result_backend = f"sqlite:///{house.place}/mine.db"
    elsewhere = f"sqlite:///{house.place}/elsewhere.db" if kept else ""
    house.worker("-n", "old@%h", SUITE_BACKEND=elsewhere)
    with pytest.raises(BackendMismatch, match=r"was run by old@.*no result will come"):
        house.send("add", 1, 1).get(timeout=30)


def test_extended_results_say_what_was_called(sqlite_house: House) -> None:
    sqlite_house.worker(SUITE_EXTENDED="1")
    result = sqlite_house.send("echo", 1, kwargs={"k": 2})
    result.get(timeout=30)
    fresh = sqlite_house.app.AsyncResult(result.id)
    assert (fresh.name, fresh.args, fresh.kwargs, fresh.retries, fresh.queue) == (
        "suite_app.echo",
        [1],
        {"k": 2},
        0,
        "celery",
    )
    assert "@" in (fresh.worker or "")


def test_forgotten_results_are_gone(house: House) -> None:
    house.worker()
    result = house.send("add", 1, 1)
    assert result.get(timeout=30) == 2
    result.forget()
    assert not house.app.AsyncResult(result.id).exists()
