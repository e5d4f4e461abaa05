"""TLS: the same over `amqps://`, and no connection to whom the certificate does not fit."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from celeriac.exceptions import TransportUnreachable
from celeriac.spec import Settlement
from celeriac_broker_amqp.link import Link
from celeriac_broker_amqp.methods import HEARTBEAT_FRAME
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
    listener.consumer.flush(30.0)
    assert [transport.unpack(delivery.raw).body for delivery in got] == [payload.body for payload in sent]
    assert transport.depth("next") == 1
    listener.consumer.close()
    assert transport.depth("q") == 0


def test_a_heartbeat_from_another_thread_does_not_disturb_what_is_read(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trust = ssl.create_default_context(cafile=f"{certificate}.crt")
    ours, theirs = socket.socketpair()
    is_over = threading.Event()

    def talk() -> None:
        with context.wrap_socket(theirs, server_side=True) as broker:
            broker.setblocking(False)
            while not is_over.is_set():
                for do in (lambda: broker.send(HEARTBEAT_FRAME), lambda: broker.recv(65536)):
                    with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                        do()

    broker = threading.Thread(target=talk)
    broker.start()
    sock = trust.wrap_socket(ours, server_hostname="localhost")
    link = Link(sock, frame_max=131072, heartbeat_s=1e-9, server={}, where="here", timeout_s=1.0)
    link._check_heartbeat = lambda: None  # type: ignore[method-assign]

    def beat() -> None:
        while not is_over.is_set() and link.lost is None:
            link.beat()

    renewer = threading.Thread(target=beat)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        renewer.start()
        for _ in range(6_000):
            link.pump()
    finally:
        sys.setswitchinterval(interval_s)
        is_over.set()
        renewer.join()
        link.drop()
        broker.join()


def test_a_certificate_of_somebody_else_is_refused(
    open_transport: Callable[..., AmqpTransport], tls_url: str, certificate: Path
) -> None:
    for trust in (
        {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "localhost"},
        {"ca_certs": f"{certificate}.crt", "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "elsewhere"},
    ):
        with pytest.raises(TransportUnreachable, match="TLS"):
            open_transport(tls_url, broker_use_ssl=trust).ping(30.0)
