"""The backends' suite is worth its name: each backend below breaks one clause, and the named test finds it."""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from celeriac.spec import (
    CLAIM_S,
    Chord,
    ChordClaim,
    ChordPart,
    Document,
    Host,
    ResultBackend,
    Serializer,
    StoredResult,
    Watch,
)
from celeriac.testing.backend_suite import BackendConformance
from celeriac.testing.kit import Bench, KitHost
from celeriac_backend_memory import backend as module
from celeriac_backend_memory.backend import MemoryBackend, MemoryWatch, Shelf


class LastOneWins(MemoryBackend):
    """Writes whatever comes."""

    def store(self, batch: Sequence[StoredResult]) -> None:
        self.forget([result.task_id for result in batch])
        for result in batch:
            self.forget([result.task_id])
            super().store([result])


class ReadThenWrite(MemoryBackend):
    """Looks first and writes later, when the look may be out of date."""

    def store(self, batch: Sequence[StoredResult]) -> None:
        for result in batch:
            kept = self._shelf._kept.get(result.task_id)
            time.sleep(0.001)
            if kept is None or module._replaces(result, kept):
                self.forget([result.task_id])
                super().store([result])


class Drowsy(MemoryBackend):
    """Does not look who has received a message, and when."""

    def store(self, batch: Sequence[StoredResult]) -> None:
        for result in batch:
            result.received = None
        super().store(batch)


class Undoing(MemoryBackend):
    """Protects a success, and no failure."""

    def store(self, batch: Sequence[StoredResult]) -> None:
        for result in batch:
            kept = self._shelf._kept.get(result.task_id)
            if kept is not None and kept.state != "SUCCESS":
                self.forget([result.task_id])
            super().store([result])


class Strict(MemoryBackend):
    """Takes the first final state for the last."""

    def store(self, batch: Sequence[StoredResult]) -> None:
        for result in batch:
            kept = self._shelf._kept.get(result.task_id)
            if kept is None or kept.state not in module.READY_STATES:
                super().store([result])


class Forgetful(MemoryBackend):
    """Loses one of many."""

    def store(self, batch: Sequence[StoredResult]) -> None:
        super().store(batch[:-1] if len(batch) > 100 else batch)


class Private(MemoryBackend):
    """Keeps its results to itself."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._shelf = Shelf()


class Flattening(MemoryBackend):
    """Cuts ids at what it takes for their end."""

    def fetch(self, task_ids: Sequence[str]) -> dict[str, bytes]:
        return {task_id: data for task_id, data in super().fetch(task_ids).items() if task_id.isascii()}


class Generous(MemoryBackend):
    """Forgets more than it was asked to."""

    def forget(self, task_ids: Sequence[str]) -> None:
        super().forget(list(self._shelf._kept))


class Faithful(MemoryBackend):
    """Forgets nothing."""

    def forget(self, task_ids: Sequence[str]) -> None:
        pass


class Eternal(MemoryBackend):
    """Keeps for ever."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lifetime_s = float("inf")


class Hasty(MemoryBackend):
    """Cleans up everything."""

    def cleanup(self) -> int:
        kept = list(self._shelf._kept)
        self._shelf.forget(kept)
        return 0


class Blurring(MemoryBackend):
    """Turns all results into text."""

    def encode(self, document: Document, serializer: Serializer) -> bytes:
        return super().encode({**document, "result": str(document["result"])}, serializer)


class Deaf(MemoryBackend):
    """Tells what is there already, and nothing that comes."""

    def watch(self, task_ids: Sequence[str]) -> Watch:
        watch = super().watch(task_ids)
        self._shelf.unwatch(watch, task_ids)  # type: ignore[arg-type]
        return watch


class Expectant(MemoryBackend):
    """Tells what comes, and nothing that is there already."""

    def watch(self, task_ids: Sequence[str]) -> Watch:
        watch = MemoryWatch(self._shelf)
        watch.add(task_ids)
        while not watch.news.empty():
            watch.news.get()
        return watch


class Chatty(MemoryBackend):
    """Tells everybody everything."""

    def watch(self, task_ids: Sequence[str]) -> Watch:
        backend, seen = self, set(self._shelf._kept)

        class All(MemoryWatch):
            def wait(self, timeout_s: float) -> list[tuple[str, bytes]]:
                others = backend.fetch([task_id for task_id in backend._shelf._kept if task_id not in seen])
                return list(others.items()) or super().wait(timeout_s)

        watch = All(self._shelf)
        watch.add(task_ids)
        return watch


class Jealous(MemoryBackend):
    """Tells the first who waits, and no other."""

    def store(self, batch: Sequence[StoredResult]) -> None:
        for watches in self._shelf._watches.values():
            for watch in list(watches)[1:]:
                watches.discard(watch)
        super().store(batch)


class Dozing(MemoryBackend):
    """Has its news late."""

    def watch(self, task_ids: Sequence[str]) -> Watch:
        watch = super().watch(task_ids)
        wait = watch.wait
        watch.wait = lambda timeout_s: (time.sleep(0.3), wait(timeout_s))[1]  # type: ignore[method-assign]
        return watch


class Closing(MemoryBackend):
    """Cannot be used again after `close`."""

    def close(self) -> None:
        self._shelf = None  # type: ignore[assignment]


class Boastful(MemoryBackend):
    """Declares what it cannot do."""

    abilities = MemoryBackend.abilities | {"persistent"}


class Counting(MemoryBackend):
    """Counts parts instead of setting them, as joins made of counters do."""

    def join(self, parts: Sequence[ChordPart], claim_s: float = CLAIM_S) -> list[ChordClaim]:
        return super().join([self._as_new(part) for part in parts], claim_s)

    @staticmethod
    def _as_new(part: ChordPart) -> ChordPart:
        return ChordPart(part.group, uuid.uuid4().hex, part.index, part.data, part.body)


class Lavish(MemoryBackend):
    """Gives the claim to everybody who asks."""

    def join(self, parts: Sequence[ChordPart], claim_s: float = CLAIM_S) -> list[ChordClaim]:
        return super().join(parts, 0.0)


class Possessive(MemoryBackend):
    """Gives a claim for ever."""

    def join(self, parts: Sequence[ChordPart], claim_s: float = CLAIM_S) -> list[ChordClaim]:
        return super().join(parts, 3600.0)


class Trusting(MemoryBackend):
    """Closes a chord for whoever says so."""

    def close_chords(self, claims: Sequence[ChordClaim]) -> None:
        joins = self._shelf.chords._joins
        super().close_chords([ChordClaim(claim.group, joins[claim.group].token) for claim in claims])


class Amnesic(MemoryBackend):
    """Forgets that a chord has ended."""

    def close_chords(self, claims: Sequence[ChordClaim]) -> None:
        for claim in claims:
            self._shelf.chords._joins.pop(claim.group)


class Restarting(MemoryBackend):
    """Begins anew when a chord is opened."""

    def open_chords(self, chords: Sequence[Chord]) -> None:
        for chord in chords:
            join = self._shelf.chords._joins.get(chord.group)
            if join is not None and not join.done:
                del self._shelf.chords._joins[chord.group]
        super().open_chords(chords)


class Unordered(MemoryBackend):
    """Hands out parts as they came."""

    def join(self, parts: Sequence[ChordPart], claim_s: float = CLAIM_S) -> list[ChordClaim]:
        claims = super().join(parts, claim_s)
        for claim in claims:
            claim.parts = claim.parts[::-1]
        return claims


class Rigid(MemoryBackend):
    """Lets no chord grow."""

    def grow_chord(self, group: str, task_id: str) -> None:
        pass


class Waiting(MemoryBackend):
    """Waits for ever for parts that were lost."""

    def overdue_chords(self, limit: int, claim_s: float = CLAIM_S) -> list[ChordClaim]:
        return []


class Reaping(MemoryBackend):
    """Lets everybody end what is overdue."""

    def overdue_chords(self, limit: int, claim_s: float = CLAIM_S) -> list[ChordClaim]:
        return super().overdue_chords(limit, 0.0)


class Hoarding(MemoryBackend):
    """Deletes no group."""

    def delete_group(self, group_id: str) -> None:
        pass


MUTANTS: list[tuple[type[MemoryBackend], str]] = [
    (LastOneWins, "test_R3_a_success_is_final_and_ready_is_not_undone"),
    (ReadThenWrite, "test_R3_holds_when_many_write_at_once"),
    (Drowsy, "test_R13_a_receiver_that_came_before_changes_nothing_in_what_a_later_one_has_ended"),
    (Undoing, "test_R3_a_success_is_final_and_ready_is_not_undone"),
    (Strict, "test_R3_a_success_is_final_and_ready_is_not_undone"),
    (Forgetful, "test_R2_a_batch_is_stored_and_fetched_as_a_whole"),
    (Private, "test_R2_a_stored_result_is_there_for_another_backend"),
    (Flattening, "test_R11_a_strange_id_names_its_own_result_only"),
    (Generous, "test_R11_a_strange_id_names_its_own_result_only"),
    (Faithful, "test_a_forgotten_result_is_gone_and_may_be_stored_anew"),
    (Eternal, "test_R7_a_result_expires_and_cleaning_up_twice_is_safe"),
    (Hasty, "test_R7_a_result_expires_and_cleaning_up_twice_is_safe"),
    (Blurring, "test_R1_a_document_comes_back_as_it_was"),
    (Deaf, "test_R8_a_watch_tells_every_task_of_many"),
    (Expectant, "test_R8_a_watch_first_tells_what_is_there_already"),
    (Chatty, "test_R8_a_watch_is_silent_about_others_and_ends_on_time"),
    (Jealous, "test_R8_two_who_wait_for_one_task_are_both_told"),
    (Dozing, "test_R8_a_watch_learns_of_a_result_at_once"),
    (Closing, "test_a_backend_may_be_closed_twice_and_used_again"),
    (Boastful, "test_it_has_the_abilities_it_was_said_to_have"),
    (Counting, "test_R9_a_part_that_comes_twice_counts_once"),
    (Unordered, "test_R9_a_chord_is_complete_with_its_last_part"),
    (Lavish, "test_R9_of_many_who_complete_a_chord_one_has_the_claim"),
    (Possessive, "test_R9_a_claim_is_held_until_it_ends_and_then_another_s"),
    (Trusting, "test_R9_a_claim_is_held_until_it_ends_and_then_another_s"),
    (Amnesic, "test_R9_a_closed_chord_stays_closed"),
    (Restarting, "test_R9_a_part_may_come_before_its_chord_is_opened_and_opening_again_loses_none"),
    (Rigid, "test_R9_a_chord_may_grow_and_what_was_added_comes_last"),
    (Waiting, "test_R10_an_overdue_chord_is_claimed_once_with_what_came"),
    (Reaping, "test_R10_an_overdue_chord_is_claimed_once_with_what_came"),
    (Hoarding, "test_a_saved_group_comes_back_and_may_be_replaced_and_deleted"),
]


@pytest.mark.parametrize(("mutant", "clause"), MUTANTS, ids=lambda value: getattr(value, "__name__", value))
def test_the_suite_finds_a_backend_that_breaks_a_clause(
    mutant: type[MemoryBackend], clause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "patience_s", 1.0)
    with pytest.raises((AssertionError, AttributeError, ValueError)):
        _run(mutant, clause)


@pytest.mark.parametrize("clause", sorted({clause for _, clause in MUTANTS}))
def test_the_same_tests_pass_with_a_backend_that_keeps_them(clause: str) -> None:
    _run(MemoryBackend, clause)


def _run(backend_class: type[MemoryBackend], clause: str) -> None:
    """Call one test of the suite as pytest would, once for each set of its parameters."""

    class Suite(BackendConformance):
        abilities = MemoryBackend.abilities

        def make(self, url: str, host: Host, **settings: Any) -> ResultBackend:
            return backend_class(url, {**self.settings, **settings}, host)

    suite, url, host = Suite(), f"memory://{uuid.uuid4().hex}", KitHost()
    test: Callable[..., Any] = getattr(suite, clause)
    fixtures = {"url": url, "host": host, "backend": suite.make(url, host)}
    names = inspect.signature(test).parameters
    for values in _rows(test):
        test(**{name: {**fixtures, **values}[name] for name in names})


def _rows(test: Callable[..., Any]) -> list[dict[str, Any]]:
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names, rows = mark.args
            if isinstance(names, str):
                return [{names: row} for row in rows]
            return [dict(zip(names, row, strict=True)) for row in rows]
    return [{}]
