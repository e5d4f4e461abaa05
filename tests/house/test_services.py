"""The private servers that other tests stand on: they come, break on demand, come back, and go."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from celeriac.testing import services
from celeriac.testing.services import (
    MariaDBService,
    MemcachedService,
    PostgresService,
    RabbitMQService,
    RedisService,
    Service,
    ServiceFailed,
    ServiceMissing,
    ask,
)

StartService = Callable[[Service], Service]


@pytest.mark.parametrize("make", [RedisService, MemcachedService, PostgresService, MariaDBService])
def test_a_service_survives_its_own_crash(make: Callable[[], Service], private_service: StartService) -> None:
    service = private_service(make())
    url = service.url
    service.kill()
    assert not service.is_running
    service.restart()
    assert service.is_ready()
    assert service.url == url


def test_a_closed_service_leaves_nothing(private_service: StartService) -> None:
    service = private_service(RedisService())
    folder, pid = service.folder, service.pid
    assert folder.is_dir()
    assert pid is not None
    service.close()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_durable_redis_remembers_after_a_crash(private_service: StartService) -> None:
    redis = private_service(RedisService(durable=True))
    ask(redis.port, b"SET key value\r\n")
    redis.kill()
    redis.restart()
    assert ask(redis.port, b"GET key\r\n", enough=11) == b"$5\r\nvalue\r\n"


def test_a_frozen_redis_answers_nothing_until_it_thaws(private_service: StartService) -> None:
    redis = private_service(RedisService())
    redis.freeze()
    assert ask(redis.port, b"PING\r\n") == b""
    redis.thaw()
    assert ask(redis.port, b"PING\r\n") == b"+PONG\r\n"


def test_all_threads_of_a_frozen_server_stand_still(private_service: StartService) -> None:
    server = private_service(MemcachedService())
    for _ in range(50):
        server.freeze()
        tasks = Path(f"/proc/{server.pid}/task").iterdir()
        assert {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks} == {"T"}
        server.thaw()


def test_a_frozen_service_can_be_stopped(private_service: StartService) -> None:
    redis = private_service(RedisService())
    redis.freeze()
    redis.stop()
    assert not redis.is_running


def test_every_test_gets_an_empty_redis_database(redis_service: RedisService) -> None:
    first, second = redis_service.fresh_url(), redis_service.fresh_url()
    assert first != second
    ask(redis_service.port, f"SELECT {second.rpartition('/')[2]}\r\nSET key value\r\n".encode(), enough=10)
    while redis_service.fresh_url() != second:
        pass  # all around, until the number comes again
    answer = ask(redis_service.port, f"SELECT {second.rpartition('/')[2]}\r\nDBSIZE\r\n".encode(), enough=9)
    assert answer == b"+OK\r\n:0\r\n"


def test_a_taken_port_is_given_up_for_another(private_service: StartService, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        offers = iter([[taken.getsockname()[1]], services.free_ports(1)])
        monkeypatch.setattr(services, "free_ports", lambda count: next(offers))
        assert private_service(RedisService()).is_running


def test_a_server_that_will_not_start_says_why(private_service: StartService) -> None:
    with pytest.raises(ServiceFailed, match="no-such-option"):
        RedisService(options=["--no-such-option", "1"]).start()


def test_a_missing_program_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "SBIN", ())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ServiceMissing, match="apt-get install redis-server"):
        RedisService().start()


def test_a_server_ends_with_the_process_that_started_it(private_service: StartService, tmp_path: Path) -> None:
    private_service(RedisService()).close()  # only to be skipped where there is no Redis
    if not services.tie_to_parent():
        pytest.skip("setpriv (util-linux) is not installed")
    program = (
        "import time; from celeriac.testing.services import RedisService; "
        "redis = RedisService(); redis.start(); print(redis.port, redis.folder, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        port, folder = starter.stdout.readline().split()
        starter.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while ask(int(port), b"PING\r\n"):
        assert time.monotonic() < deadline, "the server outlives its starter"
        time.sleep(0.05)
    (Path(folder) / "server.log").unlink()
    Path(folder).rmdir()


def test_a_virtual_host_is_made_and_removed(rabbitmq_service: RabbitMQService) -> None:
    url = rabbitmq_service.add_vhost("house")
    assert url.endswith("/house")
    assert "house" in {vhost["name"] for vhost in rabbitmq_service.api("GET", "vhosts")}
    rabbitmq_service.delete_vhost("house")
    with pytest.raises(ServiceFailed, match="404"):
        rabbitmq_service.api("GET", "vhosts/house")


@pytest.mark.timeout(240)
@pytest.mark.xdist_group("rabbitmq")
def test_a_rabbitmq_survives_its_own_crash(private_service: StartService) -> None:
    rabbitmq = private_service(RabbitMQService())
    assert isinstance(rabbitmq, RabbitMQService)
    rabbitmq.add_vhost("kept")
    rabbitmq.kill()
    rabbitmq.restart()
    assert "kept" in {vhost["name"] for vhost in rabbitmq.api("GET", "vhosts")}
