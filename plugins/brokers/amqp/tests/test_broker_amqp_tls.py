"""TLS: the same over `amqps://`, and no connection to whom the certificate does not fit."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from celeriac.exceptions import TransportUnreachable
from celeriac.spec import Settlement
from celeriac_broker_amqp.transport import AmqpTransport


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of localhost, signed by itself, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost", "-keyout", f"{path}.key", "-out", f"{path}.crt",
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    path.write_text(Path(f"{path}.key").read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def tls_url(amqp_url: str, certificate: Path) -> Iterator[str]:
    """The broker behind a door that speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    parts = urlsplit(amqp_url)
    door = socket.create_server(("127.0.0.1", 0))
    sockets: list[socket.socket] = [door]

    def carry(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other end was closed

    def accept() -> None:
        while True:
            try:
                plain, _ = door.accept()
            except OSError:
                return  # the test is over
            try:
                client = context.wrap_socket(plain, server_side=True)
            except OSError:
                continue  # somebody who does not trust us
            server = socket.create_connection((parts.hostname or "", parts.port or 0))
            sockets.extend((client, server))
            threading.Thread(target=carry, args=(client, server), daemon=True).start()
            threading.Thread(target=carry, args=(server, client), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"amqps://guest:guest@localhost:{door.getsockname()[1]}{parts.path}"
    for one in sockets:
        one.close()


def test_everything_goes_over_tls(
    open_transport: Callable[..., AmqpTransport], listen: Any, tools: Any, tls_url: str, certificate: Path
) -> None:
    trust = {"ca_certs": f"{certificate}.crt", "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "localhost"}
    transport = open_transport(tls_url, broker_use_ssl=trust)
    listener = listen(transport, tools.spec("q"), window=256)
    sent = [tools.payload("q", body=bytes([number % 256]) * (number * 97)) for number in range(1200)]
    transport.send(sent, timeout_s=30)
    got = listener.take(600)
    listener.consumer.settle([Settlement(delivery.tag) for delivery in got], publish=[tools.payload("next")])
    got += (rest := listener.take(600))
    listener.consumer.settle([Settlement(delivery.tag) for delivery in rest])
    listener.consumer.flush(10)
    assert [transport.unpack(delivery.raw).body for delivery in got] == [payload.body for payload in sent]
    assert transport.depth("next") == 1
    listener.consumer.close()
    assert transport.depth("q") == 0


def test_a_certificate_of_somebody_else_is_refused(
    open_transport: Callable[..., AmqpTransport], tls_url: str, certificate: Path
) -> None:
    for trust in (
        {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "localhost"},
        {"ca_certs": f"{certificate}.crt", "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "elsewhere"},
    ):
        with pytest.raises(TransportUnreachable, match="TLS"):
            open_transport(tls_url, broker_use_ssl=trust).ping(5.0)
