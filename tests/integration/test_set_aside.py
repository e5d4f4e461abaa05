"""What must not run again is set aside, on each broker: poison, unknown tasks, and bytes that are no call."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from tests.corpus import read_corpus
from tests.integration.conftest import BROKERS, CELERIAC, House, wait_until

from celeriac.exceptions import NotRegistered, Reject, WorkerLostError
from celeriac.spec import DeadLetter, Head, Payload, Route

pytestmark = pytest.mark.services


def set_aside(house: House, queue: str = "celery") -> list[DeadLetter]:
    letters: list[DeadLetter] = house.app.transport.browse_dead(queue)
    return letters


def test_B14_a_task_that_kills_its_whole_worker_is_set_aside_and_others_run(house: House) -> None:
    limits = {"SUITE_CRASHES": "2", "SUITE_RETURNS": "2"}
    poison = house.send("die", "kill", "poison")
    others = [house.send("add", n, n) for n in range(20)]
    for _ in range(8):
        worker = house.worker("-P", "solo", "-c", "1", ready=False, **limits)
        wait_until(lambda worker=worker: worker.process.poll() is not None or set_aside(house), 60, "a death or an end")
        if worker.process.poll() is None:
            break
        assert worker.process.returncode == -signal.SIGKILL, worker.log[-2000:]
    with pytest.raises(WorkerLostError, match="Not run again: "):
        poison.get(timeout=30)
    assert [other.get(timeout=30) for other in others] == [2 * n for n in range(20)]
    (letter,) = wait_until(lambda: set_aside(house))
    assert letter.reason.startswith(("crash: it was lost 2 times", "returned too often: it came back 2 times"))
    assert 2 <= house.ran().count("die poison") <= 5


def test_B14_a_task_that_gives_itself_back_is_counted_over_workers(house: House) -> None:
    result = house.send("give_back")
    first = house.worker(SUITE_RETURNS="1000000")
    wait_until(lambda: len(house.ran()) >= 6)
    first.stop()
    ran = len(house.ran())
    assert house.ran()[:2] == ["give_back False", "give_back True"]
    house.worker(SUITE_RETURNS="5")
    with pytest.raises((Reject, Exception), match="returned too often"):
        result.get(timeout=30)
    assert len(house.ran()) <= ran + 1
    (letter,) = wait_until(lambda: set_aside(house))
    assert letter.reason.startswith("returned too often: ")


def test_M3_patience_with_an_unknown_task_survives_the_worker(house: House) -> None:
    result = house.send("nobody_knows")
    first = house.worker(SUITE_PATIENCE="600")
    first.wait_for("unregistered task")
    first.stop()
    head_of = house.app.transport.read_head
    second = house.worker(SUITE_PATIENCE="0.01")
    with pytest.raises((NotRegistered, Exception), match="nobody_knows"):
        result.get(timeout=30)
    assert "offered to other workers" not in second.log, "the first worker's patience counts for the second"
    (letter,) = wait_until(lambda: set_aside(house))
    assert letter.reason.startswith("unknown task")
    head = head_of(letter.raw)
    assert isinstance(head, Head)
    assert head.task == "suite_app.nobody_knows"


@pytest.fixture(scope="module", params=BROKERS)
def fed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house whose worker is fed with everything, for all tests of one broker."""
    place = tmp_path_factory.mktemp("fed")
    kind = request.param
    if kind == "sqlite":
        url = f"sqlite:///{place}/suite.db"
        made = House(place, url, url)
    else:
        service = request.getfixturevalue("redis_service" if kind == "redis" else "rabbitmq_service")
        url = service.fresh_url()
        made = House(place, url, url if kind == "redis" else "rpc://")
    made.worker("-c", "1")
    yield made
    made.close()


def call(task: str = "suite_app.add", body: bytes = b"[[1, 2], {}, {}]", **fields: Any) -> Payload:
    headers = {"lang": "py", "task": task, "id": os.urandom(8).hex(), "retries": 0, **fields.pop("headers", {})}
    return Payload(body, fields.pop("content_type", "application/json"), "utf-8", headers, fields, Route("celery"))


BOMBS = {
    "zeros": zlib.compress(b"[" + b"0," * 10_000_000 + b"0]"),
    "lists": zlib.compress(b"[" + b"[]," * 2_500_000 + b"[]]"),
}
HOSTILE = {
    "not JSON": call(body=b"\xff\xfe\x00"),
    "no call": call(body=b"17"),
    "args no list": call(body=b'[{"a": 1}, {}, {}]'),
    "kwargs no object": call(body=b"[[], [], {}]"),
    "deep": call(body=b"[" * 1_000_000),
    "digits": call(body=b"[[" + b"9" * 1_000_000 + b"], {}, {}]"),
    "unknown content type": call(content_type="application/x-\x00unknown"),
    "unsafe content type": call(body=b"cos\nsystem\n", content_type="application/x-python-serialize"),
    "unknown compression": call(headers={"compression": "application/x-nothing"}),
    "broken compression": call(headers={"compression": "application/x-gzip"}),
    "compression no text": call(headers={"compression": [1]}),
    "bomb of zeros": call(body=BOMBS["zeros"], headers={"compression": "application/x-gzip"}),
    "bomb of lists": call(body=BOMBS["lists"], headers={"compression": "application/x-gzip"}),
    "eta no time": call(headers={"eta": "\x00soon"}),
    "many headers": call(headers={f"h{n}": n for n in range(300)}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_B26_a_hostile_message_is_set_aside_and_the_next_task_runs(fed: House, what: str) -> None:
    payload = HOSTILE[what]
    before = {letter.id for letter in set_aside(fed)}
    fed.app.transport.send([payload])
    assert fed.send("add", 20, 22).get(timeout=30) == 42
    (letter,) = wait_until(lambda: [one for one in set_aside(fed) if one.id not in before])
    assert payload.body in (letter.raw, _body(fed, letter)) or payload.headers["id"].encode() in letter.raw
    assert letter.reason
    assert fed.workers[0].process.poll() is None


def _body(house: House, letter: DeadLetter) -> bytes:
    try:
        body: bytes = house.app.transport.unpack(letter.raw).body
    except ValueError:
        return b""
    return body


def test_B26_any_bytes_as_an_entry_are_set_aside_as_they_are(fed: House) -> None:
    corpus = [entry for entry in read_corpus("envelope") if 0 < len(entry) < 200_000]
    inject(fed, corpus)
    assert fed.send("add", 20, 22).get(timeout=30) == 42
    kept = wait_until(lambda: _all_kept(fed, corpus), 60, "every entry of the corpus")
    assert kept
    assert fed.workers[0].process.poll() is None


def _all_kept(house: House, corpus: list[bytes]) -> bool:
    letters: list[DeadLetter] = house.app.transport.browse_dead("celery", limit=10_000)
    raws = {letter.raw for letter in letters} | {_body(house, letter) for letter in letters}
    return all(entry in raws for entry in corpus)


def inject(house: House, entries: list[bytes]) -> None:
    """Put bytes in the queue `celery` that no client of ours would send."""
    if house.broker.startswith("sqlite"):
        import sqlite3

        with sqlite3.connect(house.place / "suite.db", timeout=30) as conn:
            for entry in entries:
                (id,) = conn.execute("INSERT INTO celeriac_messages (raw) VALUES (?) RETURNING id", (entry,)).fetchone()
                conn.execute("INSERT INTO celeriac_ready VALUES ('celery', 0, ?, 1, 0)", (id,))
        conn.close()
    elif house.broker.startswith("redis"):
        from celeriac_support_redis.wire import connect, parse_url

        wire = connect(parse_url(house.broker)[0])
        wire.call("LPUSH", "celery", *entries)
        wire.close()
    else:
        import amqp
        from kombu import Connection

        with Connection(house.broker) as connection:
            channel = connection.channel()
            for entry in entries:
                channel.basic_publish(amqp.Message(entry, headers={"id": ["no text"]}), routing_key="celery")
            channel.close()


def test_the_command_shows_and_drops_them(sqlite_house: House) -> None:
    house = sqlite_house
    house.worker("-c", "1", SUITE_PATIENCE="0")
    house.app.transport.send([call("suite_app.nobody")])
    wait_until(lambda: set_aside(house))

    def dead(*words: str) -> str:
        command = [CELERIAC, "-A", "suite_app", "dead", *words]
        env = {**os.environ, **house.env}
        return subprocess.run(command, cwd=house.place, env=env, check=True, capture_output=True, text=True).stdout

    (entry,) = json.loads(dead("list", "--json"))
    assert entry["task"] == "suite_app.nobody"
    assert dead("drop", "--all", "--force") == "Dropped 1 message.\n"
    assert set_aside(house) == []
