"""The wire that fails on demand does what it says, between a real client and a real server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from celeriac.testing.faults import DOWN, UP, FaultProxy


class EchoServer:
    """Says back whatever it hears; remembers it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"echo://user:secret@127.0.0.1:{self._listener.getsockname()[1]}/place?x=1"
        self.heard = b""
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return  # closed: the test is over
            self.open.append(connection)
            threading.Thread(target=self._echo, args=[connection], daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(4096):
                self.heard += data
                connection.sendall(data)
        except OSError:
            pass  # reset, which some tests want
        connection.close()

    def close(self) -> None:
        if self._listener.fileno() >= 0:
            self._listener.shutdown(socket.SHUT_RDWR)  # which ends the thread's wait; closing alone would not
            self._listener.close()


@pytest.fixture
def server() -> Iterator[EchoServer]:
    made = EchoServer()
    yield made
    made.close()


@pytest.fixture
def wire(server: EchoServer) -> Iterator[FaultProxy]:
    with FaultProxy(server.url) as made:
        yield made


def dial(wire: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", wire.port), 10)


def hear(client: socket.socket, count: int, within_s: float = 10.0) -> bytes:
    """At most `count` bytes, fewer if they do not come in time."""
    found, deadline = b"", time.monotonic() + within_s
    while len(found) < count and (left := deadline - time.monotonic()) > 0:
        client.settimeout(left)
        try:
            data = client.recv(count - len(found))
        except TimeoutError:
            break
        if not data:
            break
        found += data
    return found


def test_it_carries_both_ways_and_its_url_is_the_servers_but_for_the_port(wire: FaultProxy, server: EchoServer) -> None:
    assert wire.url == server.url.replace(server.url.split(":")[3].split("/")[0], str(wire.port))
    with dial(wire) as client:
        whole = bytes(range(256)) * 1000
        sender = threading.Thread(target=client.sendall, args=[whole])
        sender.start()
        assert hear(client, len(whole)) == whole
        sender.join()
        assert (wire.accepted, wire.connections, wire.resets) == (1, 1, 0)
        client.shutdown(socket.SHUT_WR)
        assert hear(client, 1) == b""
    assert server.heard == whole


def test_a_url_without_a_port_is_refused() -> None:
    with pytest.raises(ValueError, match="host and port"):
        FaultProxy("redis+socket:///tmp/x")


def test_a_delay_holds_up_each_way_and_ends(wire: FaultProxy) -> None:
    with dial(wire) as client:
        wire.delay(0.2)
        begun = time.monotonic()
        client.sendall(b"a")
        assert hear(client, 1) == b"a"
        assert time.monotonic() - begun >= 0.4
        wire.delay(30)
        wire.heal()
        client.sendall(b"b")
        assert hear(client, 1) == b"b"


def test_a_slow_wire_carries_so_many_bytes_a_second(wire: FaultProxy) -> None:
    with dial(wire) as client:
        wire.throttle(10_000)
        begun = time.monotonic()
        client.sendall(bytes(4000))
        assert len(hear(client, 4000)) == 4000
        assert time.monotonic() - begun >= 0.35


def test_what_is_held_arrives_later_and_whole(wire: FaultProxy, server: EchoServer) -> None:
    with dial(wire) as client:
        wire.hold(DOWN)
        client.sendall(b"over")
        assert hear(client, 1, within_s=0.2) == b""
        wire.heal()
        assert hear(client, 4) == b"over"
        wire.hold(UP)
        client.sendall(b"again")
        assert hear(client, 1, within_s=0.2) == b""
        assert server.heard == b"over"
        wire.heal()
        assert hear(client, 5) == b"again"
    assert wire.resets == 0


def test_what_is_swallowed_is_gone_and_healing_resets_who_lost_it(wire: FaultProxy, server: EchoServer) -> None:
    with dial(wire) as spared, dial(wire) as client:
        for one in (spared, client):
            one.sendall(b"x")
            assert hear(one, 1) == b"x"
        wire.swallow(UP)
        client.sendall(b"lost")
        assert hear(client, 1, within_s=0.2) == b""
        with dial(wire) as late:
            late.sendall(b"nobody there")
            assert hear(late, 1, within_s=0.1) == b""
        assert (server.heard, wire.swallowed_bytes) == (b"xx", len(b"lostnobody there"))
        wire.heal()
        with pytest.raises(ConnectionResetError):
            hear(client, 1)
        spared.sendall(b"y")
        assert hear(spared, 1) == b"y"


def test_a_cut_resets_all_there_are_and_lets_new_ones_in(wire: FaultProxy) -> None:
    with dial(wire) as one, dial(wire) as two:
        for client in (one, two):
            client.sendall(b"x")
            assert hear(client, 1) == b"x"
        assert wire.cut() == 2
        for client in (one, two):
            with pytest.raises(ConnectionResetError):
                hear(client, 1)
    with dial(wire) as three:
        three.sendall(b"z")
        assert hear(three, 1) == b"z"
    assert (wire.accepted, wire.resets) == (3, 2)


def test_a_reset_comes_after_so_many_bytes(wire: FaultProxy) -> None:
    with dial(wire) as client:
        client.sendall(b"before")
        assert hear(client, 6) == b"before"
        wire.reset_after(3)
        client.sendall(b"after")
        found = b""
        with pytest.raises(ConnectionResetError):  # what the reset overtakes may be lost to the reader, as on any wire
            while True:
                found += client.recv(1)
        assert found in (b"", b"a", b"af", b"aft")
    assert wire.resets == 1


def test_a_closed_port_refuses_new_ones_keeps_the_old_and_opens_again(wire: FaultProxy) -> None:
    with dial(wire) as old:
        old.sendall(b"x")
        assert hear(old, 1) == b"x"
        wire.refuse()
        with pytest.raises(ConnectionRefusedError):
            dial(wire)
        old.sendall(b"y")
        assert hear(old, 1) == b"y"
        wire.heal()
        with dial(wire) as new:
            new.sendall(b"z")
            assert hear(new, 1) == b"z"


def test_a_server_that_is_away_looks_like_one(wire: FaultProxy, server: EchoServer) -> None:
    server.close()
    with pytest.raises(ConnectionResetError), dial(wire) as client:  # the reset may be quicker than the dialling
        hear(client, 1)


def test_closing_ends_everything_and_may_be_done_twice(wire: FaultProxy) -> None:
    with dial(wire) as client:
        client.sendall(b"x")
        assert hear(client, 1) == b"x"
        wire.close()
        wire.close()
        assert hear(client, 1) == b""
    with pytest.raises(ConnectionRefusedError):
        dial(wire)


def test_its_port_is_one_that_the_system_gives_nobody(wire: FaultProxy) -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split())
    assert not first <= wire.port <= last, "closed, it could be a client's own before it is opened again"
