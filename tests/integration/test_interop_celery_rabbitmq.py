"""celeriac and a real Celery on one RabbitMQ, both ways: each calls tasks that the other runs and reads its replies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_interop_celery_redis import WAYS, Pair, Raised, Side

from celeriac.testing.services import RabbitMQService

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.xdist_group("rabbitmq")]

GET_S = 60.0
LATE_S = 10.0
MakeSides = Callable[..., dict[str, Side]]


@pytest.fixture(scope="module")
def make_sides(rabbitmq_service: RabbitMQService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeSides]:
    """Both libraries in one fresh virtual host, with a worker each."""
    with ExitStack() as stack:

        def make(result_serializer: str = "json", **settings: Any) -> dict[str, Side]:
            place, url = tmp_path_factory.mktemp("interop"), rabbitmq_service.fresh_url()
            env = {
                "INTEROP_BACKEND": "rpc://",
                "INTEROP_RESULT_SERIALIZER": result_serializer,
                "INTEROP_SETTINGS": repr(settings),
            }
            sides = {name: Side(name, place, url, stack, env) for name in ("celery", "celeriac")}
            for side in sides.values():
                side.start_worker()
            return sides

        yield make


@pytest.fixture(scope="module")
def sides(make_sides: MakeSides) -> dict[str, Side]:
    return make_sides(task_queue_max_priority=10, result_compression="gzip")


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
    task_id = pair.call("about", headers={"mine": [None, {"deep": -1}, 2.5, True]})
    about = pair.get(task_id)
    assert about["library"] == pair.worker.library
    assert (about["id"], about["root_id"], about["correlation_id"]) == (task_id, task_id, task_id)
    assert about["origin"] is True


def test_an_error_comes_back_with_its_class_arguments_and_traceback(pair: Pair) -> None:
    task_id = pair.call("fail", "wrong")
    with pytest.raises(Raised) as caught:
        pair.get(task_id)
    assert caught.value.args[:2] == ("OddError", ("wrong", 7))
    if pair.client.library == "celery":
        return  # which forgets a reply once it was read
    seen = pair.look(task_id)
    assert seen["state"] == "FAILURE"
    assert "raise OddError(text, 7)" in seen["traceback"]


@pytest.mark.parametrize("countdown_s", [1.5, 4.0])
def test_a_countdown_is_kept(pair: Pair, countdown_s: float) -> None:
    assert_punctual(pair, countdown_s)


def assert_punctual(pair: Pair, countdown_s: float) -> None:
    """It is never early, and seldom late: of three tries on a busy machine not each."""
    waits: list[float] = []
    while not waits or (waits[-1] > countdown_s + LATE_S and len(waits) < 3):
        begun = time.time()
        assert pair.get(pair.call("about", countdown=countdown_s))["eta"] is True
        waits.append(time.time() - begun)
        assert waits[-1] >= countdown_s
    assert waits[-1] <= countdown_s + LATE_S, waits


def test_an_expired_call_is_never_run(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "ran"
    with pair.held_worker(tmp_path):
        pair.call("note", str(path), "late", expires=0.5)
        time.sleep(0.6)
    assert pair.result("add", 2, 2, expires=60) == 4
    assert not path.exists()


def test_the_highest_priority_is_served_first(pair: Pair, tmp_path: Path) -> None:
    path = str(tmp_path / "order")
    with pair.held_worker(tmp_path):
        calls = pair.call_in_turn([("note", path, str(priority), priority) for priority in (0, 6, 9, 3)])
    for call in calls:
        pair.get(call)
    order = Path(path).read_text().split()
    # a Celery worker holds one message in advance, the first that came
    assert [name for name in order if name != "0"] == ["9", "6", "3"]
    if pair.worker.library == "celeriac":
        assert order == ["9", "6", "3", "0"]


@pytest.mark.parametrize("serializer", ["json", "pickle", "msgpack", "yaml"])
def test_every_serializer_carries_the_arguments(pair: Pair, serializer: str) -> None:
    assert pair.result("echo", "ä", 1, 2.5, None, [1], {"k": "v"}, serializer=serializer) == [
        ["ä", 1, 2.5, None, [1], {"k": "v"}],
        {},
    ]


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
def test_compressed_arguments_are_unpacked(pair: Pair, compression: str) -> None:
    assert pair.result("echo", "x" * 5000, compression=compression) == [["x" * 5000], {}]


def test_a_large_argument_and_result_travel_in_several_frames(pair: Pair) -> None:
    assert pair.result("echo", "x" * 600_000) == [["x" * 600_000], {}]


def test_a_retried_call_keeps_its_id(pair: Pair) -> None:
    assert pair.result("retry", 2) == 2


def test_a_state_of_the_tasks_own_does_not_hide_the_result(pair: Pair, tmp_path: Path) -> None:
    assert pair.result("progress", str(tmp_path)) == "done"


def test_a_hundred_calls_each_way_at_once_all_come_back(sides: dict[str, Side]) -> None:
    pairs = [Pair(sides["celery"], sides["celeriac"]), Pair(sides["celeriac"], sides["celery"])]
    calls = [[pair.call("add", n, n) for n in range(100)] for pair in pairs]
    for pair, ids in zip(pairs, calls, strict=True):
        assert [pair.get(task_id) for task_id in ids] == [2 * n for n in range(100)]


@pytest.mark.parametrize("serializer", ["pickle", "msgpack", "yaml"])
def test_replies_of_every_serializer_are_read_by_the_other(make_sides: MakeSides, serializer: str) -> None:
    sides = make_sides(serializer)
    for client, worker in (("celery", "celeriac"), ("celeriac", "celery")):
        pair = Pair(sides[client], sides[worker])
        assert pair.result("echo", "ä" * 500, 1) == [["ä" * 500, 1], {}]
        with pytest.raises(Raised) as caught:
            pair.result("fail", "wrong")
        assert caught.value.args[:2] == ("OddError", ("wrong", 7))


@pytest.mark.parametrize("exchange_type", ["direct", "topic"])
def test_quorum_queues_and_their_delays_are_shared(make_sides: MakeSides, exchange_type: str) -> None:
    """With a topic exchange Celery delays natively, in the delay queues that we use too."""
    sides = make_sides(
        task_default_queue_type="quorum",
        task_default_exchange_type=exchange_type,
        task_create_missing_queue_type="quorum",
        task_create_missing_queue_exchange_type=exchange_type,
    )
    for client, worker in (("celery", "celeriac"), ("celeriac", "celery")):
        pair = Pair(sides[client], sides[worker])
        assert pair.result("add", 2, 3) == 5
        assert_punctual(pair, 4.0)
