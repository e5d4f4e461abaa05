"""The prefork pool whose children are fresh interpreters: what hangs on how a child comes into the world, and ends."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from celeriac.exceptions import ImproperlyConfigured, PoolBroken
from celeriac.spec import Pool, PoolOptions, Recipe, SlotProgram
from celeriac.testing.pool_suite import ENDLESS_S, PoolConformance, ScriptedProgram, job
from celeriac_pool_prefork.pool import PreforkPool


class Spawning(PoolConformance):
    __test__ = False
    spawns = True

    def make_pool(self, program: SlotProgram, options: PoolOptions) -> Pool:
        return PreforkPool(program, options)


SUITE = Spawning()

#: Of the suite, which a fresh interpreter for every child makes slow, the tests in which children are born, stopped,
#: signalled, judged by the shared page, or fed through descriptors. What happens in between is the same code.
CLAUSES: list[Callable[..., None]] = [
    SUITE.test_P1_stop_ends_what_is_busy_beyond_its_grace,
    SUITE.test_P3_the_hard_limit_ends_the_slot_and_another_takes_its_place,
    SUITE.test_P4_brief_jobs_behind_the_one_that_kills_are_run_elsewhere,
    SUITE.test_P4_a_pool_whose_slots_cannot_begin_says_why,
    SUITE.test_P5_begin_and_end_are_called_once_in_each_process_with_slots,
    SUITE.test_P6_cancelling_brief_jobs_in_full_flight_is_exact,
    SUITE.test_P6_cancelling_a_running_job_ends_it_or_says_no,
    SUITE.test_P7_slots_end_when_their_worker_is_killed,
    SUITE.test_P8_a_vandal_harms_at_most_its_own_slot,
    SUITE.test_P10_a_pool_that_has_stopped_leaves_no_descriptor_open,
    SUITE.test_resize_adds_and_takes_away_slots_without_harm_to_jobs,
]


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.__name__.removeprefix("test_"))
def test_spawned_children_keep_the_contract_of_pools(clause: Callable[..., None], tmp_path: Path) -> None:
    known: dict[str, Any] = {"tmp_path": tmp_path}
    clause(**{name: known[name] for name in inspect.signature(clause).parameters})


def test_spawned_children_keep_limits_and_are_replaced_and_take_jobs_of_any_size() -> None:
    with SUITE.started(slots=1, max_tasks_per_child=3) as driver:
        late, big, last, fresh = (
            job(f"sleep {ENDLESS_S}", soft_limit_s=0.5),
            job(f"echo 3000000; padded {'x' * 3_000_000}"),
            job("pass"),
            job("pass"),
        )
        driver.submit(late, big, last, fresh)
        assert driver.final(late).timed_out
        assert driver.outcomes([big, last, fresh]) == ["succeeded"] * 3
        first = {driver.final(one).pid for one in (late, big, last)}
        assert len(first) == 1
        assert driver.final(fresh).pid not in first


SLOWLY = """
import os, pickle, time

def make(words):
    try:
        os.close(os.open({first!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        time.sleep(600)
    return pickle.loads(words)
"""


def test_a_stop_does_not_wait_for_a_child_that_imports_the_app_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slowly.py").write_text(SLOWLY.format(first=str(tmp_path / "first")))
    monkeypatch.syspath_prepend(tmp_path)
    recipe = Recipe("slowly:make", ScriptedProgram().recipe().words)
    with SUITE.started(recipe=lambda: recipe) as driver:
        began = time.monotonic()
        driver.stop(grace_s=100.0)
        assert time.monotonic() - began < 80.0


def test_a_recipe_that_cannot_be_written_is_an_error_of_the_start() -> None:
    def write() -> Recipe:
        raise ImproperlyConfigured("it lives in the program that runs")

    with pytest.raises(ImproperlyConfigured, match="the program that runs"), SUITE.started(recipe=write):
        pass


def test_a_recipe_that_leads_nowhere_breaks_the_start_with_the_reason() -> None:
    with (
        pytest.raises(PoolBroken, match="No module named 'nowhere'"),
        SUITE.started(ScriptedProgram(), slots=1, recipe=lambda: Recipe("nowhere:make", b"")),
    ):
        pass
