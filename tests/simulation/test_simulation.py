"""The worker's decisions under seeded trouble on a virtual clock; what fails is replayed by its seed.

    SIMULATION_SEED=1234 pytest tests/simulation          # this one life, with what happened in it
    SIMULATION_SEEDS=20000 pytest tests/simulation        # more lives than usual

The mutants at the end are the classical mistakes: the simulation has to find each of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import pytest
from tests.simulation.world import Broken, World

from celeriac.worker.endings import Endings
from celeriac.worker.link import Link, Renewer
from celeriac.worker.revoked import Revoked
from celeriac.worker.settle import Settler
from celeriac.worker.spool import Spool

LIVES = int(os.environ.get("SIMULATION_SEEDS", "500"))
BLOCKS = 10
#: By so many lives each mutant is found.
MUTANT_LIVES = 250


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """The worker's own lines about thousands of troubles are nobody's to read."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def live(seed: int, *, faults: bool = True, remembers: bool = False) -> World:
    world = World(seed, faults=faults, remembers=remembers)
    try:
        world.live()
    except (Exception, Broken) as exc:
        story = "\n".join(world.happened[-60:])
        pytest.fail(f"{type(exc).__name__}: {exc}\nreplay: SIMULATION_SEED={seed}\n{story}")
    return world


@pytest.mark.parametrize("block", range(BLOCKS))
def test_whatever_happens_what_must_hold_holds(block: int) -> None:
    if "SIMULATION_SEED" in os.environ:
        if block == 0:
            live(int(os.environ["SIMULATION_SEED"]))
        return
    worlds = [live(seed) for seed in range(block, LIVES, BLOCKS)]
    assert sum(world.faults for world in worlds) > len(worlds) / 2, "too little happens for this to prove anything"


def test_where_nothing_goes_wrong_everything_runs_once() -> None:
    for seed in range(10_000, 10_040):
        live(seed, faults=False)


def test_a_worker_that_remembers_successes_keeps_all_that_must_hold() -> None:
    """`worker_deduplicate_successful_tasks`, with nothing to ask but its own memory."""
    for seed in range(200):
        live(seed, remembers=True)


def test_a_seed_decides_everything() -> None:
    for seed in (3, 14, 159):
        assert live(seed).happened == live(seed).happened


# -- mutants -----------------------------------------------------------------------------------------------------------


def ack_before_store(patch: pytest.MonkeyPatch) -> None:
    def perform(self: Any, endings: Any) -> None:
        self._settle(endings)
        stored = [state for ending in endings for state in ending[1]]
        if stored:
            self._backend.store(stored)

    patch.setattr(Settler, "_perform_apart", perform)


def what_follows_is_forgotten_while_the_store_is_away(patch: pytest.MonkeyPatch) -> None:
    keep = Spool.add
    patch.setattr(Spool, "add", lambda self, ending: keep(self, (ending[0], ending[1], (), ending[3])))


def a_lost_lease_is_not_looked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Link, "prove", lambda self: None)


def a_lost_run_settles_all_the_same(patch: pytest.MonkeyPatch) -> None:
    def settle_flight(
        self: Any, flight: Any, settlement: Any, stored: Any = (), publish: Any = (), chords: Any = None
    ) -> None:
        if self._settler is not None:
            self._settler.add(settlement, stored, publish)

    patch.setattr(Link, "settle_flight", settle_flight)


def what_waits_for_the_store_is_stored_after_its_lease_is_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Settler, "forget", lambda self, tags: None)


def leases_are_never_renewed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Renewer, "prove", lambda self, patience_s=-1: None)


def the_spool_has_no_bound(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Spool, "is_full", False)


def revocations_are_not_asked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Revoked, "match", lambda self, head: None)


def a_crash_is_acknowledged(patch: pytest.MonkeyPatch) -> None:
    def lost(self: Any, flight: Any, cause: str) -> None:
        self._finish(flight, "ack")

    patch.setattr(Endings, "_lost", lost)


def what_is_returned_is_dropped(patch: pytest.MonkeyPatch) -> None:
    end = Endings._end

    def forget(self: Any, flight: Any, report: Any) -> None:
        if report.outcome != "returned":
            end(self, flight, report)

    patch.setattr(Endings, "_end", forget)


MUTANTS: list[Callable[[pytest.MonkeyPatch], None]] = [
    ack_before_store,
    what_follows_is_forgotten_while_the_store_is_away,
    a_lost_lease_is_not_looked_for,
    a_lost_run_settles_all_the_same,
    what_waits_for_the_store_is_stored_after_its_lease_is_lost,
    leases_are_never_renewed,
    the_spool_has_no_bound,
    revocations_are_not_asked_for,
    a_crash_is_acknowledged,
    what_is_returned_is_dropped,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_planted_mistake_is_found(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    for seed in range(MUTANT_LIVES):
        try:
            World(seed).live()
        except Broken:
            return
    pytest.fail(f"{MUTANT_LIVES} lives with a worker that is wrong, and nothing was noticed")
