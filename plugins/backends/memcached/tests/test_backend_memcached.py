"""What the memcached backend promises beyond the contract: Celery's keys, several servers, sizes, faults, errors."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from pymemcache.client.base import Client
from pymemcache.client.hash import HashClient

from celeriac.exceptions import BackendLost, BackendStoreError, BackendUnreachable, SettingError, Unsupported
from celeriac.spec import Chord, ChordPart, StoredResult
from celeriac.testing.kit import KitHost, eventually
from celeriac.testing.services import MemcachedService
from celeriac_backend_memcached.backend import MemcachedBackend

Make = Callable[..., MemcachedBackend]


@pytest.fixture
def make(memcached_url: str) -> Iterator[Make]:
    made: list[MemcachedBackend] = []

    def one(url: str = f"cache+{memcached_url}/", **settings: Any) -> MemcachedBackend:
        made.append(MemcachedBackend(url, settings, KitHost()))
        return made[-1]

    yield one
    for backend in made:
        backend.close()


def result(backend: MemcachedBackend, task_id: str, state: str = "SUCCESS", value: Any = 5) -> StoredResult:
    document = {
        "status": state, "result": value, "traceback": None, "children": [], "date_done": None, "task_id": task_id,
    }  # fmt: skip
    return StoredResult(task_id, state, backend.encode(document, KitHost().serializer("json")))


def fetched(backend: MemcachedBackend, task_id: str) -> dict[str, Any]:
    return backend.decode(backend.fetch([task_id])[task_id])


def test_a_result_is_celerys_document_under_celerys_key(make: Make, memcached_service: MemcachedService) -> None:
    backend = make()
    backend.store([result(backend, "form")])
    backend.save_group("form", [["form", None], []])
    client = Client(("127.0.0.1", memcached_service.port))
    assert json.loads(client.get("celery-task-meta-form"))["result"] == 5
    assert json.loads(client.get("celery-taskset-meta-form")) == {"result": [["form", None], []]}
    client.close()


def test_more_threads_than_connections_take_turns(make: Make) -> None:
    backend = make(cache_backend_options={"max_pool_size": 2, "timeout": 30})
    backend.store([result(backend, "turns", value="x" * 200_000)])
    start, found = threading.Barrier(8), []

    def fetch() -> None:
        start.wait()
        found.extend(len(backend.fetch(["turns"])) for _ in range(10))

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 80


@pytest.mark.parametrize(
    "scheme", ["memcached", "cache+memcached", "cache+pymemcache", "cache+pylibmc", "cache+memcache"]
)
def test_celerys_words_for_memcached_are_taken(make: Make, memcached_service: MemcachedService, scheme: str) -> None:
    assert "Memcached 1." in make(f"{scheme}://127.0.0.1:{memcached_service.port}/").ping(1)


@pytest.mark.parametrize("prefix", ["", "cache+"])
def test_the_servers_may_be_a_setting_of_their_own(make: Make, memcached_url: str, prefix: str) -> None:
    backend = make("cache", cache_backend=f"{prefix}{memcached_url}")
    assert "shared" in backend.abilities
    assert backend.ping(1)
    assert "shared" not in make("cache", cache_backend="memory").abilities


def test_every_key_has_the_server_where_celery_looks_for_it(private_service: Any, make: Make) -> None:
    servers = [private_service(MemcachedService()) for _ in range(3)]
    backend = make("cache+memcached://" + ";".join(f"127.0.0.1:{server.port}" for server in servers) + "/")
    ids = [f"task-{n}" for n in range(60)]
    backend.store([result(backend, task_id) for task_id in ids])
    assert set(backend.fetch(ids)) == set(ids)
    theirs = HashClient([("127.0.0.1", server.port) for server in servers])
    assert all(theirs.get(f"celery-task-meta-{task_id}") for task_id in ids)
    theirs.close()
    servers[0].kill()
    with pytest.raises(BackendLost):
        backend.fetch(ids)
    with pytest.raises(BackendUnreachable, match="Do all the servers run"):
        backend.ping(1)
    servers[0].start()
    backend.store([result(backend, task_id) for task_id in ids])
    assert set(backend.fetch(ids)) == set(ids)


def test_who_was_quicker_is_seen(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, other = make(), make()
    backend.store([result(backend, "race", "STARTED")])
    gets = backend._cache.gets

    def slow(key: str) -> Any:
        found = gets(key)
        monkeypatch.undo()
        other.store([result(other, "race", "SUCCESS", 1)])
        return found

    monkeypatch.setattr(backend._cache, "gets", slow)
    backend.store([result(backend, "race", "FAILURE", 2)])
    assert fetched(backend, "race")["result"] == 1
    monkeypatch.setattr(backend._cache, "gets", lambda key: (result(other, "race", "STARTED").data, b"0"))
    with pytest.raises(BackendLost, match="changed by others"):
        backend.store([result(backend, "race", "FAILURE", 2)])


def test_a_result_too_big_for_the_server_fails_and_says_so(private_service: Any, make: Make) -> None:
    server = private_service(MemcachedService())
    backend = make(f"memcached://127.0.0.1:{server.port}")
    backend.store([result(backend, "big", value="x" * 2_000_000), result(backend, "small")])
    assert fetched(backend, "small")["result"] == 5
    document = fetched(backend, "big")
    assert document["status"] == "FAILURE"
    assert "2000" in document["result"]["exc_message"][0]
    assert "memcached -I" in document["result"]["exc_message"][0]


def test_a_part_too_big_for_the_server_has_failed_and_a_body_is_done_without(private_service: Any, make: Make) -> None:
    server = private_service(MemcachedService())
    backend = make(f"memcached://127.0.0.1:{server.port}")
    backend.open_chords([Chord("g", 2, b"x" * 2_000_000, 60.0)])
    assert backend.join([ChordPart("g", "a", 0, b'[1, "a", "SUCCESS", 1]')]) == []
    (claim,) = backend.join([ChordPart("g", "b", 1, b'[1, "b", "SUCCESS", "' + b"x" * 2_000_000 + b'"]')])
    assert claim.parts[0] == (0, b'[1, "a", "SUCCESS", 1]')
    _, task_id, state, described = json.loads(claim.parts[1][1])
    assert (task_id, state, described["exc_type"]) == ("b", "FAILURE", "BackendStoreError")
    assert "memcached -I" in described["exc_message"][0] or "too large" in described["exc_message"][0]
    assert claim.body == b""
    with pytest.raises(BackendStoreError, match="500001 parts"):
        backend.open_chords([Chord("huge", 500_001, b"", 60.0)])


def test_of_a_chord_that_has_ended_little_is_left(private_service: Any, make: Make) -> None:
    server = private_service(MemcachedService())
    backend = make(f"memcached://127.0.0.1:{server.port}")
    client = Client(("127.0.0.1", server.port))
    parts = [ChordPart("g", f"t{n}", n, b"data") for n in range(50)]
    backend.open_chords([Chord("g", 50, b"body", 60.0)])
    (claim,) = backend.join(parts)
    items = int(client.stats()[b"curr_items"])
    backend.close_chords([claim])
    assert backend.join(parts) == []
    deadline = time.monotonic() + 60
    while (left := int(client.stats()[b"curr_items"])) > items - 50 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left <= items - 50
    assert [text for text in client.get_many([f"celeriac-chords-{n:x}" for n in range(16)]).values() if text] == []
    client.close()


def test_a_chord_s_counter_that_the_server_has_dropped_delays_its_end_and_does_not_hide_it(make: Make) -> None:
    backend = make()
    group = f"g-{time.monotonic_ns()}"
    backend.open_chords([Chord(group, 2, b"body", 0.5)])
    assert backend.join([ChordPart(group, "a", 0, b"a")]) == []
    backend._cache.delete(f"celeriac-chord-count-{group}")
    assert backend.join([ChordPart(group, "b", 1, b"b")]) == []
    deadline = time.monotonic() + 30
    while not (claims := [one for one in backend.overdue_chords(1000) if one.group == group]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert claims[0].parts == [(0, b"a"), (1, b"b")]


@pytest.mark.parametrize(
    ("expires", "least", "most"),
    [(60, 60, 60), (timedelta(minutes=2), 120, 120), (0.2, 1, 1), (None, 0, 0), (0, 0, 0), (40 * 86400, 2**30, 2**33)],
)
def test_expiry_is_said_as_the_protocol_has_it(make: Make, expires: Any, least: int, most: int) -> None:
    expire = make(result_expires=expires)._expire()
    assert least <= expire <= most
    if most == 2**33:
        assert abs(expire - time.time() - 40 * 86400) < 60


@pytest.mark.parametrize(
    ("url", "settings", "words"),
    [
        ("cache", {}, "names no server"),
        ("cache+memcached://", {}, "names no server"),
        ("cache+carrier-pigeon://x", {}, "carrier-pigeon"),
        ("cache+memcached://host:port", {}, "host:port"),
        ("cache+memory://", {"result_expires": "soon"}, "result_expires is 'soon'"),
        ("cache+memcached://host", {"cache_backend_options": {"no_such_word": 1}}, "no_such_word"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make: Make, url: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        make(url, **settings)


def test_what_the_backend_cannot_is_said(make: Make) -> None:
    backend = make()
    for verb in (lambda: backend.watch(["a"]), lambda: backend.commands([])):
        with pytest.raises(Unsupported):
            verb()


def test_a_silent_server_is_given_up_in_time(private_service: Any, make: Make) -> None:
    server = private_service(MemcachedService())
    url = f"memcached://127.0.0.1:{server.port}"
    backend, patient = make(url, cache_backend_options={"timeout": 0.3}), make(url)
    patient.store([result(patient, "a")])
    server.freeze()
    try:
        with pytest.raises(BackendLost):
            backend.fetch(["a"])
    finally:
        server.thaw()

    def is_there() -> bool:
        with suppress(BackendLost):  # a server on a busy machine may take longer than that
            return set(backend.fetch(["a"])) == {"a"}
        return False

    eventually(is_there, 60)


def test_backends_of_one_memory_url_share_their_results(make: Make) -> None:
    one, other = make("cache+memory://"), make("cache+memory://")
    threads = [threading.Thread(target=one.store, args=([result(one, f"t{n}")],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(other.fetch([f"t{n}" for n in range(8)])) == 8
    assert make("cache+memory://other").fetch(["t1"]) == {}
    assert "memory of process" in one.ping(1)
