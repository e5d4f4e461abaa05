"""The brokers' suite finds what only a crash brings to light: brokers that look right until a worker is killed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celeriac.spec import Consumer, QueueSpec
from celeriac.testing.broker_suite import BrokerConformance
from celeriac.testing.kit import Bench, make_transport
from celeriac_broker_sqlite.transport import SqliteTransport

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
        def clean(conn, owner):
            queues = remove(conn, owner)
            conn.execute("UPDATE celeriac_ready SET attempt = 1, redelivered = 0")
            return queues
        store.remove_owner = clean
    """,
    "doubts_everybody": "consumer.is_alive = lambda folder, page, lease_s: False",
}
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


@pytest.mark.parametrize("mutant", MUTANTS)
def test_B11_the_suite_tells_the_sound_from_the_broken(mutant: str, load: Callable[[str], str], tmp_path: Path) -> None:
    class Suite(BrokerConformance):
        plugin = load(mutant)
        abilities = SqliteTransport.abilities
        recovery_s = 2.0

    url, bench, opened = f"sqlite:///{tmp_path}/crash.db", Bench(), []
    transport = make_transport(Suite.plugin, url)

    def open_consumer(*queues: str, poller: Bench = bench, window: int = 64) -> Consumer:
        specs = [QueueSpec(name) for name in queues]
        opened.append(transport.consumer(specs, owner="kit", poller=poller, window=window))
        return opened[-1]

    def run() -> None:
        Suite().test_B11_B13_a_killed_worker_s_message_comes_back_flagged(url, transport, "kit", bench, open_consumer)

    try:
        if mutant == "keeps_its_promise":
            run()
        else:
            with pytest.raises((AssertionError, ValueError)):
                run()
    finally:
        for consumer in opened:
            consumer.close()
        transport.close()
