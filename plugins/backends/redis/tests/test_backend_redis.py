"""Results on a real server: Celery's keys and bytes, conditions, waiting, faults."""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from celeriac.exceptions import BackendError, BackendLost, BackendUnreachable, SettingError
from celeriac.spec import StoredResult
from celeriac.spec.results import PREFIX
from celeriac.testing.kit import KitHost
from celeriac.testing.services import RedisService
from celeriac_backend_redis.backend import RedisBackend, make_backend
from celeriac_support_redis.wire import Wire, connect, parse_url

Make = Callable[..., RedisBackend]


@pytest.fixture
def make(redis_url: str) -> Iterator[Make]:
    made: list[RedisBackend] = []

    def one(url: str = redis_url, **settings: Any) -> RedisBackend:
        backend = make_backend(url, settings, KitHost())
        assert backend is not None
        made.append(backend)
        return backend

    yield one
    for backend in made:
        backend.close()


@pytest.fixture
def backend(make: Make) -> RedisBackend:
    return make()


@pytest.fixture
def server(redis_url: str) -> Iterator[Wire]:
    """A connection to look at the server's keys with."""
    wire = connect(parse_url(redis_url)[0], protocol=3)
    yield wire
    wire.close()


def stored(
    backend: RedisBackend, task_id: str, state: str = "SUCCESS", value: Any = 5, serializer: str = "json"
) -> StoredResult:
    document = {
        "task_id": task_id, "result": value, "status": state, "traceback": None, "children": [],
        "date_done": "2026-11-22T07:22:53.273035+00:00",
    }  # fmt: skip
    return StoredResult(task_id, state, backend.encode(document, KitHost().serializer(serializer)))


def state_of(backend: RedisBackend, task_id: str) -> Any:
    return backend.decode(backend.fetch([task_id])[task_id])["status"]


# -- the form -----------------------------------------------------------------------------------------------


def test_a_result_is_a_string_under_celerys_key_that_expires_and_is_published(
    backend: RedisBackend, server: Any
) -> None:
    server.write(b"SUBSCRIBE celery-task-meta-U1\r\n")
    server.read(1)
    backend.store([stored(backend, "U1")])
    (news,) = server.read(1)
    raw = server.call("GET", "celery-task-meta-U1")
    assert list(news) == [b"message", b"celery-task-meta-U1", raw]
    assert json.loads(raw)["result"] == 5
    assert raw.startswith(b'{"status": "SUCCESS", ')
    assert 86390 <= server.call("TTL", "celery-task-meta-U1") <= 86400


@pytest.mark.parametrize(
    ("expires", "ttl"), [(60, 60), (timedelta(minutes=2), 120), (None, -1), (0, -1), (0.2, 1), (1.9, 1)]
)
def test_results_expire_as_configured(make: Make, server: Any, expires: Any, ttl: int) -> None:
    backend = make(result_expires=expires)
    backend.store([stored(backend, "U1", "STARTED")])
    backend.store([stored(backend, "U1", "SUCCESS")])
    assert ttl - 1 <= server.call("TTL", "celery-task-meta-U1") <= ttl


def test_failures_may_have_a_lifetime_of_their_own(make: Make, server: Any) -> None:
    backend = make(result_expires=60, result_failure_expires=600)
    backend.store([stored(backend, "good"), stored(backend, "bad", "FAILURE"), stored(backend, "fine")])
    ttls = [server.call("TTL", f"celery-task-meta-{name}") for name in ("good", "bad", "fine")]
    assert [ttl > 60 for ttl in ttls] == [False, True, False]


@pytest.mark.parametrize(
    ("prefix", "key"), [("mine", b"mine_celery-task-meta-x"), ("mine:", b"mine:celery-task-meta-x")]
)
def test_a_key_prefix_is_joined_as_celery_does(make: Make, server: Any, prefix: str, key: bytes) -> None:
    backend = make(result_backend_transport_options={"global_keyprefix": prefix})
    backend.store([stored(backend, "x")])
    assert server.call("KEYS", "*") == [key]
    assert backend.watch(["x"]).wait(20)[0][0] == "x"


@pytest.mark.parametrize("name", ["gzip", "bzip2", "lzma", "application/x-gzip"])
def test_compressed_results_have_celerys_prefix_and_are_read_back(make: Make, name: str) -> None:
    backend = make(result_compression=name)
    result = stored(backend, "x", value="y" * 1000)
    assert result.data.startswith(PREFIX)
    assert len(result.data) < 500
    assert backend.decode(result.data)["result"] == "y" * 1000


def test_a_failure_is_not_compressed_so_that_its_state_can_be_seen(make: Make) -> None:
    backend = make(result_compression="gzip")
    backend.store([stored(backend, "x", "FAILURE"), stored(backend, "y", "SUCCESS")])
    backend.store([stored(backend, "x", "STARTED"), stored(backend, "y", "FAILURE")])
    assert (state_of(backend, "x"), state_of(backend, "y")) == ("FAILURE", "SUCCESS")
    backend.store([stored(backend, "x", "SUCCESS")])
    assert state_of(backend, "x") == "SUCCESS"


def test_celerys_own_compressed_result_is_read(backend: RedisBackend, server: Any) -> None:
    document = json.dumps({"status": "SUCCESS", "result": 7}).encode()
    server.call("SET", "celery-task-meta-x", PREFIX + b"application/x-gzip\0" + zlib.compress(document))
    assert backend.decode(backend.fetch(["x"])["x"])["result"] == 7


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[1]", PREFIX, PREFIX + b"application/x-gzip\0nonsense", PREFIX + b"application/x-unheard\0x"],
)
def test_a_stored_result_that_is_none_is_a_value_error(backend: RedisBackend, data: bytes) -> None:
    with pytest.raises(ValueError):
        backend.decode(data)


def test_a_bomb_does_not_unpack(backend: RedisBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celeriac.spec.results.MAX_BYTES", 1_000_000)
    bomb = PREFIX + b"application/x-gzip\0" + zlib.compress(b"0" * 50_000_000)
    with pytest.raises(ValueError, match="more than"):
        backend.decode(bomb)


def test_settings_that_make_no_sense_are_refused_by_name(make: Make) -> None:
    with pytest.raises(SettingError, match="result_compression"):
        make(result_compression="zip-zap")
    with pytest.raises(SettingError, match="result_expires"):
        make(result_expires="tomorrow")


# -- the conditions -----------------------------------------------------------------------------------------

ORDER = ["STARTED", "MY-STATE", "RETRY", "FAILURE", "REVOKED", "SUCCESS"]


@pytest.mark.parametrize("serializer", ["json", "pickle", "msgpack", "yaml"])
@pytest.mark.parametrize("first", ORDER)
@pytest.mark.parametrize("second", ORDER)
def test_a_success_is_final_and_ready_is_not_undone_whatever_the_serializer(
    make: Make, serializer: str, first: str, second: str
) -> None:
    backend = make(result_serializer=serializer)
    backend.store([stored(backend, "x", first, 1, serializer)])
    backend.store([stored(backend, "x", second, 2, serializer)])
    ready = {"FAILURE", "REVOKED", "SUCCESS"}
    kept = first == "SUCCESS" or (first in ready and second not in ready)
    assert state_of(backend, "x") == (first if kept else second)
    assert backend.decode(backend.fetch(["x"])["x"])["result"] == (1 if kept else 2)


def test_a_result_that_speaks_of_success_is_none(backend: RedisBackend) -> None:
    backend.store([stored(backend, "x", "STARTED", value="status: SUCCESS")])
    backend.store([stored(backend, "x", "FAILURE")])
    assert state_of(backend, "x") == "FAILURE"


def test_one_batch_may_have_several_states_of_one_task(backend: RedisBackend) -> None:
    states = ["STARTED", "SUCCESS", "FAILURE"]
    backend.store([stored(backend, "x", state) for state in states] + [stored(backend, "y")])
    assert (state_of(backend, "x"), state_of(backend, "y")) == ("SUCCESS", "SUCCESS")


def test_what_celery_stored_is_respected(backend: RedisBackend, server: Any) -> None:
    server.call("SET", "celery-task-meta-x", '{"status": "SUCCESS", "result": 3, "traceback": null, "children": []}')
    backend.store([stored(backend, "x", "FAILURE")])
    assert backend.decode(backend.fetch(["x"])["x"])["result"] == 3


def test_batches_of_thousands_are_stored_fetched_and_forgotten(backend: RedisBackend) -> None:
    ids = [f"t{n}" for n in range(2500)]
    backend.store([stored(backend, task_id, value=task_id) for task_id in ids])
    assert {task_id: backend.decode(data)["result"] for task_id, data in backend.fetch(ids).items()} == dict(
        zip(ids, ids, strict=True)
    )
    backend.forget(ids)
    assert backend.fetch(ids) == {}
    assert (backend.fetch([]), backend.cleanup()) == ({}, 0)


# -- waiting ------------------------------------------------------------------------------------------------


def test_a_result_that_is_there_is_told_at_once(backend: RedisBackend) -> None:
    backend.store([stored(backend, "x")])
    watch = backend.watch(["x"])
    begun = time.monotonic()
    assert [task_id for task_id, _ in watch.wait(60)] == ["x"]
    assert time.monotonic() - begun < 30
    watch.close()


def test_a_watching_connection_is_used_again_and_brings_no_old_news(backend: RedisBackend) -> None:
    watch = backend.watch(["old"])
    assert watch.wait(0.1) == []
    watch.close()
    backend.store([stored(backend, "old")])
    (wire,) = backend._idle_watching
    watch = backend.watch(["new"])
    assert watch._wire is wire
    backend.store([stored(backend, "old2"), stored(backend, "new")])
    assert [task_id for task_id, _ in watch.wait(20)] == ["new"]
    watch.close()


def test_what_a_watch_leaves_subscribed_the_next_one_on_its_connection_ends(backend: RedisBackend, server: Any) -> None:
    def heard_by(*names: str) -> list[int]:
        return [int(server.call("PUBSUB", "NUMSUB", f"celery-task-meta-{name}")[1]) for name in names]

    for name in ("a", "b"):
        backend.store([stored(backend, name)])
        watch = backend.watch([name])
        assert watch.wait(20)
        watch.close()
    assert heard_by("a", "b") == [0, 1]
    many = [f"many-{number}" for number in range(100)]
    watch = backend.watch(["b", *many])
    assert watch.wait(20)
    watch.close()
    assert backend.fetch(["b"])
    assert heard_by("b", *many[:3]) == [0, 0, 0, 0]


def test_a_watch_whose_connection_is_cut_goes_on(backend: RedisBackend, server: Any) -> None:
    watch = backend.watch(["x", "y"])
    assert watch.wait(0.05) == []
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    backend.store([stored(backend, "x")])
    assert [task_id for task_id, _ in watch.wait(20)] == ["x"]
    threading.Timer(0.1, backend.store, [[stored(backend, "y")]]).start()
    found: dict[str, bytes] = {}
    while "y" not in found:
        news = watch.wait(20)
        assert news
        found.update(news)
    watch.close()


def test_more_results_than_a_server_keeps_for_a_subscriber_are_read_all_the_same(
    make: Make, private_service: Any
) -> None:
    limit = ("--client-output-buffer-limit", "pubsub 100000 0 0")
    backend = make(private_service(RedisService(options=limit)).url)
    ids = [f"t{n}" for n in range(30)]
    backend.store([stored(backend, task_id, value="x" * 20_000) for task_id in ids[1:]])
    watch = backend.watch(ids)
    try:
        assert sorted(task_id for task_id, _ in watch.wait(60)) == sorted(ids[1:])
        watch.discard(ids[1:])
        backend.store([stored(backend, "t0", value="y" * 200_000)])  # news that are too much, too
        assert [task_id for task_id, _ in watch.wait(60)] == ["t0"]
    finally:
        watch.close()


def test_what_is_discarded_is_not_heard_of(backend: RedisBackend) -> None:
    watch = backend.watch(["x", "y"])
    watch.discard(["x"])
    backend.store([stored(backend, "x"), stored(backend, "y")])
    assert [task_id for task_id, _ in watch.wait(20)] == ["y"]
    watch.discard(["y"])
    watch.add(["x"])
    assert [task_id for task_id, _ in watch.wait(20)] == ["x"]
    watch.close()
    watch.close()


# -- faults -------------------------------------------------------------------------------------------------


def test_a_cut_connection_is_replaced_unseen(backend: RedisBackend, server: Any) -> None:
    backend.store([stored(backend, "x")])
    wire = backend._idle[0]
    server.call("CLIENT", "KILL", "ID", wire.client_id)
    backend.store([stored(backend, "y")])
    assert set(backend.fetch(["x", "y"])) == {"x", "y"}


def test_a_server_that_forgot_the_script_is_told_again(backend: RedisBackend, server: Any) -> None:
    backend.store([stored(backend, "x")])
    server.call("SCRIPT", "FLUSH")
    backend.store([stored(backend, "y")])
    assert state_of(backend, "y") == "SUCCESS"


def test_a_restart_is_survived_and_an_outage_is_said(private_service: Any, make: Make) -> None:
    redis = private_service(RedisService())
    backend = make(redis.url)
    backend.store([stored(backend, "x")])
    watch = backend.watch(["x"])
    watch.close()
    redis.restart()
    backend.store([stored(backend, "y")])
    assert backend.watch(["y"]).wait(20)
    redis.kill()
    with pytest.raises((BackendLost, BackendUnreachable)):
        backend.store([stored(backend, "z")])
    with pytest.raises(BackendUnreachable, match="Is the server running"):
        backend.ping(1.0)


def test_a_silent_server_is_given_up_in_time(private_service: Any, make: Make) -> None:
    redis = private_service(RedisService())
    backend = make(redis.url, result_backend_transport_options={"socket_timeout": 0.3, "socket_connect_timeout": 0.3})
    patient = make(redis.url)
    patient.store([stored(patient, "x")])
    redis.freeze()
    try:
        with pytest.raises(BackendError):  # one without these options would wait, until the test's own end
            backend.fetch(["x"])
    finally:
        redis.thaw()


def test_a_full_server_refuses_and_says_so(private_service: Any, make: Make) -> None:
    redis = private_service(RedisService())
    backend = make(redis.url)
    admin = connect(parse_url(redis.url)[0])
    admin.call("CONFIG", "SET", "maxmemory", "1mb")
    with pytest.raises(BackendLost, match="OOM"):
        backend.store([stored(backend, "x")])
    admin.call("CONFIG", "SET", "maxmemory", "0")
    backend.store([stored(backend, "x")])
    admin.close()


def test_R11_of_an_id_with_half_a_character_in_it_nothing_is_known_and_that_is_no_error(backend: RedisBackend) -> None:
    odd = "half \ud800"
    assert backend.fetch([odd]) == {}
    backend.forget([odd])
    backend.delete_group(odd)
    assert backend.load_group(odd) is None
    watch = backend.watch([odd])
    assert watch.wait(0.0) == []
    watch.discard([odd])
    watch.close()
