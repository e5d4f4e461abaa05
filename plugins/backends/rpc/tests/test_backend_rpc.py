"""The rpc backend on every transport: what the contract asks of results, as far as replies can keep it."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu.compression
import pytest

from celeriac import states
from celeriac.exceptions import BackendLost, ContentDisallowed, TransportLost
from celeriac.spec import Host, Payload, ResultBackend, Route, StoredResult, Transport, reply_queue_spec
from celeriac.testing.backend_suite import BackendConformance
from celeriac.testing.faults import FaultProxy
from celeriac.testing.kit import Bench, KitHost, eventually, make_transport
from celeriac_backend_rpc import celeriac_make_backend
from celeriac_backend_rpc.backend import ABILITIES, RpcBackend

SETTINGS = {"result_serializer": "json"}


class RpcConformance(BackendConformance):
    """The suite of backends, but that every result has a reader, and only one."""

    plugin = "celeriac_backend_rpc"
    abilities = ABILITIES
    compresses = True
    broker: str

    @pytest.fixture
    def url(self) -> str:
        return "rpc://"

    @pytest.fixture
    def broker_url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def transport(self, broker_url: str) -> Iterator[Transport]:
        transport = make_transport(self.broker, broker_url)
        yield transport
        transport.delete("kit-replies")
        transport.close()

    @pytest.fixture
    def host(self, transport: Transport) -> Host:
        return KitHost(transport)

    @pytest.fixture
    def backend(self, url: str, host: Host) -> Iterator[ResultBackend]:
        backend = self.make(url, host)
        backend.expect(["anything"])
        yield backend
        backend.close()

    def result(self, backend: ResultBackend, task_id: str, state: str, value: Any = None) -> StoredResult:
        plain = super().result(backend, task_id, state, value)
        return StoredResult(plain.task_id, plain.state, plain.data, "kit-replies")

    def arrive(self, backend: ResultBackend) -> None:
        """Replies come in the order in which they were sent, so once a last one is here, all are."""
        last = str(uuid.uuid4())
        self.put(backend, last, (states.SUCCESS, None))
        deadline = time.monotonic() + 60.0
        while not backend.fetch([last]):
            assert time.monotonic() < deadline, "a reply that was sent did not come"
            time.sleep(0.01)

    # A reply goes to one reader, is not stored, and does not expire.
    test_R2_a_stored_result_is_there_for_another_backend = None  # type: ignore[assignment]
    test_R7_a_result_expires_and_cleaning_up_twice_is_safe = None  # type: ignore[assignment]
    test_R7_cleaning_up_removes_what_is_older_than_the_setting_says_and_only_that = None  # type: ignore[assignment]
    test_B28_a_forked_child_speaks_for_itself = None  # type: ignore[assignment]
    test_a_backend_may_be_closed_twice_and_used_again = None  # type: ignore[assignment]

    def test_it_may_be_closed_twice_and_used_again(self, backend: ResultBackend) -> None:
        backend.close()
        backend.close()
        backend.expect(["t"])
        self.put(backend, "t", (states.SUCCESS, 1))
        assert self.got(backend, "t") == (states.SUCCESS, 1)

    def test_a_result_can_be_read_again_until_it_is_forgotten(self, backend: ResultBackend) -> None:
        task_id = str(uuid.uuid4())
        self.put(backend, task_id, (states.STARTED, None), (states.SUCCESS, 7))
        assert self.got(backend, task_id) == (states.SUCCESS, 7)
        assert self.got(backend, task_id) == (states.SUCCESS, 7)
        backend.forget([task_id])
        assert self.got(backend, task_id) is None

    def test_a_reply_to_nobody_is_dropped(self, backend: ResultBackend) -> None:
        data = self.result(backend, "t", states.SUCCESS, 1).data
        backend.store([StoredResult("t", states.SUCCESS, data)])
        backend.store([StoredResult("t", states.SUCCESS, data, "x" * 256)])
        backend.store([StoredResult("t", states.SUCCESS, data, f"gone-{uuid.uuid4()}")])

    def test_many_threads_wait_for_one_answer_each(self, url: str, host: Host, backend: ResultBackend) -> None:
        ids = [str(uuid.uuid4()) for _ in range(8)]
        told: dict[str, Any] = {}

        def wait(task_id: str) -> None:
            watch = backend.watch([task_id])
            deadline = time.monotonic() + 60
            while task_id not in told and time.monotonic() < deadline:
                for name, data in watch.wait(1.0):
                    told[name] = backend.decode(data)["result"]
            watch.close()

        threads = [threading.Thread(target=wait, args=(task_id,)) for task_id in ids]
        for thread in threads:
            thread.start()
        worker = self.make(url, host)
        for number, task_id in enumerate(ids):
            time.sleep(0.01)
            self.put(worker, task_id, (states.SUCCESS, number))
        for thread in threads:
            thread.join(90)
        worker.close()
        assert told == {task_id: number for number, task_id in enumerate(ids)}

    def test_what_is_no_reply_is_dropped_and_the_next_one_read(
        self, transport: Transport, backend: ResultBackend
    ) -> None:
        for body in (b"", b"\xff\x00", b"[]", b'{"status": 5}'):
            transport.send([Payload(body, "application/json", "utf-8", {}, {}, Route("kit-replies"))])
        headers = {"compression": "application/x-brotli"}  # whose library has an error of its own for this
        transport.send([Payload(b"abc", "application/json", "utf-8", headers, {}, Route("kit-replies"))])
        self.put(backend, "t", (states.SUCCESS, 1))
        assert self.got(backend, "t") == (states.SUCCESS, 1)

    def test_a_notice_that_a_worker_keeps_results_elsewhere_is_a_failure(
        self, transport: Transport, backend: ResultBackend
    ) -> None:
        document = b'{"task_id": "t", "status": "FAILURE", "result": {"exc_type": "BackendMismatch"}}'
        body = b"[[" + document + b"], {}, {}]"
        headers = {"task": "celeriac.notice", "id": "t"}
        properties = {"correlation_id": "t", "delivery_mode": 1}
        transport.send([Payload(body, "application/json", "utf-8", headers, properties, Route("kit-replies"))])
        assert self.got(backend, "t") == (states.FAILURE, {"exc_type": "BackendMismatch"})


class TestRpcOverMemory(RpcConformance):
    broker = "celeriac_broker_memory"

    @pytest.fixture
    def broker_url(self) -> str:
        return f"memory://{uuid.uuid4().hex}"


class TestRpcOverSqlite(RpcConformance):
    broker = "celeriac_broker_sqlite"

    @pytest.fixture
    def broker_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/broker.db"


class TestRpcOverRedis(RpcConformance):
    broker = "celeriac_broker_redis"

    @pytest.fixture
    def broker_url(self, redis_url: str) -> str:
        return redis_url


class TestRpcOverAmqp(RpcConformance):
    broker = "celeriac_broker_amqp"

    @pytest.fixture
    def broker_url(self, amqp_url: str) -> str:
        return amqp_url

    def test_the_message_is_celerys(self, amqp_url: str, transport: Transport, backend: ResultBackend) -> None:
        from kombu import Connection, Queue

        with Connection(amqp_url) as connection:
            arguments = {"x-expires": 86_400_000}
            queue = Queue("kit-replies", auto_delete=True, durable=True, queue_arguments=arguments)
            queue(connection.default_channel).declare()  # as a Celery client declares it, after we have
            self.put(backend, "t", (states.SUCCESS, 5))
            message = queue(connection.default_channel).get()
            assert message is not None
            assert message.headers == {}
            assert message.decode()["result"] == 5
            properties = {"correlation_id": "t", "delivery_mode": 1, "priority": 0}
            assert {key: message.properties[key] for key in properties} == properties
            message.ack()

    def test_a_client_whose_connection_was_cut_goes_on(self, backend: Any) -> None:
        self.put(backend, "one", (states.SUCCESS, 1))
        assert self.got(backend, "one") == (states.SUCCESS, 1)
        backend._mailbox._consumer._link._sock.shutdown(2)
        watch = backend.watch(["two"])
        assert watch.wait(0.8) == []

        def told() -> list[str]:
            self.put(backend, "two", (states.SUCCESS, 2))  # a reply is lost where no queue is there for it yet
            return [name for name, _ in watch.wait(1.0)]

        assert eventually(told, 60.0) == ["two"]
        assert self.got(backend, "one") == (states.SUCCESS, 1)

    def test_a_call_sent_after_the_connection_was_cut_gets_its_answer(self, backend: Any) -> None:
        self.put(backend, "one", (states.SUCCESS, 1))
        assert self.got(backend, "one") == (states.SUCCESS, 1)
        backend._mailbox._consumer._link._sock.shutdown(2)  # and the queue goes with the connection
        time.sleep(0.3)
        backend.expect(["two"])
        self.put(backend, "two", (states.SUCCESS, 2))
        assert self.got(backend, "two") == (states.SUCCESS, 2)

    def test_a_caller_whose_connection_was_cut_reads_again_before_it_calls(self, backend: Any) -> None:
        assert backend.fetch(["none"]) == {}
        backend._mailbox._consumer._link.lost = TransportLost("gone")  # of which the broker knows nothing yet
        backend.expect(["one"])
        assert backend._mailbox._consumer is not None, "else the queue would go with the old reader"

    def test_a_reply_queue_that_is_gone_while_nobody_reads_is_made_anew_by_who_calls(
        self, backend: Any, transport: Transport, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("celeriac_backend_rpc.mailbox.DECLARED_S", 0.0)
        transport.delete("kit-replies")  # as its expiry does, after a day
        backend.expect(["one"])
        self.put(backend, "one", (states.SUCCESS, 1))
        assert self.got(backend, "one") == (states.SUCCESS, 1)

    def test_R8_who_waits_for_a_broker_that_is_silent_waits_no_longer_than_it_said(
        self, amqp_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with FaultProxy(amqp_url) as wire:
            transport = make_transport(self.broker, wire.url, {"broker_connection_timeout": 60.0})
            backend = celeriac_make_backend("rpc://", SETTINGS, KitHost(transport))
            assert backend is not None
            backend.expect(["one"])
            wire.hold()
            started = time.monotonic()
            assert backend.watch(["one"]).wait(0.1) == []
            assert time.monotonic() - started < 30.0, "it is not the connection's patience that counts"
            wire.heal()
            self.put(backend, "one", (states.SUCCESS, 1))
            assert self.got(backend, "one") == (states.SUCCESS, 1)
            backend.close()
            transport.close()


def test_the_hook_knows_its_own_urls() -> None:
    assert celeriac_make_backend("redis://", {}, KitHost()) is None
    assert isinstance(celeriac_make_backend("rpc://", {}, KitHost()), RpcBackend)
    assert isinstance(celeriac_make_backend("rpc", {}, KitHost()), RpcBackend)


def test_a_result_of_a_serializer_that_is_not_accepted_is_refused() -> None:
    backend = RpcBackend("rpc://", SETTINGS, KitHost())
    data = RpcBackend("rpc://", {"result_serializer": "pickle"}, KitHost()).encode({}, KitHost().serializer("pickle"))
    with pytest.raises(ContentDisallowed, match="python-serialize"):
        backend.decode(data)
    with pytest.raises(ValueError, match="not a stored result"):
        backend.decode(b"nothing")


def test_a_broker_that_is_away_makes_store_try_again_later() -> None:
    transport = make_transport("celeriac_broker_amqp", "amqp://127.0.0.1:1//")
    backend = RpcBackend("rpc://", SETTINGS, KitHost(transport))
    data = backend.encode({"status": "SUCCESS"}, KitHost().serializer("json"))
    with pytest.raises(BackendLost, match="refused the connection"):
        backend.store([StoredResult("t", "SUCCESS", data, "somebody")])
    watch = backend.watch(["t"])
    started = time.monotonic()
    assert watch.wait(0.7) == []
    assert time.monotonic() - started < 60.0


def test_the_reply_queue_is_the_same_for_workers_and_clients() -> None:
    spec = reply_queue_spec("q")
    assert (spec.durable, spec.auto_delete, spec.exchange, spec.arguments) == (
        True,
        True,
        "",
        {"x-expires": 86_400_000},
    )


def test_a_compressed_reply_is_a_message_that_celery_s_own_library_opens() -> None:
    transport = make_transport("celeriac_broker_memory", f"memory://{uuid.uuid4()}")
    transport.declare([reply_queue_spec("me")])
    backend = RpcBackend("rpc://", {**SETTINGS, "result_compression": "gzip"}, KitHost(transport))
    document = {"status": states.SUCCESS, "result": "x" * 1000, "task_id": "a"}
    backend.store([StoredResult("a", states.SUCCESS, backend.encode(document, KitHost().serializer("json")), "me")])
    consumer = transport.consumer([reply_queue_spec("me")], owner="me", poller=Bench(), window=1)
    (delivery,) = consumer.receive(1)
    payload = transport.unpack(delivery.raw)
    assert (payload.headers["compression"], len(payload.body) < 200) == ("application/x-gzip", True)
    opened = kombu.compression.decompress(payload.body, payload.headers["compression"])
    assert json.loads(opened)["result"] == "x" * 1000
    consumer.close()
    transport.close()


def test_who_looks_for_an_answer_is_not_held_up_by_those_that_others_get(tmp_path: Path) -> None:
    transport = make_transport("celeriac_broker_sqlite", f"sqlite:///{tmp_path}/replies.db")
    backend = RpcBackend("rpc://", SETTINGS, KitHost(transport))
    backend.expect(["mine"])
    told = json.dumps({"status": states.SUCCESS, "result": 1})
    data = f"application/json\nutf-8\n{told}".encode()
    is_over = threading.Event()

    def answer_others() -> None:
        worker = RpcBackend("rpc://", SETTINGS, KitHost(transport))
        while not is_over.wait(0.002):
            worker.store([StoredResult(str(uuid.uuid4()), states.SUCCESS, data, "kit-replies")])

    worker = threading.Thread(target=answer_others, daemon=True)
    worker.start()
    asker = threading.Thread(target=backend.fetch, args=(["mine"],), daemon=True)
    asker.start()
    try:
        asker.join(60.0)
        assert not asker.is_alive()
    finally:
        is_over.set()
        worker.join()
        asker.join()
        backend.close()
        transport.close()
