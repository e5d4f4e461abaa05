"""The brokers' suite finds what only a crash brings to light: brokers that look right until a worker is killed."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celeriac.spec import Consumer, QueueSpec
from celeriac.testing.broker_suite import BrokerConformance
from celeriac.testing.kit import Bench, make_transport
from celeriac_broker_sqlite.transport import SqliteTransport

KILLED, SEVERAL, LIVING = (
    "test_B11_B13_a_killed_worker_s_message_comes_back_flagged",
    "test_B11_of_several_dead_workers_each_is_found_among_the_living",
    "test_B12_a_living_worker_keeps_what_it_has",
)
#: On a busy machine a wrong broker may be lucky now and then.
TRIES = 4
#: What is changed in the sqlite broker, in the test's process and in the victim's.
MUTANTS = {
    "keeps_its_promise": "pass",
    "pops_then_records": """
        claim = store.claim
        def pop(conn, owner, queue, limit):
            claimed = claim(conn, owner, queue, limit)
            store.ack(conn, owner, [one.id for one in claimed])
            return claimed
        store.claim = pop
    """,
    "never_doubts_an_owner": "consumer.is_alive = lambda folder, page, lease_s: True",
    "does_not_flag_what_it_rescues": """
        remove = store.remove_owner
        def clean(conn, owner, **options):
            queues = remove(conn, owner, **options)
            conn.execute("UPDATE celeriac_ready SET attempt = 1, redelivered = 0")
            return queues
        store.remove_owner = clean
    """,
    "doubts_everybody": "consumer.is_alive = lambda folder, page, lease_s: False",
    "rescues_by_idle_time": """
        import time
        seen = {}
        def is_alive(folder, page, lease_s):
            return time.monotonic() - seen.setdefault(page, time.monotonic()) < 1.0
        consumer.is_alive = is_alive
    """,
    "ends_its_search_early": """
        import time
        def tend(self):
            self._tend_at = time.monotonic() + consumer.IDLE_S
            for owner, page in store.owners(self._conn):
                if consumer.is_alive(self._folder, page, self._lease_s):
                    return
                self._take_over(owner, page)
        consumer.SqliteConsumer._tend = tend
    """,
}
FOUND_BY = [
    ("pops_then_records", KILLED),
    ("never_doubts_an_owner", KILLED),
    ("does_not_flag_what_it_rescues", KILLED),
    ("doubts_everybody", KILLED),
    ("rescues_by_idle_time", LIVING),
    ("ends_its_search_early", SEVERAL),
]
SOURCE = """
from celeriac_broker_sqlite import celeriac_make_transport, consumer, store
def change():
    {change}
change()
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes the plugin module of a mutant, which other processes can import too, and returns its name."""
    from celeriac_broker_sqlite import consumer, store

    originals = [(store, dict(vars(store))), (consumer, dict(vars(consumer)))]
    monkeypatch.setattr(consumer.SqliteConsumer, "_tend", consumer.SqliteConsumer._tend)  # to have it back afterwards
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(mutant: str) -> str:
        name = f"mutant_{mutant}"
        change = "\n".join(line[4:] if line.startswith("        ") else line for line in MUTANTS[mutant].splitlines())
        (tmp_path / f"{name}.py").write_text(SOURCE.format(change=change))
        return name

    yield write
    for module, names in originals:
        vars(module).update(names)
    for name in [name for name in sys.modules if name.startswith("mutant_")]:
        del sys.modules[name]


@pytest.mark.parametrize(("mutant", "clause"), FOUND_BY)
def test_the_suite_finds_a_broker_that_breaks_a_clause(
    mutant: str, clause: str, load: Callable[[str], str], tmp_path: Path
) -> None:
    module = load(mutant)
    with pytest.raises((AssertionError, ValueError)):
        for number in range(TRIES):
            run(module, clause, tmp_path / str(number))


@pytest.mark.parametrize("clause", [KILLED, SEVERAL, LIVING])
def test_the_same_tests_pass_with_a_broker_that_keeps_them(
    clause: str, load: Callable[[str], str], tmp_path: Path
) -> None:
    run(load("keeps_its_promise"), clause, tmp_path, 14.0)


def run(module: str, clause: str, tmp_path: Path, within_s: float = 2.0) -> None:
    """Call one test of the suite as pytest would."""

    class Suite(BrokerConformance):
        plugin = module
        abilities = SqliteTransport.abilities
        recovery_s = within_s

    tmp_path.mkdir(exist_ok=True)
    url, bench, opened = f"sqlite:///{tmp_path}/crash.db", Bench(), []
    transport = make_transport(Suite.plugin, url)

    def open_consumer(*queues: str, poller: Bench = bench, window: int = 64) -> Consumer:
        specs = [QueueSpec(name) for name in queues]
        opened.append(transport.consumer(specs, owner="kit", poller=poller, window=window))
        return opened[-1]

    test: Callable[..., Any] = getattr(Suite(), clause)
    fixtures = {
        "url": url, "transport": transport, "queue": "kit", "bench": bench, "open_consumer": open_consumer,
    }  # fmt: skip
    try:
        test(**{name: fixtures[name] for name in inspect.signature(test).parameters})
    finally:
        for consumer in opened:
            consumer.close()
        transport.close()
