"""How a server is found and spoken to: URLs, words for what goes wrong, commands and replies."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from celeriac.exceptions import ImproperlyConfigured
from celeriac.testing.services import RedisService
from celeriac_support_redis.standin import address_words
from celeriac_support_redis.wire import Address, ReplyError, Wire, WireLost, WireUnreachable, connect, parse_url


@pytest.fixture
def wire(redis_url: str) -> Iterator[Wire]:
    wire = connect(parse_url(redis_url)[0])
    yield wire
    wire.close()


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'. script: 85f9, on @user_script:9.", "OOM"),
        ("ERR Error running script (call to f_85f9): @user_script:9: @user_script: 9: -OOM command not allowed", "OOM"),
        ("ERR Error running script (call to f_85f9): @user_script:3: @user_script: 3: -READONLY You can't", "READONLY"),
        ("ERR syntax error", "ERR"),
    ],
)
def test_what_a_script_met_is_known_from_redis_6_too(said: str, code: str) -> None:
    assert ReplyError(said).code == code


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
    assert parse_url("unix:///run/redis.sock?password=a%2541")[0].password == "a%41"


@pytest.mark.parametrize(("name", "value"), [("ssl_cert_reqs", "CERT_NONNE"), ("ssl_ca_certs", "/nowhere/ca.pem")])
def test_an_option_of_tls_that_makes_no_sense_is_named(redis_service: RedisService, name: str, value: str) -> None:
    with pytest.raises(WireUnreachable, match=f"{name}='{value}'") as caught:
        connect(parse_url(f"rediss://127.0.0.1:{redis_service.port}/0?{name}={value}&ssl_password=hush")[0])
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://h/first", "redis://h:port/0", "redis://h:99999/0", "redis://h/0/1"])
def test_a_url_that_makes_no_sense_is_refused(url: str) -> None:
    with pytest.raises(ImproperlyConfigured):
        parse_url(url)


def test_a_database_that_is_not_there_is_said(redis_service: RedisService) -> None:
    with pytest.raises(WireUnreachable) as caught:
        connect(parse_url(f"redis://127.0.0.1:{redis_service.port}/9999")[0])
    assert "database number" in caught.value.hint


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


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("DENIED Redis is running in protected mode because …", "requirepass"),
        ("ERR max number of clients reached", "maxclients"),
    ],
)
def test_what_a_server_says_before_it_hangs_up_is_told(word: str, hint: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            client, _ = listener.accept()
            client.sendall(f"-{word}\r\n".encode())
            client.recv(1000)  # or what it has said would be lost with what it has not read
            client.close()

        refusing = threading.Thread(target=refuse, daemon=True)
        refusing.start()
        with pytest.raises(WireUnreachable, match=word) as caught:
            connect(parse_url(f"redis://127.0.0.1:{listener.getsockname()[1]}")[0])
        refusing.join()
    assert hint in caught.value.hint


def test_of_several_nodes_one_that_does_not_answer_costs_the_first_connection_only(redis_service: RedisService) -> None:
    met: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as dead:

        def hang_up() -> None:
            while True:
                try:
                    met.append(dead.accept()[0])
                except OSError:
                    return
                met[-1].close()

        threading.Thread(target=hang_up, daemon=True).start()
        nodes = (("127.0.0.1", dead.getsockname()[1]), ("127.0.0.1", redis_service.port))
        for _ in range(3):
            connect(Address(nodes=nodes, slot_key="{x}")).close()
        assert len(met) == 1
        dead.shutdown(socket.SHUT_RDWR)


def test_an_address_with_paths_can_be_told_to_another_process() -> None:
    address = replace(Address(), tls={"ssl_ca_certs": Path("/etc/ca.pem"), "ssl_cert_reqs": ssl.CERT_REQUIRED})
    assert json.loads(json.dumps(address_words(address)))["tls"] == {"ssl_ca_certs": "/etc/ca.pem", "ssl_cert_reqs": 2}


def test_who_accepts_and_says_nothing_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(WireUnreachable, match="in time"):
        connect(parse_url(f"redis://127.0.0.1:{listener.getsockname()[1]}")[0], timeout_s=0.3)


def test_errors_are_errors_and_a_closed_connection_is_lost(wire: Wire) -> None:
    with pytest.raises(ReplyError, match="unknown command") as caught:
        wire.call("NONSENSE")
    assert caught.value.code == "ERR"
    assert wire.call("PING") == b"PONG"
    wire.shutdown()
    with pytest.raises(WireLost):
        wire.call("PING")


def test_more_than_a_socket_takes_at_once_is_written_whole(wire: Wire) -> None:
    big = b"x" * 30_000_000
    wire.call("SET", "big", big)
    assert wire.call("GET", "big") == big
