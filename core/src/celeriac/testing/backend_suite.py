"""The conformance suite of result backends: clauses R1 to R11 of `docs/plugins/delivery-contract.md`, as tests.

For a plugin's own tests::

    class TestMyBackend(BackendConformance):
        plugin = "celeriac_backend_mine"
        abilities = MyBackend.abilities

        @pytest.fixture
        def url(self):
            return "mine://..."  # a place where nobody else's results are

A test's name begins with its clause. Tests of abilities that the backend does not declare are left out
(`left_out` names them); one test makes sure that the declaration is the backend's own.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest

from celeriac import states
from celeriac.spec import Document, Host, ResultBackend, StoredResult
from celeriac.testing.kit import PATIENCE_S, AbilityAware, Bench, KitHost, eventually, make_by_hook, needs

__all__ = ["BackendConformance"]

#: Ids from the network: none may reach further than its own result.
STRANGE_IDS = [
    "x'; DROP TABLE celeriac_results; --",
    "../../etc/passwd",
    "grün \N{SNOWMAN}",
    "a" * 255,
    "with space and %00 and *?[a]",
]


class BackendConformance(AbilityAware):
    """Subclass it in a plugin's tests.

    Attributes:
        settings: For the plugin's hook.
    """

    settings: Mapping[str, Any] = MappingProxyType({"result_serializer": "json", "result_expires": 3600})

    # -- fixtures -----------------------------------------------------------------------------------------

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError("say where the result store under test is: a fixture `url`")

    @pytest.fixture
    def host(self) -> Host:
        return KitHost()

    @pytest.fixture
    def backend(self, url: str, host: Host) -> Iterator[ResultBackend]:
        backend = self.make(url, host)
        yield backend
        backend.close()

    def make(self, url: str, host: Host, **settings: Any) -> ResultBackend:
        """Another backend on the same store."""
        backend: ResultBackend = make_by_hook(
            self.plugin, "celeriac_make_backend", url=url, settings={**self.settings, **settings}, host=host
        )
        return backend

    def result(self, backend: ResultBackend, task_id: str, state: str, value: Any = None) -> StoredResult:
        """A state of a task, as the worker makes it."""
        return StoredResult(
            task_id, state, backend.encode(_document(task_id, state, value), KitHost().serializer("json"))
        )

    def put(self, backend: ResultBackend, task_id: str, *steps: tuple[str, Any]) -> None:
        """Store these states of a task, one by one."""
        for state, value in steps:
            backend.store([self.result(backend, task_id, state, value)])

    def arrive(self, backend: ResultBackend) -> None:
        """Return once all that was stored can be fetched: at once, unless the backend answers rather than keeps."""

    def got(self, backend: ResultBackend, task_id: str) -> tuple[str, Any] | None:
        """State and result that the store has for a task."""
        self.arrive(backend)
        data = backend.fetch([task_id]).get(task_id)
        if data is None:
            return None
        document = backend.decode(data)
        return document["status"], document["result"]

    # -- storing ------------------------------------------------------------------------------------------

    def test_it_has_the_abilities_it_was_said_to_have(self, backend: ResultBackend) -> None:
        assert backend.abilities == self.abilities
        assert ("joint" in backend.abilities) == (backend.joint is not None)

    @pytest.mark.parametrize(
        "value", [5, None, "grün \N{SNOWMAN}", [1, [2.5, {"a": None}]], {"exc_type": "E", "exc_message": ["x"]}]
    )
    def test_R1_a_document_comes_back_as_it_was(self, backend: ResultBackend, value: Any) -> None:
        document = _document("d-1", states.SUCCESS, value)
        assert backend.decode(backend.encode(document, KitHost().serializer("json"))) == document

    def test_R1_an_unknown_task_has_no_result(self, backend: ResultBackend) -> None:
        assert backend.fetch([_new_id()]) == {}
        assert backend.fetch([]) == {}

    def test_R1_encoding_what_the_serializer_does_not_know_fails(self, backend: ResultBackend) -> None:
        with pytest.raises((TypeError, ValueError)):
            backend.encode(_document("d-1", states.SUCCESS, object()), KitHost().serializer("json"))

    def test_R2_a_stored_result_is_there_for_another_backend(
        self, url: str, host: Host, backend: ResultBackend
    ) -> None:
        task_id = _new_id()
        self.put(backend, task_id, (states.SUCCESS, 42))
        other = self.make(url, host)
        assert self.got(other, task_id) == (states.SUCCESS, 42)
        other.close()

    def test_R2_a_batch_is_stored_and_fetched_as_a_whole(self, backend: ResultBackend) -> None:
        ids = [_new_id() for _ in range(500)]
        backend.store([self.result(backend, task_id, states.SUCCESS, n) for n, task_id in enumerate(ids)])
        self.arrive(backend)
        found = backend.fetch([*ids, _new_id()])
        assert sorted(backend.decode(data)["result"] for data in found.values()) == list(range(500))
        assert set(found) == set(ids)

    def test_R2_a_result_of_three_megabytes_comes_back_whole(self, backend: ResultBackend) -> None:
        task_id, text = _new_id(), "x" * (3 * 1024 * 1024)
        self.put(backend, task_id, (states.SUCCESS, text))
        assert self.got(backend, task_id) == (states.SUCCESS, text)

    @pytest.mark.parametrize(
        ("steps", "kept"),
        [
            ([states.STARTED, states.SUCCESS], 1),
            ([states.RETRY, states.STARTED, states.FAILURE], 2),
            ([states.SUCCESS, states.FAILURE], 0),
            ([states.SUCCESS, states.SUCCESS], 0),
            ([states.SUCCESS, states.REVOKED], 0),
            ([states.SUCCESS, states.STARTED], 0),
            ([states.FAILURE, states.STARTED], 0),
            ([states.FAILURE, states.RETRY], 0),
            ([states.REVOKED, states.RECEIVED], 0),
            ([states.FAILURE, states.SUCCESS], 1),
            ([states.STARTED, "PROGRESS", "PROGRESS"], 2),
            ([states.SUCCESS, "PROGRESS"], 0),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, list) else None,
    )
    def test_R3_a_success_is_final_and_ready_is_not_undone(
        self, backend: ResultBackend, steps: list[str], kept: int
    ) -> None:
        one_by_one, together = _new_id(), _new_id()
        self.put(backend, one_by_one, *[(state, n) for n, state in enumerate(steps)])
        backend.store([self.result(backend, together, state, n) for n, state in enumerate(steps)])
        assert self.got(backend, one_by_one) == (steps[kept], kept)
        assert self.got(backend, together) == (steps[kept], kept)

    def test_R3_holds_when_many_write_at_once(self, url: str, host: Host, backend: ResultBackend) -> None:
        ids = [_new_id() for _ in range(20)]
        together = threading.Barrier(4, timeout=PATIENCE_S)

        def write(state: str, value: int) -> None:
            mine = self.make(url, host)
            for task_id in ids:
                together.wait()
                mine.store([self.result(mine, task_id, state, value)])
            mine.close()

        writers = [(states.STARTED, 1), (states.SUCCESS, 2), (states.RETRY, 3), (states.STARTED, 4)]
        threads = [threading.Thread(target=write, args=writer) for writer in writers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {self.got(backend, task_id) for task_id in ids} == {(states.SUCCESS, 2)}

    @pytest.mark.parametrize("task_id", STRANGE_IDS, ids=lambda text: text[:12])
    def test_R11_a_strange_id_names_its_own_result_only(self, backend: ResultBackend, task_id: str) -> None:
        bystander = _new_id()
        self.put(backend, bystander, (states.SUCCESS, "mine"))
        self.put(backend, task_id, (states.SUCCESS, "strange"))
        assert self.got(backend, task_id) == (states.SUCCESS, "strange")
        backend.forget([task_id])
        assert self.got(backend, task_id) is None
        assert self.got(backend, bystander) == (states.SUCCESS, "mine")

    # -- letting go ---------------------------------------------------------------------------------------

    def test_a_forgotten_result_is_gone_and_may_be_stored_anew(self, backend: ResultBackend) -> None:
        task_id = _new_id()
        self.put(backend, task_id, (states.SUCCESS, 1))
        backend.forget([task_id, _new_id()])
        assert self.got(backend, task_id) is None
        self.put(backend, task_id, (states.STARTED, 2))
        assert self.got(backend, task_id) == (states.STARTED, 2)

    def test_R7_a_result_expires_and_cleaning_up_twice_is_safe(self, url: str, host: Host) -> None:
        backend = self.make(url, host, result_expires=1)
        brief, task_ids = self.make(url, host, result_expires=3600), [_new_id(), _new_id()]
        self.put(backend, task_ids[0], (states.SUCCESS, 1))
        self.put(brief, task_ids[1], (states.SUCCESS, 2))
        assert self.got(backend, task_ids[0]) is not None
        eventually(lambda: self.got(backend, task_ids[0]) is None, 4.0)
        backend.cleanup()
        assert backend.cleanup() == 0
        assert self.got(backend, task_ids[1]) == (states.SUCCESS, 2)
        backend.close()
        brief.close()

    # -- waiting ------------------------------------------------------------------------------------------

    @needs("push")
    def test_R8_a_watch_first_tells_what_is_there_already(self, backend: ResultBackend) -> None:
        task_id, later = _new_id(), _new_id()
        self.put(backend, task_id, (states.SUCCESS, 1))
        self.put(backend, later, (states.SUCCESS, 2))
        watch = backend.watch([task_id])
        assert _told(backend, watch, 1) == {task_id: (states.SUCCESS, 1)}
        watch.add([later])
        assert _told(backend, watch, 1) == {later: (states.SUCCESS, 2)}
        watch.close()
        watch.close()

    @needs("push")
    def test_R8_a_watch_learns_of_a_result_at_once(self, url: str, host: Host, backend: ResultBackend) -> None:
        worker = self.make(url, host)
        delays = []
        for n in range(10):
            task_id = _new_id()
            watch = backend.watch([task_id])
            assert watch.wait(0.02) == []
            stored_at: list[float] = []

            def store(task_id: str = task_id, n: int = n, stored_at: list[float] = stored_at) -> None:
                self.put(worker, task_id, (states.SUCCESS, n))
                stored_at.append(time.monotonic())

            thread = threading.Timer(0.05, store)
            thread.start()
            assert _told(backend, watch, 1) == {task_id: (states.SUCCESS, n)}
            told_at = time.monotonic()
            thread.join()
            delays.append(told_at - stored_at[0])
            watch.close()
        assert sorted(delays)[5] < 0.1, f"half of the news took longer than 100 ms: {delays}"
        worker.close()

    @needs("push")
    def test_R8_a_watch_tells_every_task_of_many(self, url: str, host: Host, backend: ResultBackend) -> None:
        worker = self.make(url, host)
        ids = [_new_id() for _ in range(200)]
        watch = backend.watch(ids)

        def store() -> None:
            for start in range(0, 200, 20):
                worker.store([self.result(worker, ids[n], states.SUCCESS, n) for n in range(start, start + 20)])

        thread = threading.Thread(target=store)
        thread.start()
        told = _told(backend, watch, 200)
        thread.join()
        assert told == {task_id: (states.SUCCESS, n) for n, task_id in enumerate(ids)}
        watch.close()
        worker.close()

    @needs("push")
    def test_R8_a_watch_is_silent_about_others_and_ends_on_time(self, backend: ResultBackend) -> None:
        task_id, other, dropped = _new_id(), _new_id(), _new_id()
        watch = backend.watch([task_id, dropped])
        watch.discard([dropped])
        self.put(backend, other, (states.SUCCESS, 1))
        self.put(backend, dropped, (states.SUCCESS, 1))
        started = time.monotonic()
        assert watch.wait(0.4) == []
        assert 0.3 < time.monotonic() - started < 0.9
        watch.close()

    @needs("push")
    def test_R8_two_who_wait_for_one_task_are_both_told(self, backend: ResultBackend) -> None:
        task_id = _new_id()
        watches = [backend.watch([task_id]), backend.watch([task_id])]
        self.put(backend, task_id, (states.SUCCESS, 1))
        for watch in watches:
            assert _told(backend, watch, 1) == {task_id: (states.SUCCESS, 1)}
            watch.close()

    # -- the rest -----------------------------------------------------------------------------------------

    @needs("shared")
    def test_B28_a_forked_child_speaks_for_itself(self, backend: ResultBackend) -> None:
        task_id = _new_id()
        self.put(backend, _new_id(), (states.SUCCESS, 0))
        pid = os.fork()
        if pid == 0:  # pragma: no cover - runs in the child
            code = 1
            try:
                backend.after_fork()
                self.put(backend, task_id, (states.SUCCESS, "from the child"))
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert self.got(backend, task_id) == (states.SUCCESS, "from the child")

    @needs("joint")
    def test_R12_commands_are_data_for_the_broker_of_the_same_store(self, backend: ResultBackend) -> None:
        assert backend.joint
        assert backend.commands([self.result(backend, _new_id(), states.SUCCESS, 1)]) is not None

    def test_expecting_results_does_no_harm(self, backend: ResultBackend) -> None:
        task_id = _new_id()
        backend.expect([task_id])
        self.put(backend, task_id, (states.SUCCESS, 1))
        assert self.got(backend, task_id) == (states.SUCCESS, 1)

    def test_ping_names_the_store(self, backend: ResultBackend) -> None:
        assert backend.ping(5.0)

    def test_a_backend_may_be_closed_twice_and_used_again(self, backend: ResultBackend) -> None:
        backend.close()
        backend.close()
        task_id = _new_id()
        self.put(backend, task_id, (states.SUCCESS, 1))
        assert self.got(backend, task_id) == (states.SUCCESS, 1)


def _new_id() -> str:
    return str(uuid.uuid4())


def _document(task_id: str, state: str, value: Any) -> Document:
    return {
        "status": state,
        "result": value,
        "traceback": None,
        "children": [],
        "date_done": "2026-01-02T03:04:05+00:00" if state in states.READY_STATES else None,
        "task_id": task_id,
    }


def _told(backend: ResultBackend, watch: Any, count: int) -> dict[str, tuple[str, Any]]:
    """The news of `count` tasks, as far as it comes in time."""
    told: dict[str, tuple[str, Any]] = {}
    deadline = time.monotonic() + Bench.patience_s
    while len(told) < count and time.monotonic() < deadline:
        for task_id, data in watch.wait(1.0):
            document = backend.decode(data)
            told[task_id] = document["status"], document["result"]
    return told
