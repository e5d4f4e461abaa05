"""How a transport gets in: passwords, TLS, sockets, and the errors of those who do not."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from celeriac.exceptions import TransportUnreachable
from celeriac.testing.services import RedisService
from celeriac_broker_redis import celeriac_make_transport
from celeriac_broker_redis.options import configure
from celeriac_support_redis.wire import connect, parse_url


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


class Provider:
    """A credential provider, in redis-py's shape."""

    def get_credentials(self) -> tuple[str, str]:
        return "worker", "secret"


def test_another_brokers_url_is_not_ours() -> None:
    assert celeriac_make_transport(url="amqp://h", settings={}) is None


def test_a_password_and_a_user_let_us_in(private_service: Any, desks: Any) -> None:
    redis = private_service(LockedRedis())
    place = redis.url.removeprefix("redis://")
    for who in (":pass%20word%40@", "worker:secret@", "default:pass%20word%40@"):
        desk = desks(f"redis://{who}{place}")
        assert desk.transport.ping(30.0).startswith("Redis ")
        connect(parse_url(f"redis://{who}{place}")[0], protocol=3).close()
    assert desks(f"redis://{place}", credential_provider=Provider()).transport.ping(30.0).startswith("Redis ")
    for who in ("", ":wrong@", "worker:wrong@"):
        with pytest.raises(TransportUnreachable, match="password") as caught:
            desks(f"redis://{who}{place}").transport.ping(30.0)
        assert "wrong" not in str(caught.value)


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


def tls_redis(certificate: tuple[Path, Path], *, auth_clients: str) -> RedisService:
    """A server with a plain port and one for TLS, where clients show a certificate if `auth_clients` is yes."""
    cert, key = map(str, certificate)

    class TlsRedis(RedisService):
        port_count = 2

        def command(self) -> Any:
            tls = ["--tls-port", str(self.ports[1]), "--tls-cert-file", cert, "--tls-key-file", key]
            return [*super().command(), *tls, "--tls-ca-cert-file", cert, "--tls-auth-clients", auth_clients]

    return TlsRedis()


def test_tls_carries_everything_and_checks_the_certificate(
    private_service: Any, desks: Any, certificate: tuple[Path, Path]
) -> None:
    cert, _ = certificate
    redis = private_service(tls_redis(certificate, auth_clients="no"))
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
    for url, word, patience_s in (
        (f"rediss://localhost:{tls_port}/0", "certificate", 30.0),
        (f"rediss://localhost:{plain_port}/0", "TLS", 0.5),  # which says nothing to what it takes for half a command
        (f"redis://localhost:{tls_port}/0", "TLS", 30.0),
    ):
        with pytest.raises(TransportUnreachable, match=word):
            desks(url).transport.ping(patience_s)


def test_a_server_that_wants_our_certificate_is_shown_it(
    private_service: Any, desks: Any, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    redis = private_service(tls_redis(certificate, auth_clients="yes"))
    url = f"rediss://localhost:{redis.ports[1]}/0?ssl_ca_certs={cert}"
    assert desks(f"{url}&ssl_certfile={cert}&ssl_keyfile={key}").transport.ping(30.0).startswith("Redis ")
    with pytest.raises(TransportUnreachable):
        desks(url).transport.ping(30.0)


def test_broker_use_ssl_is_heeded() -> None:
    conf = configure("redis://h", {"broker_use_ssl": {"ssl_cert_reqs": 0, "keyfile": "k"}})
    assert conf.address.tls == {"ssl_cert_reqs": 0, "ssl_keyfile": "k"}
    assert configure("redis://h", {"broker_use_ssl": True}).address.tls == {}
    assert configure("redis://h", {"broker_use_ssl": False}).address.tls is None
