"""How a server is found and entered: URLs, passwords, TLS, sockets, and words for what goes wrong."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from celeriac.exceptions import ImproperlyConfigured, TransportUnreachable
from celeriac.testing.services import RedisService
from celeriac_broker_redis import celeriac_make_transport
from celeriac_broker_redis.options import configure
from celeriac_broker_redis.wire import ReplyError, WireLost, WireUnreachable, connect, parse_url


class LockedRedis(RedisService):
    """With a password for everybody, and a user."""

    words = ("--requirepass", "pass word@", "--user", "worker", "on", ">secret", "~*", "&*", "+@all")

    def command(self) -> Any:
        return [*super().command(), *self.words]

    def is_ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


@pytest.mark.parametrize(
    ("url", "store"),
    [
        ("redis://", "127.0.0.1:6379/0/"),
        ("redis://localhost", "127.0.0.1:6379/0/"),
        ("redis://LOCALHOST:6379/0", "127.0.0.1:6379/0/"),
        ("redis://:pw@db.example:7000/3", "db.example:7000/3/"),
        ("redis://u:pw@db.example?virtual_host=4", "db.example:6379/4/u"),
        ("rediss://db.example/5", "db.example:6379/5/"),
        ("redis+socket:///run/redis.sock?virtual_host=6", "unix:/run/redis.sock/6/"),
        ("unix:///run/redis.sock?db=7", "unix:/run/redis.sock/7/"),
        ("redis://[::1]:6380/1", "127.0.0.1:6380/1/"),
    ],
)
def test_a_url_names_a_store(url: str, store: str) -> None:
    assert parse_url(url)[0].store == store


def test_user_and_password_may_hold_any_character() -> None:
    address, _ = parse_url("redis://us%40er:p%2Fa%3Ass@h/0")
    assert (address.username, address.password) == ("us@er", "p/a:ss")
    assert "p/a:ss" not in repr(address)


@pytest.mark.parametrize("url", ["redis://h/first", "redis://h:port/0", "redis://h:99999/0", "redis://h/0/1"])
def test_a_url_that_makes_no_sense_is_refused(url: str) -> None:
    with pytest.raises(ImproperlyConfigured):
        parse_url(url)


def test_another_brokers_url_is_not_ours() -> None:
    assert celeriac_make_transport(url="amqp://h", settings={}) is None


def test_a_password_and_a_user_let_us_in(private_service: Any, desks: Any) -> None:
    redis = private_service(LockedRedis())
    place = redis.url.removeprefix("redis://")
    for who in (":pass%20word%40@", "worker:secret@", "default:pass%20word%40@"):
        desk = desks(f"redis://{who}{place}")
        assert desk.transport.ping(5.0).startswith("Redis ")
        connect(parse_url(f"redis://{who}{place}")[0], protocol=3).close()
    for who in ("", ":wrong@", "worker:wrong@"):
        with pytest.raises(TransportUnreachable, match="password") as caught:
            desks(f"redis://{who}{place}").transport.ping(5.0)
        assert "wrong" not in str(caught.value)


def test_a_database_that_is_not_there_is_said(redis_service: RedisService) -> None:
    with pytest.raises(WireUnreachable) as caught:
        connect(parse_url(f"redis://127.0.0.1:{redis_service.port}/9999")[0])
    assert "database number" in caught.value.hint


def test_a_unix_socket_serves_as_well(private_service: Any, desks: Any) -> None:
    class SocketRedis(RedisService):
        def command(self) -> Any:
            return [*super().command(), "--unixsocket", str(self.folder / "s")]

    redis = private_service(SocketRedis())
    for url in (f"redis+socket://{redis.folder}/s", f"unix://{redis.folder}/s?db=2"):
        desk = desks(url)
        desk.send("a")
        assert desk.take(desk.consumer(), 1) == ["a"]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no program 'openssl' here to make a certificate with")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    for path in (tmp_path, cert, key):
        path.chmod(0o755)
    return cert, key


def test_tls_carries_everything_and_checks_the_certificate(
    private_service: Any, desks: Any, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate

    class TlsRedis(RedisService):
        port_count = 2

        def command(self) -> Any:
            tls = ["--tls-port", str(self.ports[1]), "--tls-cert-file", str(cert), "--tls-key-file", str(key)]
            return [*super().command(), *tls, "--tls-ca-cert-file", str(cert), "--tls-auth-clients", "no"]

    redis = private_service(TlsRedis())
    plain_port, tls_port = redis.ports
    for trust in (f"ssl_ca_certs={cert}", "ssl_cert_reqs=CERT_NONE", "ssl_cert_reqs=none"):
        desk = desks(f"rediss://localhost:{tls_port}/0?{trust}")
        big = desk.payload("big")
        big.body = b"x" * 2_000_000
        desk.transport.send([big])
        consumer = desk.consumer()
        assert desk.take(consumer, 1) == ["big"]
        desk.idle(consumer)
        desk.send("woken")
        assert desk.take(consumer, 1) == ["woken"]
        consumer.close()
    for url, word in (
        (f"rediss://localhost:{tls_port}/0", "certificate"),
        (f"rediss://localhost:{plain_port}/0", "TLS"),
        (f"redis://localhost:{tls_port}/0", "TLS"),
    ):
        with pytest.raises(TransportUnreachable, match=word):
            desks(url).transport.ping(0.5)


def test_broker_use_ssl_is_heeded() -> None:
    conf = configure("redis://h", {"broker_use_ssl": {"ssl_cert_reqs": 0, "keyfile": "k"}})
    assert conf.address.tls == {"ssl_cert_reqs": 0, "ssl_keyfile": "k"}
    assert configure("redis://h", {"broker_use_ssl": True}).address.tls == {}
    assert configure("redis://h", {"broker_use_ssl": False}).address.tls is None


def test_a_server_that_speaks_something_else_is_no_redis() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def greet() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.recv(100)
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            client.close()

    threading.Thread(target=greet, daemon=True).start()
    with pytest.raises(WireUnreachable) as caught:
        connect(parse_url(f"redis://127.0.0.1:{listener.getsockname()[1]}")[0])
    assert "Is it a Redis server" in caught.value.hint
    listener.close()


def test_who_accepts_and_says_nothing_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(WireUnreachable, match="in time"):
        connect(parse_url(f"redis://127.0.0.1:{listener.getsockname()[1]}")[0], timeout_s=0.3)


def test_errors_are_errors_and_a_closed_connection_is_lost(server: Any) -> None:
    with pytest.raises(ReplyError, match="unknown command") as caught:
        server.call("NONSENSE")
    assert caught.value.code == "ERR"
    assert server.call("PING") == b"PONG"
    server.shutdown()
    with pytest.raises(WireLost):
        server.call("PING")


def test_more_than_a_socket_takes_at_once_is_written_whole(server: Any) -> None:
    big = b"x" * 30_000_000
    server.call("SET", "big", big)
    assert server.call("GET", "big") == big
