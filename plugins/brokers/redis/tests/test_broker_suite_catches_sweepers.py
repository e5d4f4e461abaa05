"""The brokers' suite finds what is wrong with the search for dead workers: three errors that queues on Redis have had.

Each stands in a module that the test's process and the victim's import. A victim is always killed while it searches, at
the worst moment: it has the lock, and has done nothing yet.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celeriac.spec import Consumer, QueueSpec
from celeriac.testing.broker_suite import BrokerConformance
from celeriac.testing.kit import Bench, make_transport
from celeriac_broker_redis.leases import Leases
from celeriac_broker_redis.transport import ABILITIES

KILLED, SEVERAL, LIVING = (
    "test_B11_B13_a_killed_worker_s_message_comes_back_flagged",
    "test_B11_of_several_dead_workers_each_is_found_among_the_living",
    "test_B12_a_living_worker_keeps_what_it_has",
)
#: An error that depends on the order in which the dead are met may be lucky now and then.
TRIES = 6
MUTANTS = {
    "keeps_its_promise": "pass",
    "locks_without_expiry": "LOCK = ()",
    "rescues_by_idle_time": """
        def restore(self, now):
            taken = self._call([("ZRANGEBYSCORE", self._keys.index, 0, "+inf")])[0]
            old = [tag for tag in taken if now - seen.setdefault(tag, now) > 1 and b" " not in tag]
            if not old:
                return 0
            self._call([("ZADD", self._keys.owners, now - 1, tag.partition(b":")[0]) for tag in old])
            found = self._tags_of([tag.partition(b":")[0].decode() for tag in old])
            return sum(self._rescue(token, tags, 0.0) for token, tags in found.items())
        seen = {}
        Leases._restore_abandoned = restore
    """,
    "ends_its_search_early": """
        tags_of = Leases._tags_of
        ended = set()
        def search(self, tokens):
            found = tags_of(self, tokens)
            for token in tokens:
                if self._token in ended or not found[token]:
                    ended.add(self._token)
                    found[token] = []
            return found
        Leases._tags_of = search
    """,
}
SOURCE = """
import os
from celeriac_broker_redis import celeriac_make_transport
from celeriac_broker_redis.leases import SWEEP_LOCK_MS, Leases

LOCK = ("PX", SWEEP_LOCK_MS)
sweep = Leases.sweep

def locked_sweep(self):
    if not self._call([("SET", "kit.sweep", self._token, "NX", *LOCK)])[0]:
        return 0
    if os.environ["KIT_TESTER"] != str(os.getpid()):
        return 0  # the victim gets no further, and never will
    self._call([("DEL", self._keys.sweep)])
    returned = sweep(self)
    self._call([("DEL", "kit.sweep")])
    return returned

Leases.sweep = locked_sweep
{change}
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes the plugin module of a mutant, which other processes can import too, and returns its name."""
    for name in ("sweep", "_restore_abandoned", "_tags_of"):
        monkeypatch.setattr(Leases, name, getattr(Leases, name))  # to have them back afterwards
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("KIT_TESTER", str(os.getpid()))
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(mutant: str) -> str:
        name = f"redis_mutant_{mutant}"
        (tmp_path / f"{name}.py").write_text(SOURCE.format(change=inspect.cleandoc(MUTANTS[mutant])))
        return name

    yield write
    for name in [name for name in sys.modules if name.startswith("redis_mutant_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("mutant", "clause", "complaint"),
    [
        ("locks_without_expiry", KILLED, "not enough values to unpack"),
        ("rescues_by_idle_time", LIVING, "although nothing should come|^assert \\[.*\\] == \\[\\]"),
        ("ends_its_search_early", SEVERAL, "of two messages of dead workers"),
    ],
)
def test_the_suite_finds_a_broker_that_breaks_a_clause(
    mutant: str, clause: str, complaint: str, load: Callable[[str], str], redis_url: str
) -> None:
    module = load(mutant)
    said = ""
    for _ in range(TRIES):
        said = said or complaint_of(module, clause, redis_url)
    assert re.search(complaint, said, re.MULTILINE), said or f"{clause} has passed {TRIES} times"


def complaint_of(module: str, clause: str, url: str) -> str:
    """What a test of the suite complains of; empty if it passes."""
    try:
        run(module, clause, url, 5.0)
    except (AssertionError, ValueError) as exc:
        return str(exc) or type(exc).__name__
    return ""


@pytest.mark.parametrize("clause", [KILLED, SEVERAL, LIVING])
def test_the_same_tests_pass_with_a_broker_that_keeps_them(
    clause: str, load: Callable[[str], str], redis_url: str
) -> None:
    run(load("keeps_its_promise"), clause, redis_url, 15.0)


def run(module: str, clause: str, url: str, within_s: float) -> None:
    """Call one test of the suite as pytest would."""

    class Suite(BrokerConformance):
        plugin = module
        abilities = ABILITIES
        recovery_s = within_s
        settings = {"broker_transport_options": {"lease": 1.5 if clause == LIVING else 15}}  # noqa: RUF012 - fixed

    bench, opened = Bench(), []
    transport = make_transport(module, url, Suite.settings)

    def open_consumer(*queues: str, poller: Bench = bench, window: int = 64) -> Consumer:
        specs = [QueueSpec(name) for name in queues]
        opened.append(transport.consumer(specs, owner=f"kit-{len(opened)}", poller=poller, window=window))
        return opened[-1]

    test: Callable[..., Any] = getattr(Suite(), clause)
    fixtures = {
        "url": url, "transport": transport, "queue": f"kit-{uuid.uuid4().hex}", "bench": bench,
        "open_consumer": open_consumer,
    }  # fmt: skip
    try:
        test(**{name: fixtures[name] for name in inspect.signature(test).parameters})
    finally:
        for consumer in opened:
            consumer.close()
        transport.close()
