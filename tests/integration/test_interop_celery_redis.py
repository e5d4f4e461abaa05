"""celeriac and a real Celery on one Redis, both ways: each calls tasks that the other runs, and reads its results."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.integration.celery_venv import celery_python
from tests.integration.conftest import wait_until

from celeriac import Celery, chord, signature
from celeriac.testing.services import RedisService

pytestmark = [pytest.mark.services, pytest.mark.slow]

APPS = Path(__file__).parent / "apps"
START_S = 60.0
GET_S = 60.0
#: client → worker
WAYS = [
    pytest.param(("celery", "celeriac"), id="celery-calls"),
    pytest.param(("celeriac", "celery"), id="celeriac-calls"),
]


class Side:
    """Processes of one library, in one setting."""

    def __init__(self, library: str, place: Path, url: str, stack: ExitStack, settings: dict[str, str]) -> None:
        self.library = library
        self.place = place
        self.queue = f"for-{library}"
        self.stack = stack
        python = celery_python() if library == "celery" else Path(sys.executable)
        self.python = str(python)
        self.env = {
            **os.environ,
            "C_FORCE_ROOT": "1",  # Celery's own word for: pickle is accepted, and we are root, in a test
            "HOME": str(place),
            "INTEROP_BACKEND": url,
            "INTEROP_BROKER": url,
            "INTEROP_LIB": library,
            "INTEROP_QUEUE": self.queue,
            "PYTHONPATH": str(APPS),
            "PYTHONUNBUFFERED": "1",
            **settings,
        }
        self.client: subprocess.Popen[str] | None = None

    def start_worker(self) -> None:
        words = ["-A", "interop_app", "worker", "-c", "1", "-l", "info", "-Q", self.queue]
        log = self.stack.enter_context(self.log_path.open("wb"))
        worker = subprocess.Popen(
            [Path(self.python).with_name(self.library), *words], cwd=self.place, env=self.env,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.stack.callback(end_group, worker)
        deadline = time.monotonic() + START_S
        while " ready." not in (text := self.log):
            if worker.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the {self.library} worker did not get ready:\n{text[-3000:]}")
            time.sleep(0.05)

    @property
    def log_path(self) -> Path:
        return self.place / f"{self.library}-worker.log"

    @property
    def log(self) -> str:
        """What its worker has said."""
        return self.log_path.read_text(errors="replace")

    def ask(self, verb: str, *words: Any) -> Any:
        """Have the client process do something; raises `Raised` when that raised."""
        if self.client is None:
            self.client = subprocess.Popen(
                [self.python, "-m", "interop_app"], cwd=self.place, env=self.env, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            self.stack.callback(self.client.wait)
            self.stack.callback(self.client.kill)
        assert self.client.stdin is not None
        assert self.client.stdout is not None
        self.client.stdin.write(repr((verb, words)) + "\n")
        self.client.stdin.flush()
        line = self.client.stdout.readline()
        if not line:
            assert self.client.stderr is not None
            pytest.fail(f"the {self.library} client died:\n{self.client.stderr.read()[-3000:]}")
        good, answer = ast.literal_eval(line)
        if not good:
            raise Raised(*answer)
        return answer


class Raised(Exception):
    """What the client's call raised: name of the class, arguments, module."""


class Pair:
    """A client of one library and a worker of the other."""

    def __init__(self, client: Side, worker: Side) -> None:
        self.client = client
        self.worker = worker

    def call(self, task: str, *args: Any, kwargs: dict[str, Any] | None = None, **options: Any) -> str:
        """Call a task that the other side's worker runs; its id."""
        task_id: str = self.client.ask(
            "call", f"interop.{task}", args, kwargs or {}, {"queue": self.worker.queue, **options}
        )
        return task_id

    def get(self, task_id: str) -> Any:
        return self.client.ask("get", task_id, GET_S)

    def look(self, task_id: str) -> Any:
        return self.client.ask("look", task_id)

    def result(self, task: str, *args: Any, **options: Any) -> Any:
        return self.get(self.call(task, *args, **options))

    def call_in_turn(self, calls: list[tuple[str, str, str, int]]) -> list[str]:
        """Call tasks with two arguments and a priority, while the worker is held; their ids.

        A Celery worker holds one message in advance: it has the first before there is another.
        """
        ids: list[str] = []
        for task, *args, priority in calls:
            ids.append(self.call(task, *args, priority=priority))
            if len(ids) == 1 and self.worker.library == "celery":
                wait_until(lambda: f"[{ids[0]}] received" in self.worker.log, GET_S, "the one held in advance")
        return ids

    @contextmanager
    def held_worker(self, place: Path) -> Iterator[None]:
        """Meanwhile the worker's one slot is busy: what is called now waits."""
        begun, go_on = place / "begun", place / "go-on"
        blocker = self.call("hold", str(begun), str(go_on))
        wait_until(begun.exists, GET_S, "the task that holds the worker")
        yield
        go_on.touch()
        assert self.get(blocker) == "held"


def end_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it is gone already
    process.wait()


@pytest.fixture(scope="module")
def make_sides(
    redis_service: RedisService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., dict[str, Side]]]:
    """Both libraries on one fresh database, with a worker each."""
    with ExitStack() as stack:

        def make(**settings: str) -> dict[str, Side]:
            place, url = tmp_path_factory.mktemp("interop"), redis_service.fresh_url()
            sides = {name: Side(name, place, url, stack, settings) for name in ("celery", "celeriac")}
            for side in sides.values():
                side.start_worker()
            return sides

        yield make


@pytest.fixture(scope="module")
def sides(make_sides: Callable[..., dict[str, Side]]) -> dict[str, Side]:
    return make_sides()


@pytest.fixture(params=WAYS)
def pair(request: pytest.FixtureRequest, sides: dict[str, Side]) -> Pair:
    client, worker = request.param
    return Pair(sides[client], sides[worker])


def test_a_plain_call_comes_back(pair: Pair) -> None:
    assert pair.result("add", 2, 3) == 5
    assert pair.result("echo", "ä", None, kwargs={"k": [1.5, {"v": True}]}) == [["ä", None], {"k": [1.5, {"v": True}]}]


def test_the_name_of_a_file_that_is_no_utf_8_is_an_argument_as_others_are(pair: Pair) -> None:
    assert pair.result("echo", "r\udce9sum\udce9.txt") == [["r\udce9sum\udce9.txt"], {}]


def test_the_worker_is_the_other_one_and_sees_the_callers_headers(pair: Pair) -> None:
    task_id = pair.call("about")
    about = pair.get(task_id)
    assert about["library"] == pair.worker.library
    assert (about["id"], about["root_id"], about["correlation_id"]) == (task_id, task_id, task_id)
    assert about["origin"] is True


def test_an_error_comes_back_with_its_class_arguments_and_traceback(pair: Pair) -> None:
    task_id = pair.call("fail", "wrong")
    with pytest.raises(Raised) as caught:
        pair.get(task_id)
    assert caught.value.args[:2] == ("OddError", ("wrong", 7))
    seen = pair.look(task_id)
    assert seen["state"] == "FAILURE"
    assert "raise OddError(text, 7)" in seen["traceback"]
    with pytest.raises(Raised) as caught:
        pair.result("key_error", "missing")
    assert caught.value.args[:2] == ("KeyError", ("missing",))


def test_an_unknown_task_does_not_stop_the_worker(pair: Pair) -> None:
    pair.call("nobody_knows")
    assert pair.result("add", 1, 1) == 2


def test_a_countdown_is_kept(pair: Pair) -> None:
    begun = time.time()
    task_id = pair.call("about", countdown=1.5)
    assert pair.look(task_id)["state"] == "PENDING" or time.time() >= begun + 1.5
    assert pair.get(task_id)["eta"] is True
    assert time.time() - begun >= 1.5


def test_an_expired_call_is_revoked(pair: Pair, tmp_path: Path) -> None:
    with pair.held_worker(tmp_path):
        late = pair.call("add", 1, 1, expires=0.5)
        time.sleep(0.6)
    assert pair.result("add", 2, 2, expires=60) == 4
    assert pair.look(late)["state"] == "REVOKED"


def test_priorities_are_served_alike(pair: Pair, tmp_path: Path) -> None:
    path = str(tmp_path / "order")
    with pair.held_worker(tmp_path):
        calls = pair.call_in_turn([("note", path, str(priority), priority) for priority in (9, 3, 0, 6)])
    for call in calls:
        pair.get(call)
    order = Path(path).read_text().split()
    # a Celery worker holds one message in advance, the first that came
    assert [name for name in order if name != "9"] == ["0", "3", "6"]
    if pair.worker.library == "celeriac":
        assert order == ["0", "3", "6", "9"]


@pytest.mark.parametrize("serializer", ["json", "pickle", "msgpack", "yaml"])
def test_every_serializer_carries_the_arguments(pair: Pair, serializer: str) -> None:
    assert pair.result("echo", "ä", 1, 2.5, None, [1], {"k": "v"}, serializer=serializer) == [
        ["ä", 1, 2.5, None, [1], {"k": "v"}],
        {},
    ]


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
def test_compressed_arguments_are_unpacked(pair: Pair, compression: str) -> None:
    assert pair.result("echo", "x" * 5000, compression=compression) == [["x" * 5000], {}]


def test_a_retried_call_keeps_its_id(pair: Pair) -> None:
    assert pair.result("retry", 2) == 2


def test_a_state_of_the_tasks_own_is_seen(pair: Pair, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    task_id = pair.call("progress", str(go_on))
    deadline = time.monotonic() + GET_S
    while (seen := pair.look(task_id))["state"] == "PENDING" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (seen["state"], seen["info"]) == ("HALFWAY", {"done": 50})
    go_on.touch()
    assert pair.get(task_id) == "done"


def test_a_hundred_calls_each_way_at_once_all_come_back(sides: dict[str, Side]) -> None:
    pairs = [Pair(sides["celery"], sides["celeriac"]), Pair(sides["celeriac"], sides["celery"])]
    calls = [[pair.call("add", n, n) for n in range(100)] for pair in pairs]
    for pair, ids in zip(pairs, calls, strict=True):
        assert [pair.get(task_id) for task_id in ids] == [2 * n for n in range(100)]


@pytest.mark.parametrize("reader", ["celery", "celeriac"])
def test_either_reads_what_the_other_stored_for_a_third(sides: dict[str, Side], reader: str) -> None:
    """A result is no private matter of caller and worker."""
    for worker in sides.values():
        task_id = Pair(sides["celery"], worker).call("add", 20, 1)
        assert sides[reader].ask("get", task_id, GET_S) == 21


@pytest.mark.parametrize("serializer", ["pickle", "msgpack", "yaml"])
def test_results_of_every_serializer_are_read_by_the_other(
    make_sides: Callable[..., dict[str, Side]], serializer: str
) -> None:
    sides = make_sides(INTEROP_RESULT_SERIALIZER=serializer, INTEROP_RESULT_COMPRESSION="gzip")
    for client, worker in (("celery", "celeriac"), ("celeriac", "celery")):
        pair = Pair(sides[client], sides[worker])
        assert pair.result("echo", "ä" * 500, 1) == [["ä" * 500, 1], {}]
        with pytest.raises(Raised) as caught:
            pair.result("fail", "wrong")
        assert caught.value.args[:2] == ("OddError", ("wrong", 7))


def test_a_celery_worker_runs_calls_of_protocol_1_also_by_their_bodies_alone(sides: dict[str, Side]) -> None:
    side = sides["celery"]
    url = side.env["INTEROP_BROKER"]
    with Celery("one", broker=url, backend=url, set_as_current=False, task_protocol=1) as app:
        app.conf.task_default_queue = side.queue

        def call(task: str, *args: Any) -> Any:
            return signature(f"interop.{task}", args, app=app)

        assert call("add", 1, 2).apply_async(countdown=0.2, expires=60).get(timeout=GET_S) == 3
        assert call("about").apply_async(retries=2).get(timeout=GET_S)["retries"] == 2
        linked = call("add", 5)
        result = linked.freeze()
        call("add", 1, 2).apply_async(link=linked)
        assert result.get(timeout=GET_S) == 8
        assert (call("add", 1, 2) | call("add", 3) | call("add", 4)).apply_async().get(timeout=GET_S) == 10
        joined = chord([call("add", n, n) for n in range(3)], call("echo"))
        assert (joined | call("echo", "end")).apply_async().get(timeout=GET_S) == [[[[[0, 2, 4]], {}], "end"], {}]
        bare = app.make_payload("interop.add", (20, 1), {}, "bare", {"link": [call("add", 2).set(task_id="after")]})
        bare.headers.clear()
        app.producer.send([bare])
        assert [app.AsyncResult(task_id).get(timeout=GET_S) for task_id in ("bare", "after")] == [21, 23]
