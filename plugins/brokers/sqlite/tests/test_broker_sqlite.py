"""What the sqlite broker promises beyond the contract: transactions, leases by flock, wake-ups, errors that help."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celeriac.exceptions import (
    PublishRejected,
    TransportLost,
    TransportUnreachable,
)
from celeriac.spec import DeadBox, ExchangeSpec, Malformed, QueueSpec, Route, Settlement, StoredResult
from celeriac.testing.broker_suite import make_payload
from celeriac.testing.kit import Bench, KitHost, eventually
from celeriac_backend_sqlite.backend import SqliteBackend
from celeriac_broker_sqlite import celeriac_make_transport, store
from celeriac_broker_sqlite import consumer as consumer_module
from celeriac_broker_sqlite.consumer import SqliteConsumer
from celeriac_broker_sqlite.transport import SqliteTransport
from celeriac_support_sqlite import wake
from celeriac_support_sqlite.wake import folder_of

Open = Callable[..., SqliteConsumer]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def transport(path: Path) -> Iterator[SqliteTransport]:
    transport = SqliteTransport(f"sqlite:///{path}", {})
    yield transport
    transport.close()


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def open_consumer(transport: SqliteTransport, bench: Bench) -> Iterator[Open]:
    opened: list[SqliteConsumer] = []

    def open_one(*queues: str, poller: Bench = bench) -> SqliteConsumer:
        specs = [QueueSpec(name) for name in queues or ("q",)]
        opened.append(transport.consumer(specs, owner=f"w{len(opened)}@here", poller=poller, window=64))
        return opened[-1]

    yield open_one
    for consumer in opened:
        consumer.close()


def peek(path: Path, sql: str) -> list[Any]:
    conn = sqlite3.connect(path, isolation_level=None)
    try:
        return conn.execute(sql).fetchall()
    finally:
        conn.close()


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


# -- transactions -----------------------------------------------------------------------------------------


def test_one_pass_of_the_worker_is_one_transaction(
    transport: SqliteTransport, path: Path, bench: Bench, open_consumer: Open
) -> None:
    backend = SqliteBackend(f"sqlite:///{path}", {}, KitHost())
    transport.send([make_payload("q") for _ in range(4)])
    consumer = open_consumer()
    taken = consumer.receive(2)
    statements: list[str] = []
    consumer._conn.set_trace_callback(statements.append)
    joined = backend.commands([StoredResult(f"t{n}", "SUCCESS", b"{}") for n in range(2)])
    consumer.settle([Settlement(taken[0].tag)], joined=joined)
    consumer.settle([Settlement(taken[1].tag)], publish=[make_payload("next")])
    assert statements == []
    assert len(consumer.receive(2)) == 2
    assert statements.count("COMMIT") == statements.count("BEGIN IMMEDIATE") == 1
    assert set(backend.fetch(["t0", "t1"])) == {"t0", "t1"}
    assert transport.depth("next") == 1
    backend.close()


def test_result_follow_up_and_ack_are_there_together_or_not_at_all(
    transport: SqliteTransport, path: Path, open_consumer: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = SqliteBackend(f"sqlite:///{path}", {}, KitHost())
    transport.send([make_payload("q")])
    consumer = open_consumer()
    (delivery,) = consumer.receive(1)

    def fail(*_: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(store, "ack", fail)
    joined = backend.commands([StoredResult("t", "SUCCESS", b"{}")])
    consumer.settle([Settlement(delivery.tag)], publish=[make_payload("next")], joined=joined)
    with pytest.raises(TransportLost, match="disk I/O"):
        consumer.receive(1)
    assert backend.fetch(["t"]) == {}
    assert transport.depth("next") == 0
    monkeypatch.undo()
    consumer.flush(30)
    assert set(backend.fetch(["t"])) == {"t"}
    assert transport.depth("next") == 1
    assert peek(path, "SELECT count(*) FROM celeriac_held") == [(0,)]
    backend.close()


def test_a_settlement_wakes_the_worker_that_made_it_so_that_it_is_written_at_once(
    transport: SqliteTransport, path: Path, bench: Bench, open_consumer: Open
) -> None:
    transport.send([make_payload("q")])
    consumer = open_consumer()
    (delivery,) = consumer.receive(1)
    consumer.settle([Settlement(delivery.tag)])
    started = time.monotonic()
    bench.sleep(consumer, 20)
    assert time.monotonic() - started < 10
    assert consumer.receive(0) == []
    assert peek(path, "SELECT count(*) FROM celeriac_messages") == [(0,)]


def test_send_takes_all_messages_or_none(transport: SqliteTransport) -> None:
    transport.declare([QueueSpec("q", "shop", "direct", "known")])
    with pytest.raises(PublishRejected, match=r"'shop'.*'unknown'"):
        transport.send([make_payload("q"), make_payload(route=Route("unknown", "shop"))])
    assert transport.depth("q") == 0


def test_a_follow_up_whose_priority_no_column_holds_is_sent_as_the_most_urgent(
    transport: SqliteTransport, open_consumer: Open
) -> None:
    transport.send([make_payload("q", b"first")])
    consumer = open_consumer()
    (delivery,) = consumer.receive(1)
    urgent = make_payload("q", b"urgent")
    urgent.properties["priority"] = 10**30
    consumer.settle([Settlement(delivery.tag)], publish=[make_payload("q", b"plain"), urgent])
    consumer.flush(30)
    assert [transport.unpack(one.raw).body for one in consumer.receive(2)] == [b"urgent", b"plain"]


def test_an_unroutable_follow_up_is_refused_while_the_delivery_is_still_held(
    transport: SqliteTransport, open_consumer: Open
) -> None:
    transport.send([make_payload("q")])
    consumer = open_consumer()
    (delivery,) = consumer.receive(1)
    with pytest.raises(PublishRejected):
        consumer.settle([Settlement(delivery.tag)], publish=[make_payload(route=Route("x", "nowhere"))])
    consumer.settle([Settlement(delivery.tag, "requeue")])
    assert len(consumer.receive(1)) == 1


def test_a_follow_up_whose_queue_went_after_it_was_settled_costs_the_link_and_no_more(
    transport: SqliteTransport, bench: Bench, open_consumer: Open
) -> None:
    """It used to be tried again with every pass, which failed until the worker gave up."""
    transport.declare([QueueSpec("q2", "shop", "direct", "key")])
    transport.send([make_payload("q"), make_payload("q")])
    consumer = open_consumer()
    first, second = bench.take(consumer, 2)
    consumer.settle([Settlement(first.tag)], publish=[make_payload(route=Route("key", "shop"))])
    consumer.settle([Settlement(second.tag)])
    transport.delete("q2")
    with pytest.raises(TransportLost, match="no queue is bound"):
        consumer.receive(1)
    consumer.close()
    (again,) = bench.take(open_consumer(), 2, 1.0)
    assert (again.raw, again.attempt, again.spared) == (first.raw, 2, 1)


def test_an_idle_consumer_does_not_wait_for_writers(
    transport: SqliteTransport, path: Path, bench: Bench, open_consumer: Open
) -> None:
    consumer = open_consumer()
    bench.take_none(consumer, 0.1)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    assert consumer.receive(5) == []
    assert time.monotonic() - started < 20  # who waits for a lock does so for 30 s
    writer.execute("ROLLBACK")
    writer.close()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT r.id FROM celeriac_ready AS r CROSS JOIN celeriac_messages AS m ON m.id = r.id WHERE r.queue = 'q'"
        " ORDER BY r.rank, r.id LIMIT 5",
        "DELETE FROM celeriac_ready WHERE queue = 'q' AND (rank, id) <= (0, 5)",
        "SELECT due FROM celeriac_delayed ORDER BY due LIMIT 1",
        "DELETE FROM celeriac_delayed WHERE (due, id) <= (1.0, 5)",
        "DELETE FROM celeriac_held WHERE owner = 1 AND id BETWEEN 1 AND 5",
        "DELETE FROM celeriac_messages WHERE id BETWEEN 1 AND 5",
    ],
)
def test_a_long_backlog_costs_nothing(transport: SqliteTransport, path: Path, sql: str) -> None:
    transport.ping(1)
    plan = " ".join(row[3] for row in peek(path, f"EXPLAIN QUERY PLAN {sql}"))
    assert "TEMP B-TREE" not in plan
    assert "SEARCH" in plan or ("SCAN celeriac_delayed" in plan and "LIMIT 1" in sql)


def test_thousands_of_messages_that_come_due_at_once_all_arrive(
    transport: SqliteTransport, bench: Bench, open_consumer: Open
) -> None:
    due = time.time() + 0.4
    transport.send([make_payload("q", due=due) for _ in range(2 * store.RIPE_PER_STEP + 10)])
    consumer = open_consumer()
    assert len(bench.take(consumer, 2 * store.RIPE_PER_STEP + 10)) == 2 * store.RIPE_PER_STEP + 10


def test_purge_goes_in_steps(transport: SqliteTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PURGED_PER_STEP", 7)
    transport.send([make_payload("q") for _ in range(20)])
    transport.send([make_payload("q", due=time.time() + 60) for _ in range(10)])
    transport.send([make_payload("other")])
    assert transport.purge("q") == 30
    assert transport.depth("other") == 1


# -- dead letters -----------------------------------------------------------------------------------------


def test_a_dead_letter_keeps_its_bytes_and_its_story(transport: SqliteTransport, open_consumer: Open) -> None:
    transport.send([make_payload("q", b"original")])
    consumer = open_consumer()
    (delivery,) = consumer.receive(1)
    consumer.settle([Settlement(delivery.tag, "dead", reason="malformed", error="E" * 20_000)])
    consumer.flush(30)
    (letter,) = transport.browse_dead("q")
    assert letter.raw == delivery.raw
    assert (letter.queue, letter.attempt, letter.reason, letter.owner) == ("q", 1, "malformed", "w0@here")
    assert letter.error == "E" * 8192
    assert abs(letter.at - time.time()) < 10


def test_a_reason_that_is_no_utf8_is_kept_and_an_id_that_is_no_number_of_sqlites_is_nobody(
    transport: SqliteTransport, open_consumer: Open
) -> None:
    transport.send([make_payload("q")])
    consumer = open_consumer()
    (delivery,) = consumer.receive(1)
    name = os.fsdecode(b"caf\xe9")
    consumer.settle([Settlement(delivery.tag, "dead", reason=f"rejected: {name}", error=name)])
    consumer.flush(30)
    (letter,) = transport.browse_dead("q", after="9" * 5000)
    assert (letter.reason, letter.error) == ("rejected: caf\\udce9", "caf\\udce9")
    ids = ["9" * 19, "9" * 20, "9" * 5000, "-1", "x"]
    assert (transport.requeue_dead("q", ids), transport.drop_dead("q", ids)) == (0, 0)


def test_the_oldest_dead_letters_make_room(
    transport: SqliteTransport, open_consumer: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "DEAD_KEPT", 3)
    transport.send([make_payload("q") for _ in range(5)])
    consumer = open_consumer()
    taken = consumer.receive(5)
    consumer.settle([Settlement(one.tag, "dead", reason=str(n)) for n, one in enumerate(taken)])
    consumer.flush(30)
    assert [letter.reason for letter in transport.browse_dead("q")] == ["2", "3", "4"]


def test_B21_what_made_room_or_was_kept_for_a_week_is_counted(
    transport: SqliteTransport, path: Path, open_consumer: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "DEAD_KEPT", 3)
    transport.send([make_payload("q") for _ in range(6)])
    consumer = open_consumer()
    taken = consumer.receive(6)
    consumer.settle([Settlement(one.tag, "dead", reason="kit") for one in taken[:5]])
    consumer.flush(30)
    assert transport.dead_boxes([]) == [DeadBox("q", 3, 2)]
    peek(path, "UPDATE celeriac_dead SET at = at - 7.01 * 86400")
    assert transport.dead_boxes([]) == [DeadBox("q", 0, 5)]
    assert transport.browse_dead("q") == []
    consumer.settle([Settlement(taken[5].tag, "dead", reason="last")])
    consumer.flush(30)
    assert transport.dead_boxes([]) == [DeadBox("q", 1, 5)]
    assert [letter.reason for letter in transport.browse_dead("q")] == ["last"]


def test_a_file_of_the_first_version_gets_the_tables_that_came_later(transport: SqliteTransport, path: Path) -> None:
    transport.ping(1)
    transport.close()
    peek(path, "DROP TABLE celeriac_dropped")
    peek(path, "UPDATE celeriac_parts SET version = 1 WHERE part = 'broker'")
    assert transport.dead_boxes(["q"]) == [DeadBox("q", 0, 0)]


def test_B26_garbage_in_the_table_is_delivered_as_malformed(
    transport: SqliteTransport, path: Path, open_consumer: Open
) -> None:
    transport.declare([QueueSpec("q")])
    transport.ping(1)
    peek(path, "INSERT INTO celeriac_messages VALUES (1, x'ff00')")
    peek(path, "INSERT INTO celeriac_ready VALUES ('q', 0, 1, 1, 0)")
    consumer = open_consumer()
    (delivery,) = consumer.receive(1)
    assert isinstance(delivery.head, Malformed)
    consumer.settle([Settlement(delivery.tag, "dead", reason="malformed")])
    consumer.flush(30)
    assert [letter.raw for letter in transport.browse_dead("q")] == [b"\xff\x00"]


# -- leases -----------------------------------------------------------------------------------------------

#: A worker that takes one message, forks a child which lives on, and waits to be killed.
FORKING_VICTIM = """
import os, sys, time
from celeriac.spec import QueueSpec
from celeriac.testing.kit import Bench, make_transport
bench = Bench()
transport = make_transport("celeriac_broker_sqlite", sys.argv[1])
consumer = transport.consumer([QueueSpec("q")], owner="victim", poller=bench, window=8)
assert len(bench.take(consumer, 1)) == 1
if not os.fork():
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def refused(*_: Any, **__: Any) -> Any:
    raise sqlite3.OperationalError("unable to open database file")


def test_B14_a_worker_for_which_the_file_was_out_of_reach_gives_back_no_crashes(
    transport: SqliteTransport, bench: Bench, open_consumer: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.send([make_payload("q")])
    consumer = open_consumer()
    assert len(bench.take(consumer, 1)) == 1

    with monkeypatch.context() as patch, pytest.raises(TransportLost, match="cannot be opened"):
        patch.setattr("celeriac_broker_sqlite.store.claim", refused)
        transport.send([make_payload("q")])
        eventually(lambda: consumer.receive(1))
    consumer.close()
    consumer = open_consumer()
    first, second = bench.take(consumer, 2)
    assert [(one.attempt, one.spared) for one in (first, second)] == [(2, 1), (1, 0)]
    consumer.close()  # in order, for whatever reason
    first, second = bench.take(open_consumer(), 2)
    assert [(one.attempt, one.spared) for one in (first, second)] == [(3, 1), (2, 0)]


def test_B14_what_a_living_worker_could_not_give_back_was_no_crash(
    transport: SqliteTransport, bench: Bench, open_consumer: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.send([make_payload("q")])
    consumer = open_consumer()
    assert len(bench.take(consumer, 1)) == 1

    with monkeypatch.context() as patch:
        patch.setattr("celeriac_broker_sqlite.store.remove_owner", refused)
        consumer.close()
    (delivery,) = bench.take(open_consumer(), 1)
    assert (delivery.attempt, delivery.redelivered, delivery.spared) == (2, True, 1)


def test_B11_children_that_outlive_a_killed_worker_do_not_keep_its_messages(
    transport: SqliteTransport, path: Path, bench: Bench, open_consumer: Open
) -> None:
    transport.send([make_payload("q")])
    victim = run_python(FORKING_VICTIM, f"sqlite:///{path}")
    assert victim.stdout is not None
    child = int(victim.stdout.readline())
    try:
        consumer = open_consumer()
        bench.take_none(consumer)
        victim.kill()
        victim.wait()
        (delivery,) = bench.take(consumer, 1, 12.0)  # before its lease ends
        os.kill(child, 0)
        assert (delivery.attempt, delivery.redelivered, delivery.spared) == (2, True, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        victim.stdout.close()


def wait_for_end(pid: int) -> None:
    """Until a killed process has let go of its files; a zombie has."""
    deadline = time.monotonic() + 10
    stat = Path(f"/proc/{pid}/stat")
    while time.monotonic() < deadline:
        try:
            if stat.read_text().rpartition(")")[2].split()[0] in "ZX":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.005)
    pytest.fail(f"process {pid} does not end")


def test_B11_the_first_worker_after_an_outage_takes_over_at_once(
    transport: SqliteTransport, path: Path, bench: Bench, open_consumer: Open
) -> None:
    transport.send([make_payload("q")])
    victim = run_python(FORKING_VICTIM, f"sqlite:///{path}")
    assert victim.stdout is not None
    child = int(victim.stdout.readline())
    victim.kill()
    victim.wait()
    os.kill(child, signal.SIGKILL)
    wait_for_end(child)
    victim.stdout.close()
    assert [one.attempt for one in open_consumer().receive(1)] == [2]


def test_B10_a_worker_that_gave_no_sign_of_life_loses_all_it_held(
    transport: SqliteTransport, path: Path, open_consumer: Open
) -> None:
    transport.lease_s = 1.0
    transport.send([make_payload("q"), make_payload("q")])
    holder, other = open_consumer(), Bench()
    first, second = holder.receive(2)
    holder.settle([Settlement(first.tag)], publish=[make_payload("next")])
    rival = open_consumer(poller=other)
    time.sleep(1.05)
    taken = other.take(rival, 2)
    assert [one.attempt for one in taken] == [2, 2]
    assert holder.renew() == [second.tag]
    with pytest.raises(TransportLost, match="no sign of life"):
        holder.flush(30)
    assert transport.depth("next") == 0, "a stale settlement must change nothing"
    holder.close()
    rival.renew()
    rival.settle([Settlement(one.tag) for one in taken])
    rival.flush(30)
    assert peek(path, "SELECT count(*) FROM celeriac_messages") == [(0,)]


def test_B12_a_sign_of_life_is_enough_however_long_a_task_runs(transport: SqliteTransport, open_consumer: Open) -> None:
    transport.send([make_payload("q")])
    holder, other = open_consumer(), Bench()
    assert len(holder.receive(1)) == 1
    rival = open_consumer(poller=other)
    for _ in range(3):
        long_ago = time.monotonic() - 100.0
        wake._time.pack_into(holder._ear._page, wake._LIVED, long_ago)
        assert holder.renew() == []
        other.take_none(rival, 2 * consumer_module.IDLE_S)  # so long that it has looked


def test_what_a_killed_process_left_in_the_wake_folder_is_swept(
    transport: SqliteTransport, path: Path, bench: Bench, open_consumer: Open
) -> None:
    victim = run_python(FORKING_VICTIM, f"sqlite:///{path}")
    transport.send([make_payload("q")])
    assert victim.stdout is not None
    os.kill(int(victim.stdout.readline()), signal.SIGKILL)
    victim.kill()
    victim.wait()
    victim.stdout.close()
    consumer = open_consumer()
    eventually(lambda: (consumer.receive(0), len(os.listdir(folder_of(str(path)))) == 2)[1])


#: A worker that notes what it runs, then settles it with a result and a follow-up. It never ends by itself.
MORTAL = """
import os, random, sys
from celeriac.spec import QueueSpec, Settlement, StoredResult
from celeriac.testing.broker_suite import make_payload
from celeriac.testing.kit import Bench, KitHost, make_transport
from celeriac_backend_sqlite.backend import SqliteBackend
url, notes = sys.argv[1:]
transport, backend, bench = make_transport("celeriac_broker_sqlite", url), SqliteBackend(url, {}, KitHost()), Bench()
consumer = transport.consumer([QueueSpec("q")], owner=f"mortal-{os.getpid()}", poller=bench, window=64)
log = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
print("up", flush=True)
while True:
    taken = consumer.receive(random.choice([1, 8, 64]))
    for one in taken:
        os.write(log, f"{one.head.id} {one.redelivered:d}\\n".encode())
    if taken:
        results = backend.commands([StoredResult(one.head.id, "SUCCESS", b"1") for one in taken])
        consumer.settle(
            [Settlement(one.tag) for one in taken], publish=[make_payload("next") for _ in taken], joined=results
        )
    else:
        bench.sleep(consumer, 1)
"""


def test_B11_workers_killed_at_random_lose_nothing_and_double_no_effect(
    transport: SqliteTransport, path: Path, tmp_path: Path
) -> None:
    url, notes, dice = f"sqlite:///{path}", tmp_path / "notes", random.Random(7)
    workers = [run_python(MORTAL, url, str(notes)) for _ in range(2)]
    sent: list[str] = []
    try:
        for _ in range(8):
            for worker in workers:
                assert worker.stdout is not None
                assert worker.stdout.readline() == "up\n"
            for _ in range(10):
                batch = [make_payload("q") for _ in range(15)]
                transport.send(batch)
                sent += [payload.headers["id"] for payload in batch]
            time.sleep(dice.random() * 0.02)
            for worker in workers:
                worker.kill()
                worker.communicate()
            workers = [run_python(MORTAL, url, str(notes)) for _ in range(2)]
        sql = "SELECT (SELECT count(*) FROM celeriac_ready WHERE queue = 'q') + (SELECT count(*) FROM celeriac_held)"
        eventually(lambda: peek(path, sql) == [(0,)])
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    ran: set[str] = set()
    for line in notes.read_text().splitlines():
        task_id, redelivered = line.split()
        assert task_id not in ran or redelivered == "1", "a message that came twice was not flagged"
        ran.add(task_id)
    assert ran == set(sent)
    assert peek(path, "SELECT count(*) FROM celeriac_results") == [(len(sent),)]
    assert transport.depth("next") == len(sent), "a follow-up was lost or sent twice"
    assert peek(path, "PRAGMA integrity_check") == [("ok",)]


# -- wake-ups ---------------------------------------------------------------------------------------------

SENDER = """
import sys, time
from celeriac.testing.broker_suite import make_payload
from celeriac.testing.kit import make_transport
transport = make_transport("celeriac_broker_sqlite", sys.argv[1])
transport.ping(5)
for _ in range(30):
    time.sleep(0.02)
    transport.send([make_payload("q", repr(time.monotonic()).encode())])
"""


def test_B17_another_process_s_message_wakes_the_consumer(
    transport: SqliteTransport, path: Path, bench: Bench, open_consumer: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "IDLE_S", 10.0)
    consumer = open_consumer()
    rounds = []
    for _ in range(4):  # a busy machine may be late, but hardly each time
        sender = run_python(SENDER, f"sqlite:///{path}")
        delays = []
        for _ in range(30):
            (delivery,) = bench.take(consumer, 1, 60.0)
            delays.append(time.monotonic() - float(transport.unpack(delivery.raw).body))
            consumer.settle([Settlement(delivery.tag)])
        assert sender.wait(30) == 0
        sender.communicate()
        rounds.append(delays)
        if sorted(delays)[15] < 1.0:
            return
    pytest.fail(f"polling would take half of {consumer_module.IDLE_S} s: {rounds}")


def test_a_busy_consumer_is_not_woken(transport: SqliteTransport, bench: Bench, open_consumer: Open) -> None:
    transport.send([make_payload("q") for _ in range(3)])
    consumer = open_consumer()
    assert len(consumer.receive(2)) == 2  # as many as it asked for: it has no room until it asks again
    transport.send([make_payload("q")])
    started = time.monotonic()
    bench.sleep(consumer, 0.3)
    assert time.monotonic() - started > 0.25


def test_a_message_for_much_later_wakes_nobody(transport: SqliteTransport, bench: Bench, open_consumer: Open) -> None:
    consumer = open_consumer()
    assert consumer.receive(1) == []
    transport.send([make_payload("q", due=time.time() + 60)])
    started = time.monotonic()
    bench.sleep(consumer, 0.3)
    assert time.monotonic() - started > 0.25
    transport.send([make_payload("q", due=time.time() + 0.4)])
    assert len(bench.take(consumer, 1)) == 1


# -- the file ---------------------------------------------------------------------------------------------


def test_other_schemes_are_left_to_others() -> None:
    assert celeriac_make_transport("redis://localhost", {}) is None


@pytest.mark.parametrize(("durability", "level"), [("process", 1), ("host", 2)])
def test_durability_is_a_matter_of_the_url_or_the_options(path: Path, durability: str, level: int) -> None:
    for transport in (
        SqliteTransport(f"sqlite:///{path}?durability={durability}", {}),
        SqliteTransport(f"sqlite:///{path}", {"durability": durability}),
    ):
        with transport.database.connection() as conn:
            assert conn.execute("PRAGMA synchronous").fetchone() == (level,)
            assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        transport.close()


def test_a_missing_folder_is_named_with_the_command_that_makes_it(tmp_path: Path, bench: Bench) -> None:
    transport = SqliteTransport(f"sqlite:///{tmp_path}/no/queue.db", {})
    message = rf"folder {tmp_path}/no does not exist.*mkdir -p {tmp_path}/no"
    for verb in (
        lambda: transport.send([make_payload("q")]),
        lambda: transport.consumer([QueueSpec("q")], owner="w", poller=bench, window=1),
        lambda: transport.ping(1),
        lambda: transport.depth("q"),
    ):
        with pytest.raises(TransportUnreachable, match=message):
            verb()


def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    path.write_text("These are my notes, and they are long enough not to be taken for an empty file.\n" * 20)
    before = path.read_bytes()
    with pytest.raises(TransportUnreachable, match=r"queue.db is not a SQLite database"):
        SqliteTransport(f"sqlite:///{path}", {}).send([make_payload("q")])
    assert path.read_bytes() == before


def test_a_folder_in_the_file_s_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(TransportUnreachable, match="is a folder"):
        SqliteTransport(f"sqlite:///{tmp_path}", {}).ping(1)


def test_a_wake_folder_that_cannot_be_used_is_named(path: Path, transport: SqliteTransport, bench: Bench) -> None:
    transport.ping(1)
    Path(folder_of(str(path))).write_text("in the way")
    with pytest.raises(TransportUnreachable, match=r"listener's files cannot be made in .*queue\.db\.wake"):
        transport.consumer([QueueSpec("q")], owner="w", poller=bench, window=1)
    transport.send([make_payload("q")])


def test_a_lock_that_stays_ends_in_an_error_within_the_timeout(
    transport: SqliteTransport, path: Path, open_consumer: Open
) -> None:
    transport.send([make_payload("q")])
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.raises(TransportLost, match=r"was locked by another process for 0\.3 seconds.*fuser"):
        transport.send([make_payload("q")], timeout_s=0.3)
    with pytest.raises(TransportUnreachable, match=r"was locked by another process for 0\.2 seconds"):
        transport.ping(0.2)
    assert time.monotonic() - started < 15
    writer.execute("ROLLBACK")
    writer.close()
    transport.send([make_payload("q")])
    assert transport.depth("q") == 2


def test_a_reader_waits_while_another_process_has_the_file_for_itself(path: Path) -> None:
    transport = SqliteTransport(f"sqlite:///{path}", {})
    transport.send([make_payload("q")])
    transport.close()
    hermit = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    hermit.execute("PRAGMA locking_mode=EXCLUSIVE")
    hermit.execute("BEGIN IMMEDIATE")
    hermit.execute("COMMIT")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(path, timeout=0).execute("SELECT 1 FROM celeriac_parts")
    timer = threading.Timer(0.3, hermit.close)
    timer.start()
    assert transport.depth("q") == 1
    timer.join()
    transport.close()


def test_a_worker_goes_on_beside_a_lock_and_gives_up_when_it_stays(
    transport: SqliteTransport, path: Path, bench: Bench, open_consumer: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "PATIENCE_S", 0.05)
    transport.send([make_payload("q"), make_payload("q")])
    consumer = open_consumer()
    (delivery,) = consumer.receive(1)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    consumer.settle([Settlement(delivery.tag)])
    assert consumer.receive(1) == []
    assert consumer.receive(0) == []
    writer.execute("ROLLBACK")
    assert len(bench.take(consumer, 1)) == 1
    monkeypatch.setattr(consumer_module, "LOCK_TIMEOUT_S", 0.6)
    writer.execute("BEGIN IMMEDIATE")
    consumer.settle([])
    with pytest.raises(TransportLost, match="was locked"):
        bench.take(consumer, 1)
    writer.execute("ROLLBACK")
    writer.close()
    assert peek(path, "SELECT count(*) FROM celeriac_messages") == [(1,)]


def test_B29_close_is_bounded_however_long_a_lock_stays(
    transport: SqliteTransport, path: Path, bench: Bench, open_consumer: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "CLOSE_S", 0.4)
    transport.send([make_payload("q"), make_payload("q")])
    consumer = open_consumer()
    first, _ = consumer.receive(2)
    consumer.settle([Settlement(first.tag)])
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    consumer.close()
    assert time.monotonic() - started < 20  # not the 30 s for which others wait
    writer.execute("ROLLBACK")
    writer.close()
    other = Bench()
    assert len(other.take(open_consumer(poller=other), 2)) == 2


def test_B3_a_full_disk_refuses_the_message_and_keeps_what_there_is(
    transport: SqliteTransport, open_consumer: Open, bench: Bench
) -> None:
    transport.send([make_payload("q")])
    with transport.database.connection() as conn:  # the one that is used next, too
        (pages,) = conn.execute("PRAGMA page_count").fetchone()
        conn.execute(f"PRAGMA max_page_count = {pages + 3}")
    with pytest.raises(PublishRejected, match="no room"):
        transport.send([make_payload("q", os.urandom(100_000))])
    assert len(bench.take(open_consumer(), 1)) == 1


def test_B30_a_file_that_was_removed_is_noticed(
    transport: SqliteTransport, path: Path, bench: Bench, open_consumer: Open
) -> None:
    transport.send([make_payload("q")])
    consumer = open_consumer()
    for suffix in ("", "-wal", "-shm"):
        os.unlink(f"{path}{suffix}")
    with pytest.raises(TransportLost, match="removed or replaced"):
        bench.take(consumer, 2)
    consumer.close()
    transport.send([make_payload("q")])
    assert len(bench.take(open_consumer(), 1)) == 1


def test_tables_of_a_newer_version_are_refused(transport: SqliteTransport, path: Path) -> None:
    transport.ping(1)
    transport.close()
    peek(path, "UPDATE celeriac_parts SET version = 99")
    with pytest.raises(TransportUnreachable, match="have version 99, this celeriac reads 2"):
        SqliteTransport(f"sqlite:///{path}", {}).ping(1)


OPENER = """
import sys
from celeriac.testing.broker_suite import make_payload
from celeriac.testing.kit import make_transport
make_transport("celeriac_broker_sqlite", sys.argv[1]).send([make_payload("q")])
"""


def test_many_processes_may_open_a_fresh_file_at_once(transport: SqliteTransport, path: Path) -> None:
    openers = [run_python(OPENER, f"sqlite:///{path}") for _ in range(6)]
    for opener in openers:
        opener.communicate()
        assert opener.returncode == 0
    assert transport.depth("q") == 6


def test_B28_no_descriptor_of_a_connection_is_used_after_a_fork(transport: SqliteTransport) -> None:
    transport.send([make_payload("q")])
    with transport.database.connection() as conn:
        parents = id(conn)
    pid = os.fork()
    if pid == 0:  # pragma: no cover - runs in the child
        # Even if nobody called after_fork.
        with transport.database.connection() as conn:
            os._exit(0 if id(conn) != parents else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_B28_a_child_never_closes_what_it_inherited(
    transport: SqliteTransport, path: Path, open_consumer: Open, bench: Bench
) -> None:
    consumer = open_consumer()
    transport.send([make_payload("q")])
    pid = os.fork()
    if pid == 0:  # pragma: no cover - runs in the child
        code = 1
        try:
            inherited = consumer._conn
            transport.after_fork()
            transport.database.disconnect(inherited)
            transport.close()
            inherited.execute("SELECT 1")  # still open: closing it would raise here
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    (delivery,) = bench.take(consumer, 1)
    consumer.settle([Settlement(delivery.tag)])
    consumer.flush(30)
    assert peek(path, "SELECT count(*) FROM celeriac_messages") == [(0,)]


@pytest.mark.parametrize(("is_killed", "spared"), [(False, 1), (True, 0)], ids=["alive", "killed"])
def test_B14_a_worker_whose_signs_of_life_somebody_removed_has_not_crashed_unless_it_is_dead(
    transport: SqliteTransport, path: Path, bench: Bench, open_consumer: Open, is_killed: bool, spared: int
) -> None:
    transport.send([make_payload("q")])
    victim = run_python(FORKING_VICTIM, f"sqlite:///{path}")
    assert victim.stdout is not None
    child = int(victim.stdout.readline())
    try:
        if is_killed:
            victim.kill()  # and nobody has asked how it ended: a zombie is dead, too
            eventually(lambda: b") Z" in Path(f"/proc/{victim.pid}/stat").read_bytes())
        for left in Path(folder_of(str(path))).glob(f"{victim.pid}-*"):
            left.unlink()
        transport.lease_s = transport.lease_s if is_killed else 1.0  # so long its process has to give a sign
        (delivery,) = bench.take(open_consumer(), 1)
        assert (delivery.attempt, delivery.redelivered, delivery.spared) == (2, True, spared)
    finally:
        os.kill(child, signal.SIGKILL)
        victim.kill()
        victim.wait()
        victim.stdout.close()


def test_B12_a_worker_whose_signs_of_life_somebody_removed_keeps_what_it_holds(
    transport: SqliteTransport, path: Path, bench: Bench, open_consumer: Open
) -> None:
    other = SqliteTransport(f"sqlite:///{path}", {})
    transport.lease_s = other.lease_s = 3600.0
    try:
        transport.send([make_payload("q")])
        owner, poller = open_consumer(), Bench()
        (held,) = bench.take(owner, 1)
        watcher = other.consumer([QueueSpec("q")], owner="watcher", poller=poller, window=8)
        shutil.rmtree(folder_of(str(path)))
        for consumer in (watcher, owner, watcher):
            consumer._tend_at = 0.0
            assert not consumer.receive(8)
            assert consumer.renew() == []
        assert len(list(Path(folder_of(str(path))).glob("*.page"))) == 2
        owner.settle([Settlement(held.tag)])
        owner.flush(10)
        assert peek(path, "SELECT count(*) FROM celeriac_messages") == [(0,)]
        owner.close()
        other.send([make_payload("q")])
        assert len(poller.take(watcher, 1)) == 1
        watcher.close()
    finally:
        other.close()


def test_a_user_s_own_tables_may_stand_in_the_same_file(path: Path, transport: SqliteTransport) -> None:
    peek(path, "CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    transport.send([make_payload("q")])
    assert peek(path, "SELECT count(*) FROM orders") == [(0,)]
    assert transport.depth("q") == 1


def test_a_listener_whose_folder_was_removed_is_lost_rather_than_deaf(
    transport: SqliteTransport, path: Path, bench: Bench
) -> None:
    exchange = ExchangeSpec("kit", "fanout")
    listener = transport.listen(exchange, QueueSpec("q"), poller=bench)
    try:
        transport.broadcast(exchange, [make_payload("q"), make_payload("q")])
        assert len(listener.receive(10)) == 2
        shutil.rmtree(folder_of(str(path)))
        transport.broadcast(exchange, [make_payload("q")])
        with pytest.raises(TransportLost, match="was removed or replaced"):
            listener.receive(10)
    finally:
        listener.close()
