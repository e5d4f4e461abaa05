"""The conformance suite of result backends: clauses R1 to R13 of `docs/plugins/delivery-contract.md`, as tests.

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

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any

import pytest

from celeriac import states
from celeriac.exceptions import ContentDisallowed
from celeriac.messaging import failures
from celeriac.spec import (
    CLAIM_S,
    Chord,
    ChordClaim,
    ChordPart,
    Diagnoses,
    Document,
    Host,
    ResultBackend,
    StoredResult,
)
from celeriac.testing.kit import PATIENCE_S, AbilityAware, Bench, KitHost, eventually, make_by_hook, needs, needs_no

__all__ = ["BackendConformance"]

#: Ids from the network: none may reach further than its own result.
STRANGE_IDS = [
    "x'; DROP TABLE celeriac_results; --",
    "../../etc/passwd",
    "grün \N{SNOWMAN}",
    "a" * 255,
    "with space and %00 and *?[a]",
    "a\r\nset other 0 0 1\r\nb",
    "nul \0 inside",
    "long " * 1000,
]


class BackendConformance(AbilityAware):
    """Subclass it in a plugin's tests.

    Attributes:
        settings: For the plugin's hook.
        compresses: It obeys `result_compression` (`celeriac.spec.ResultCompression`); None: either is right.
    """

    compresses: bool | None = None
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

    @needs("diagnose")
    def test_a_diagnosis_of_a_working_store_finds_no_error(self, backend: ResultBackend) -> None:
        assert isinstance(backend, Diagnoses)
        found = backend.diagnose(longest_task_s=60.0, timeout_s=10.0)
        assert all(one.about and one.text for one in found)
        assert [one for one in found if one.level == "error"] == []

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

    def test_R1_what_another_serializer_wrote_is_refused(self, backend: ResultBackend) -> None:
        foreign = pytest.importorskip("celeriac_serializer_msgpack")
        serializer = foreign.celeriac_make_serializer(name="msgpack")
        data = backend.encode(_document("d-1", states.SUCCESS, {"a": [1, "x"]}), serializer)
        with pytest.raises((ValueError, ContentDisallowed)):
            backend.decode(data)

    def test_R1_an_exception_comes_back_as_it_was(self, backend: ResultBackend) -> None:
        task_id = _new_id()
        described = failures.describe(KeyError("grün", 5, [None]), KitHost().serializer("json").dumps)
        self.put(backend, task_id, (states.FAILURE, described))
        got = self.got(backend, task_id)
        assert got is not None
        error = failures.rebuild(got[1])
        assert (got[0], type(error), error and error.args) == (states.FAILURE, KeyError, ("grün", 5, [None]))

    @pytest.mark.parametrize("method", ["gzip", "bzip2", "lzma"])
    def test_R1_a_compressed_result_comes_back_to_those_who_do_not_compress(
        self, url: str, host: Host, backend: ResultBackend, method: str
    ) -> None:
        squeezing, task_id, text = self.make(url, host, result_compression=method), _new_id(), "abc" * 1000
        self.put(squeezing, task_id, (states.STARTED, text), (states.SUCCESS, text), (states.STARTED, text))
        assert self.got(backend, task_id) == (states.SUCCESS, text)
        sizes = [len(self.result(one, task_id, states.SUCCESS, text).data) for one in (squeezing, backend)]
        assert self.compresses in (None, sizes[0] < sizes[1] / 2)
        squeezing.close()

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

    @needs("fence")
    def test_R13_a_receiver_that_came_before_changes_nothing_in_what_a_later_one_has_ended(
        self, backend: ResultBackend
    ) -> None:
        def put(task_id: str, state: str, received: float | None, redelivered: bool) -> tuple[str, Any] | None:
            result = self.result(backend, task_id, state, f"{received} {redelivered}")
            result.received, result.redelivered = received, redelivered
            backend.store([result])
            return self.got(backend, task_id)

        task_id, other, third = _new_id(), _new_id(), _new_id()
        assert put(task_id, states.FAILURE, 1000.5, False) == (states.FAILURE, "1000.5 False")
        assert put(task_id, states.FAILURE, 1020.25, True) == (states.FAILURE, "1020.25 True")
        for state in (states.SUCCESS, states.FAILURE, states.REVOKED, states.STARTED):
            assert put(task_id, state, 1000.5, False) == (states.FAILURE, "1020.25 True")
        assert put(task_id, states.FAILURE, 1020.25, True) == (states.FAILURE, "1020.25 True"), "its own again"
        assert put(task_id, states.FAILURE, None, False) == (states.FAILURE, "None False"), "a person may"
        put(task_id, states.FAILURE, 1020.25, True)
        assert put(task_id, states.SUCCESS, 1020.5, False) == (states.SUCCESS, "1020.5 False"), "a later call may"
        # Only a message that was received again has stale receivers; a call of the same id may have a slower clock.
        assert put(other, states.FAILURE, 1020.5, False) == (states.FAILURE, "1020.5 False")
        assert put(other, states.SUCCESS, 1000.5, False) == (states.SUCCESS, "1000.5 False")
        # What is not final keeps nobody out.
        assert put(third, states.STARTED, 1020.5, True) == (states.STARTED, "1020.5 True")
        assert put(third, states.FAILURE, 1000.5, False) == (states.FAILURE, "1000.5 False")

    @needs("fence")
    def test_R13_what_was_forgotten_keeps_nobody_out(self, backend: ResultBackend) -> None:
        task_id = _new_id()
        for received, redelivered in ((1020.5, True), (1000.5, False)):
            result = self.result(backend, task_id, states.FAILURE, received)
            result.received, result.redelivered = received, redelivered
            backend.store([result])
            assert self.got(backend, task_id) == (states.FAILURE, received)
            backend.forget([task_id])

    def test_R3_what_cannot_be_read_does_not_stop_what_comes_after_it(self, backend: ResultBackend) -> None:
        task_id = _new_id()
        with contextlib.suppress(ValueError):
            backend.store([StoredResult(task_id, states.FAILURE, b"\x81\xff no document of ours")])
        self.put(backend, task_id, (states.STARTED, 1), (states.SUCCESS, 2))

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
        if "replies" in self.abilities and len(task_id.encode()) > 255:  # no message can be an answer to that
            assert self.got(backend, bystander) == (states.SUCCESS, "mine")
            return
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

    @needs("expire")
    def test_R7_a_result_expires_and_cleaning_up_twice_is_safe(self, url: str, host: Host) -> None:
        """And a chord does not, while parts of it may come."""
        backend: Any = self.make(url, host, result_expires=2)  # a store that counts whole seconds may take one off
        brief, task_ids = self.make(url, host, result_expires=3600), [_new_id(), _new_id()]
        group = _begin_chord(backend)
        self.put(brief, task_ids[1], (states.SUCCESS, 2))
        stored_at = time.monotonic()
        self.put(backend, task_ids[0], (states.SUCCESS, 1))
        assert self.got(backend, task_ids[0]) is not None or time.monotonic() - stored_at >= 1.0
        eventually(lambda: self.got(backend, task_ids[0]) is None, Bench.patience_s + 2.0)
        backend.cleanup()
        assert backend.cleanup() == 0
        _complete_chord(backend, group)
        assert self.got(backend, task_ids[1]) == (states.SUCCESS, 2)
        backend.close()
        brief.close()

    @needs("persistent")
    @needs_no("expire")
    def test_R7_cleaning_up_removes_what_is_older_than_the_setting_says_and_only_that(
        self, url: str, host: Host
    ) -> None:
        hasty: Any
        patient, hasty = self.make(url, host, result_expires=3600), self.make(url, host, result_expires=1)
        old, unfinished, new = _new_id(), _new_id(), _new_id()
        group = _begin_chord(hasty)
        self.put(hasty, old, (states.SUCCESS, 1))
        self.put(hasty, unfinished, (states.STARTED, 1))
        assert patient.cleanup() == 0
        removed = 0

        def both_are_gone() -> bool:
            nonlocal removed
            removed += hasty.cleanup()
            return self.got(patient, old) is None and self.got(patient, unfinished) is None

        eventually(both_are_gone)
        assert removed >= 2
        _complete_chord(hasty, group)
        self.put(patient, new, (states.SUCCESS, 2))
        assert (patient.cleanup(), self.got(patient, new)) == (0, (states.SUCCESS, 2))
        assert self.make(url, host, result_expires=None).cleanup() == 0
        patient.close()
        hasty.close()

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
        delays: list[float] = []
        while len(delays) < 20 and sum(delay < 0.1 for delay in delays) < 3:  # a busy machine may take its time
            delays += self._delays_of_news(backend, worker)
        assert sum(delay < 0.1 for delay in delays) >= 3, f"nearly all news took longer than 100 ms: {delays}"
        worker.close()

    def _delays_of_news(self, backend: Any, worker: ResultBackend) -> list[float]:
        """How long some results took from being stored to being told, each to a watch of its own."""
        delays = []
        for n in range(5):
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
        return delays

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
        assert 0.3 < time.monotonic() - started < 60
        watch.close()

    @needs("push")
    def test_R8_two_who_wait_for_one_task_are_both_told(self, backend: ResultBackend) -> None:
        task_id = _new_id()
        watches = [backend.watch([task_id]), backend.watch([task_id])]
        self.put(backend, task_id, (states.SUCCESS, 1))
        for watch in watches:
            assert _told(backend, watch, 1) == {task_id: (states.SUCCESS, 1)}
            watch.close()

    # -- chords -------------------------------------------------------------------------------------------
    # The backends here are `ChordBackend`s too, which the type of `backend` does not say.

    @needs("count")
    def test_R9_a_chord_is_complete_with_its_last_part(self, backend: Any) -> None:
        group = _new_id()
        backend.open_chords([Chord(group, 3, b"body", 3600.0)])
        assert backend.join([_part(group, 2), _part(group, 0)]) == []
        (claim,) = backend.join([_part(group, 1)])
        assert (claim.group, claim.size, claim.body) == (group, 3, b"body")
        assert claim.token
        assert [data for _, data in claim.parts] == [_part(group, n).data for n in range(3)]

    @needs("count")
    def test_R9_a_part_that_comes_twice_counts_once(self, backend: Any) -> None:
        group = _new_id()
        backend.open_chords([Chord(group, 3, b"", 3600.0)])
        assert backend.join([_part(group, 0), _part(group, 0)]) == []
        assert backend.join([_part(group, 0), _part(group, 1)]) == []
        assert backend.join([_part(group, 1), _part(group, 1), _part(group, 0)]) == []
        (claim,) = backend.join([_part(group, 2), _part(group, 2)])
        assert len(claim.parts) == 3

    @needs("count")
    def test_R9_parts_of_many_chords_come_in_one_batch(self, backend: Any) -> None:
        groups = [_new_id() for _ in range(20)]
        backend.open_chords([Chord(group, 100, group.encode(), 3600.0) for group in groups])
        batches = [[_part(group, n) for group in groups] for n in range(100)]
        assert backend.join([part for batch in batches[1:] for part in batch]) == []
        claims = {claim.group: claim for claim in backend.join(batches[0])}
        assert set(claims) == set(groups)
        for group, claim in claims.items():
            assert [data for _, data in claim.parts] == [_part(group, n).data for n in range(100)]
            assert claim.body == group.encode()

    @needs("count")
    def test_R9_of_many_who_complete_a_chord_one_has_the_claim(self, url: str, host: Host, backend: Any) -> None:
        groups = [_new_id() for _ in range(10)]
        backend.open_chords([Chord(group, 4, b"", 3600.0) for group in groups])
        together, claims = threading.Barrier(4, timeout=PATIENCE_S), []

        def complete(index: int) -> None:
            mine: Any = self.make(url, host)
            for group in groups:
                together.wait()
                claims.extend(mine.join([_part(group, index), _part(group, (index + 1) % 4)]))
            mine.close()

        threads = [threading.Thread(target=complete, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [claim.group for claim in claims if claim.token]
        assert sorted(winners) == sorted(groups)
        assert all(len(claim.parts) == 4 for claim in claims if claim.token)

    @needs("count")
    def test_R9_a_claim_is_held_until_it_ends_and_then_another_s(self, backend: Any) -> None:
        held, group = _new_id(), _new_id()
        self._complete(backend, held)
        (other,) = backend.join([_part(held, 0)])
        assert other.token == ""
        assert 0 <= other.retry_s <= CLAIM_S
        first = self._complete(backend, group, claim_s=1.0)
        second = eventually(
            lambda: [claim for claim in backend.join([_part(group, 0)]) if claim.token], Bench.patience_s + 1.0
        )[0]
        assert second.token != first.token
        assert len(second.parts) == 2
        backend.close_chords([first])  # it is late: the chord is the other's now
        (third,) = backend.join([_part(group, 1)])
        assert third.token == ""

    @needs("count", "shared")
    def test_R9_who_is_killed_while_joining_loses_no_part_and_fires_nothing_twice(self, backend: Any) -> None:
        for joined_before in (1, 4, 9):
            group = _new_id()
            backend.open_chords([Chord(group, 30, b"", 3600.0)])
            told, tells = os.pipe()
            pid = os.fork()
            if pid == 0:  # pragma: no cover - runs in the child, which is killed in the middle of a step
                try:
                    backend.after_fork()
                    for index in range(29):
                        backend.join([_part(group, index)])
                        os.write(tells, b".")
                    time.sleep(PATIENCE_S)
                finally:
                    os._exit(1)
            os.close(tells)
            for _ in range(joined_before):
                assert os.read(told, 1) == b"."
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(told)
            # What was not acknowledged comes again; so may all the rest.
            claims = [claim for index in range(30) for claim in backend.join([_part(group, index)])]
            assert [len(claim.parts) for claim in claims] == [30]
            assert claims[0].token

    @needs("count")
    def test_R9_a_closed_chord_stays_closed(self, backend: Any) -> None:
        group = _new_id()
        backend.close_chords([self._complete(backend, group)])
        assert backend.join([_part(group, 0), _part(group, 1)]) == []
        backend.open_chords([Chord(group, 2, b"", 3600.0)])
        assert backend.join([_part(group, 0), _part(group, 1)]) == []

    @needs("count")
    def test_R9_a_part_may_come_before_its_chord_is_opened_and_opening_again_loses_none(self, backend: Any) -> None:
        group = _new_id()
        assert backend.join([_part(group, 0)]) == []
        backend.open_chords([Chord(group, 3, b"", 3600.0)])
        assert backend.join([_part(group, 1)]) == []
        backend.open_chords([Chord(group, 3, b"", 3600.0)])
        (claim,) = backend.join([_part(group, 2)])
        assert len(claim.parts) == 3

    @needs("count")
    def test_R9_a_chord_may_grow_and_what_was_added_comes_last(self, backend: Any) -> None:
        group, added = _new_id(), _new_id()
        backend.open_chords([Chord(group, 2, b"", 3600.0)])
        backend.grow_chord(group, added)
        more = ChordPart(group, added, None, b'[1, "x", "SUCCESS", 9]')
        assert backend.join([more, _part(group, 0)]) == []
        (claim,) = backend.join([_part(group, 1)])
        assert [data for _, data in claim.parts] == [_part(group, 0).data, _part(group, 1).data, more.data]

    @needs("count")
    def test_R10_an_overdue_chord_is_claimed_once_with_what_came(self, backend: Any) -> None:
        group, patient = _new_id(), _new_id()
        backend.open_chords([Chord(group, 3, b"body", 0.5), Chord(patient, 1, b"", 3600.0)])
        assert backend.join([_part(group, 1)]) == []

        def overdue() -> list[ChordClaim]:
            return [one for one in backend.overdue_chords(100) if one.group in (group, patient)]

        (claim,) = eventually(overdue, Bench.patience_s + 0.5)
        assert (claim.group, claim.size, claim.body) == (group, 3, b"body")
        assert claim.parts == [(1, _part(group, 1).data)]
        assert overdue() == []
        backend.close_chords([claim])
        assert backend.join([_part(group, 0), _part(group, 2)]) == []

    @needs("count")
    def test_R10_of_two_who_look_for_overdue_chords_one_gets_each(self, url: str, host: Host, backend: Any) -> None:
        groups = [_new_id() for _ in range(20)]
        backend.open_chords([Chord(group, 3, b"", 0.05) for group in groups])
        others: list[Any] = [self.make(url, host) for _ in range(3)]
        claims: list[ChordClaim] = []

        def look(mine: Any) -> None:
            deadline = time.monotonic() + PATIENCE_S
            while len(claims) < len(groups) and time.monotonic() < deadline:
                claims.extend(mine.overdue_chords(7))

        threads = [threading.Thread(target=look, args=(mine,)) for mine in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(claim.group for claim in claims) == sorted(groups)
        for mine in others:
            mine.close()

    @needs("count")
    @pytest.mark.parametrize("group", STRANGE_IDS, ids=lambda text: text[:12])
    def test_R11_a_strange_id_names_its_own_chord_only(self, backend: Any, group: str) -> None:
        bystander = _new_id()
        backend.open_chords([Chord(group, 2, b"", 3600.0), Chord(bystander, 2, b"", 3600.0)])
        assert backend.join([_part(bystander, 0), _part(group, 0)]) == []
        (claim,) = backend.join([_part(group, 1)])
        assert claim.group == group
        backend.close_chords([claim])
        (claim,) = backend.join([_part(bystander, 1)])
        assert claim.group == bystander

    def _complete(self, backend: Any, group: str, claim_s: float = CLAIM_S) -> ChordClaim:
        """The claim on a new chord of two parts."""
        backend.open_chords([Chord(group, 2, b"", 3600.0)])
        claim: ChordClaim
        (claim,) = backend.join([_part(group, 0), _part(group, 1)], claim_s)
        assert claim.token
        return claim

    # -- groups -------------------------------------------------------------------------------------------

    @needs("groups")
    def test_a_saved_group_comes_back_and_may_be_replaced_and_deleted(self, url: str, host: Host, backend: Any) -> None:
        group = _new_id()
        members = [[group, None], [[["t-1", None], None], [["t-2", ["t-0", None]], None]]]
        assert backend.load_group(group) is None
        backend.save_group(group, members)
        other: Any = self.make(url, host)
        assert other.load_group(group) == members
        other.save_group(group, [[group, None], []])
        assert backend.load_group(group) == [[group, None], []]
        backend.delete_group(group)
        backend.delete_group(group)
        assert other.load_group(group) is None
        other.close()

    @needs("groups")
    @pytest.mark.parametrize("group", STRANGE_IDS, ids=lambda text: text[:12])
    def test_R11_a_strange_id_names_its_own_group_only(self, backend: Any, group: str) -> None:
        bystander = _new_id()
        backend.save_group(bystander, [[bystander, None], []])
        backend.save_group(group, [[group, None], []])
        assert backend.load_group(group) == [[group, None], []]
        backend.delete_group(group)
        assert backend.load_group(group) is None
        assert backend.load_group(bystander) == [[bystander, None], []]

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


def _begin_chord(backend: Any) -> str:
    """A chord of which one of two parts has come, if the backend joins; its id."""
    group = _new_id()
    if "count" in backend.abilities:
        backend.open_chords([Chord(group, 2, b"body", 600.0)])
        assert backend.join([_part(group, 0)]) == []
    return group


def _complete_chord(backend: Any, group: str) -> None:
    """Its other part comes: nothing of it is gone."""
    if "count" in backend.abilities:
        backend.open_chords([Chord(_new_id(), 1, b"", 600.0)])  # at which some remove what has expired
        (claim,) = backend.join([_part(group, 1)])
        assert (claim.size, claim.body, len(claim.parts)) == (2, b"body", 2)


def _part(group: str, index: int) -> ChordPart:
    """A part of a chord, the same whenever it is asked for."""
    task_id = f"{group}-{index}"
    return ChordPart(group, task_id, index, f'[1, "{index}", "SUCCESS", {index}]'.encode(), b"")


def _new_id() -> str:
    return str(uuid.uuid4())


def _document(task_id: str, state: str, value: Any) -> Document:
    return {
        "status": state,
        "result": value,
        "traceback": None,
        "children": [],
        "date_done": datetime.now(timezone.utc).isoformat() if state in states.READY_STATES else None,
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
