"""What the settings of Celery's Redis backend do here."""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType
from typing import Any

import pytest

from celeriac.exceptions import BackendError, CeleriacWarning, ImproperlyConfigured, SettingError
from celeriac.spec.data import Chord, ChordPart
from celeriac.testing.kit import KitHost
from celeriac.testing.services import RedisService, ask
from celeriac_backend_redis.backend import IDLE_WIRES, RedisBackend
from celeriac_support_redis.wire import connect, parse_url

FILLED = {"redis_host": "db.example", "redis_port": 7000, "redis_db": 3, "redis_username": "u", "redis_password": b"pw"}


class Provider:
    """As redis-py has them."""

    def get_credentials(self) -> tuple[str, ...]:
        return ("secret",)


def make(url: str, **settings: Any) -> RedisBackend:
    return RedisBackend(url, settings, KitHost())


@pytest.mark.parametrize(
    ("url", "store", "password"),
    [
        ("redis", "db.example:7000/3/u", "pw"),
        ("redis://", "db.example:7000/3/u", "pw"),
        ("redis:///", "db.example:7000/3/u", "pw"),
        ("redis://:own@other/5", "other:7000/5/u", "own"),
        ("redis://me:own@other:1", "other:1/3/me", "own"),
        ("sentinel://s1;s2/0?master_name=m", "sentinel:s1:26379,s2:26379:m/3/u", "pw"),
        ("unix:///run/redis.sock?db=2", "unix:/run/redis.sock/2/u", "pw"),
    ],
)
def test_what_the_url_leaves_open_comes_from_settings(url: str, store: str, password: str) -> None:
    address = make(url, **FILLED)._address
    assert (address.store, address.password) == (store, password)


def test_connections_bear_the_name_that_was_set(redis_url: str) -> None:
    backend = make(redis_url, redis_client_name="reports")
    backend.fetch(["a"])
    (wire,) = backend._idle
    assert wire.call("CLIENT", "GETNAME") == b"reports"
    backend.close()


def test_as_many_idle_connections_are_kept_as_the_setting_says(redis_url: str) -> None:
    for settings, most in (({}, IDLE_WIRES), ({"redis_max_connections": 2}, 2)):
        backend = make(redis_url, **settings)
        for wire in [backend._acquire(backend._idle, 2) for _ in range(IDLE_WIRES + 1)]:
            backend._release(backend._idle, wire)
        assert len(backend._idle) == most
        backend.close()


def test_a_connection_that_was_idle_for_long_is_asked_for_a_sign_of_life(redis_url: str) -> None:
    admin = connect(parse_url(redis_url)[0])

    def pings() -> bytes:
        stats: bytes = admin.call("INFO", "commandstats")
        return next((line for line in stats.splitlines() if line.startswith(b"cmdstat_ping:")), b"").split(b",")[0]

    hasty, easy = make(redis_url, redis_backend_health_check_interval=0.001), make(redis_url)
    hasty.fetch(["a"])
    easy.fetch(["a"])
    time.sleep(0.01)
    before = pings()
    easy.fetch(["a"])
    assert pings() == before
    hasty.fetch(["a"])
    assert pings() != before
    watch = hasty.watch(["a"])
    watch.wait(0.01)
    watch.close()
    time.sleep(0.01)
    watch = hasty.watch(["a"])  # on a new connection: the old one may have news
    assert watch.wait(0.01) == []
    watch.close()
    for one in (hasty, easy, admin):
        one.close()


@pytest.mark.parametrize("kind", ["object", "path", "option"])
def test_a_credential_provider_is_asked(private_service: Any, kind: str) -> None:
    server = private_service(RedisService())
    ask(server.port, b"CONFIG SET requirepass secret\r\n")
    module: Any = ModuleType("my_credentials")
    module.Provider = Provider
    sys.modules["my_credentials"] = module
    if kind == "option":
        backend = make(server.url, result_backend_transport_options={"credential_provider": Provider()})
    else:
        provider = Provider() if kind == "object" else "my_credentials.Provider"
        backend = make(server.url, redis_backend_credential_provider=provider)
    assert backend.fetch(["a"]) == {}
    backend.close()
    del sys.modules["my_credentials"]


def test_a_credential_provider_that_is_nowhere_is_told() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"'no\.such\.Provider' cannot be had"):
        make("redis://", redis_backend_credential_provider="no.such.Provider")


def test_a_retry_policy_waits_for_a_server_that_is_away(private_service: Any) -> None:
    server = private_service(RedisService(durable=True))
    policy = {"max_retries": 600, "interval_start": 0.01, "interval_step": 0.01, "interval_max": 0.1}
    patient = make(server.url, result_backend_transport_options={"retry_policy": policy})
    hasty = make(server.url)
    for one in (patient, hasty):
        one.save_group("g", [1])
    server.kill()
    with pytest.raises(BackendError):
        hasty.load_group("g")
    limited = make(server.url, result_backend_transport_options={"retry_policy": {**policy, "max_retries": 2}})
    with pytest.raises(BackendError):
        limited.load_group("g")
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.append(patient.load_group("g")))
    reader.start()
    server.restart()
    reader.join(60)
    assert found == [[1]]
    for one in (patient, hasty, limited):
        one.close()


@pytest.mark.parametrize("policy", [5, {"max_retries": "often"}, {"interval_step": None}])
def test_a_retry_policy_that_makes_no_sense_is_refused(policy: Any) -> None:
    with pytest.raises(SettingError, match="retry_policy"):
        make("redis://", result_backend_transport_options={"retry_policy": policy})


def test_an_option_that_is_not_known_is_said_aloud_and_redis_pys_are_not() -> None:
    with pytest.warns(CeleriacWarning, match="does not know global_keyprefx, health_check_interval "):
        make("redis://h?health_check_interval=5", result_backend_transport_options={"global_keyprefx": "app:"})
    with pytest.warns(CeleriacWarning, match="does not know ssl_min_version "):
        make("rediss://h?ssl_min_version=3&ssl_cert_reqs=none")
    make("redis://h?retry_on_timeout=true&result_chord_ordered=yes")


@pytest.mark.parametrize("word", ["socket_timeout=soon", "socket_keepalive_options=60", "result_chord_ordered=perhaps"])
def test_an_option_that_makes_no_sense_is_refused_by_name(word: str) -> None:
    with pytest.raises(SettingError, match=word.partition("=")[0]):
        make(f"redis://h?{word}")


def test_parts_of_a_chord_may_stand_as_they_come_by_a_word_in_the_url(redis_url: str) -> None:
    ordered, unordered = make(redis_url), make(f"{redis_url}?result_chord_ordered=false")
    for first, second, flat in ((ordered, unordered, False), (unordered, ordered, True)):
        group = f"flat-{flat}"
        first.open_chords([Chord(group, 2, b"body", 60.0)])
        assert first.join([ChordPart(group, "t1", 1, b"[1]")]) == []
        (claim,) = second.join([ChordPart(group, "t0", 0, b"[0]")])  # one of both kinds stays as it began
        assert [data for _, data in claim.parts] == ([b"[1]", b"[0]"] if flat else [b"[0]", b"[1]"])
    for backend in (ordered, unordered):
        backend.close()
