"""Results before messages before acks, also while the result store is away; and nothing for what is no longer ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from celeriac.exceptions import BackendLost, PublishRejected, TransportLost
from celeriac.spec.data import PUBLISH_TRY_HEADER, Payload, Route, Settlement, StoredResult
from celeriac.worker.clock import Clock
from celeriac.worker.settle import Settler, Unsent
from celeriac.worker.spool import MAX_TRIES, Ending, Spool


class Ledger:
    """A consumer and a result store that write down what they are asked for, in one list."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.is_away = self.is_cut = self.is_silent = self.is_broken = False
        self.is_stale = False
        self.refused: set[str] = set()
        self.unroutable: set[str] = set()

    def store(self, batch: Sequence[StoredResult]) -> None:
        if self.is_away or self.refused & {result.task_id for result in batch}:
            raise BackendLost("away")
        if self.is_broken:
            raise ZeroDivisionError("a fault of the plugin's")
        self.done += [f"store {result.task_id}" for result in batch]

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        if self.is_cut:
            raise TransportLost("cut")
        if self.unroutable & {payload.headers["id"] for payload in publish}:
            raise PublishRejected("nowhere")
        if self.is_stale and batch:
            return
        self.done += [f"store {result.task_id}" for result in joined or ()]
        self.done += [f"publish {payload.headers['id']}" for payload in publish]
        self.done += [f"{settlement.verb} {settlement.tag}" for settlement in batch]

    def flush(self, timeout_s: float) -> None:
        if self.is_silent:
            raise TransportLost("no answer")

    def commands(self, batch: Sequence[StoredResult]) -> Any:
        return batch


class Bench:
    """A settler between two ledgers, on a clock that the test moves."""

    def __init__(self, *, joint: bool = False, **bounds: int) -> None:
        self.ledger = Ledger()
        self.now = 100.0
        self.aside: list[Callable[[], None]] = []
        clock = Clock(monotonic=lambda: self.now, uniform=lambda low, high: high, aside=self.aside.append)
        self.settler = Settler(self.ledger, self.ledger, joint=joint, spool=Spool(**bounds), clock=clock)  # type: ignore[arg-type]

    def end(self, tag: str, *, result: bool = True, follows: bool = False, owned: bool = False) -> None:
        stored = [StoredResult(tag, "SUCCESS", b"12345")] if result else []
        publish = [Payload(b"", "", "", {"id": f"after-{tag}"}, {}, Route("q"))] if follows else []
        self.settler.add(None if owned else Settlement(tag), stored, publish, owned)

    def pass_by(self, seconds: float = 30.0) -> None:
        """So much time passes; tries that run beside the loop end, and the loop has its turns."""
        for _ in range(int(seconds / 0.5)):
            self.settler.perform()
            while self.aside:
                self.aside.pop(0)()
            self.now += 0.5
        self.settler.perform()


def test_results_go_before_the_messages_that_follow_and_these_before_the_ack() -> None:
    bench = Bench()
    bench.end("a", follows=True)
    bench.settler.perform()
    assert bench.ledger.done == ["store a", "publish after-a", "ack a"]


def test_while_the_store_is_away_endings_wait_for_it_in_order_and_those_without_a_result_do_not() -> None:
    bench = Bench()
    bench.ledger.is_away = True
    for tag in "abc":
        bench.end(tag, follows=True)
        bench.settler.perform()
    bench.end("d", result=False, follows=True)
    bench.pass_by()
    assert bench.ledger.done == ["publish after-d", "ack d"]
    assert bench.settler.left() == 3
    bench.ledger.is_away = False
    bench.pass_by(10)
    done = bench.ledger.done[2:]
    for tag in "abc":
        assert done.index(f"store {tag}") < done.index(f"publish after-{tag}") < done.index(f"ack {tag}")
    assert sorted(word for word in done if word.startswith("ack")) == ["ack a", "ack b", "ack c"]
    assert bench.settler.trouble is None
    assert bench.settler.retry_in() is None


def test_it_blocks_when_the_spool_is_full_by_number_or_by_size_and_not_before() -> None:
    several: list[dict[str, Any]] = [{"max_results": 3}, {"max_bytes": 15}]
    for bounds in several:
        bench = Bench(**bounds)
        bench.ledger.is_away = True
        for tag in "ab":
            bench.end(tag)
        bench.settler.perform()
        assert not bench.settler.blocked, "there is room for more"
        bench.end("c")
        bench.settler.perform()
        assert bench.settler.blocked
        bench.ledger.is_away = False
        bench.pass_by(10)
        assert not bench.settler.blocked
        assert "ack c" in bench.ledger.done


def test_a_store_that_does_not_answer_does_not_hold_up_the_loop() -> None:
    bench = Bench()
    bench.ledger.is_away = True
    bench.end("a")
    bench.settler.perform()
    bench.now += 10
    bench.settler.perform()
    assert len(bench.aside) == 1
    for _ in range(5):
        bench.now += 10
        bench.settler.perform()
    assert len(bench.aside) == 1, "one try at a time"
    bench.end("b", result=False)
    bench.settler.perform()
    assert bench.ledger.done == ["ack b"]


def test_one_result_that_is_always_refused_holds_up_no_other_and_its_message_is_set_aside() -> None:
    bench = Bench()
    bench.ledger.refused = {"bad"}
    bench.end("bad", follows=True)
    bench.end("good")
    bench.pass_by()
    assert bench.ledger.done == ["store good", "ack good"], "it may yet be taken, so it waits"
    for n in range(MAX_TRIES + 1):
        bench.end(f"g{n}")
        bench.pass_by(20)
    assert "dead bad" in bench.ledger.done
    assert "publish after-bad" not in bench.ledger.done
    assert all(f"ack g{n}" in bench.ledger.done for n in range(MAX_TRIES + 1))


def test_what_the_store_has_refused_for_long_holds_up_nothing_that_comes_later() -> None:
    bench = Bench()
    bench.ledger.refused = {"bad"}
    bench.end("bad")
    bench.end("first")
    bench.pass_by(20)
    for n in range(3):
        bench.end(f"g{n}")
        bench.pass_by(3)
        assert f"ack g{n}" in bench.ledger.done, "the pauses of the one that is refused have grown beyond this"
        bench.pass_by(10)
    bench.ledger.is_away = True
    tries = len(bench.ledger.done)
    for n in range(100):
        bench.end(f"h{n}")
    bench.pass_by(2)
    assert bench.settler.left() == 101
    assert len(bench.ledger.done) == tries


def test_nothing_is_stored_sent_or_settled_for_a_lease_that_is_lost() -> None:
    bench = Bench()
    bench.ledger.is_away = True
    bench.end("lost", follows=True)
    bench.end("held")
    bench.settler.perform()
    bench.end("lost too")
    bench.settler.forget({"lost", "lost too"})
    bench.ledger.is_away = False
    bench.pass_by(10)
    assert bench.ledger.done == ["store held", "ack held"]
    assert bench.settler.trouble is None


def test_a_spool_tells_what_must_outlive_the_connection() -> None:
    bench = Bench()
    bench.ledger.is_away = True
    bench.end("comes again")
    bench.end("does not", owned=True)
    bench.settler.perform()
    owned: list[Ending] = bench.settler.owned()
    assert [ending[1][0].task_id for ending in owned] == ["does not"]


@pytest.mark.parametrize("joint", [False, True], ids=["apart", "joint"])
@pytest.mark.parametrize("trouble", ["is_cut", "is_silent"])
def test_what_follows_from_a_call_that_was_acknowledged_before_it_ran_outlives_a_cut_in_its_midst(
    joint: bool, trouble: str
) -> None:
    bench = Bench(joint=joint)
    setattr(bench.ledger, trouble, True)
    bench.end("early", follows=True, owned=True)
    bench.end("late", follows=True)
    with pytest.raises(TransportLost):
        bench.settler.perform()
    ((settlement, stored, publish, owned),) = bench.settler.owned()
    assert (settlement, stored[0].task_id, owned) == (None, "early", True)
    assert publish[0].headers == {"id": "after-early", PUBLISH_TRY_HEADER: 2}, "it may be out"


@pytest.mark.parametrize("joint", [False, True], ids=["apart", "joint"])
def test_what_the_broker_has_is_kept_no_longer(joint: bool) -> None:
    bench = Bench(joint=joint)
    bench.end("early", follows=True, owned=True)
    bench.settler.perform()
    assert bench.settler.owned() == []


def test_a_fault_of_the_store_s_plugin_is_trouble_like_others() -> None:
    bench = Bench()
    bench.ledger.is_broken = True
    bench.end("a")
    bench.pass_by(5)
    assert bench.settler.left() == 1
    assert (
        str(bench.settler.trouble) == f"{__name__.partition('.')[0]} raised ZeroDivisionError: a fault of the plugin's"
    )
    bench.ledger.is_broken = False
    bench.pass_by()
    assert bench.ledger.done == ["store a", "ack a"]


@pytest.mark.parametrize("joint", [True, False])
def test_what_follows_from_a_call_acknowledged_before_does_not_hang_on_others_acknowledgements(joint: bool) -> None:
    """A batch of which nothing counts any more does nothing: its leases are lost, which nobody here knows yet."""
    bench = Bench(joint=joint)
    bench.ledger.is_stale = True
    bench.end("lost", follows=True)
    bench.end("own", follows=True, owned=True)
    bench.settler.perform()
    assert [word for word in bench.ledger.done if word.endswith("own")] == ["store own", "publish after-own"]
    assert "publish after-lost" not in bench.ledger.done


@pytest.mark.parametrize("joint", [True, False])
def test_a_delivery_is_set_aside_if_what_follows_from_it_has_nowhere_to_go_and_others_are_not(joint: bool) -> None:
    bench = Bench(joint=joint)
    bench.ledger.unroutable = {"after-a", "after-own"}
    for tag in "abc":
        bench.end(tag, follows=tag != "c")
    bench.end("own", follows=True, owned=True)
    bench.settler.perform()
    done = bench.ledger.done
    assert sorted(word for word in done if not word.startswith("store")) == [
        "ack b",
        "ack c",
        "dead a",
        "publish after-b",
    ]
    assert sorted(word for word in done if word.startswith("store")) == ["store a", "store b", "store c", "store own"]
    assert done.index("publish after-b") < done.index("ack b")
    assert bench.settler.owned() == []


@pytest.mark.parametrize("joint", [True, False])
def test_the_failure_of_what_has_nowhere_to_go_is_stored_and_so_is_that_of_its_errback(joint: bool) -> None:
    bench = Bench(joint=joint)
    bench.ledger.unroutable = {"after-a", "after-own", "errback-of-after-a"}

    def fail(settlement: Settlement | None, unsent: Sequence[Unsent]) -> None:
        for payload, _ in unsent:
            name = payload.headers["id"]
            errback = Payload(b"", "", "", {"id": f"errback-of-{name}"}, {}, Route("q"))
            publish = [] if name.startswith("errback") else [errback]
            bench.settler.add(settlement, [StoredResult(name, "FAILURE", b"")], publish, settlement is None)

    bench.settler._fail = fail
    bench.end("a", follows=True)
    bench.end("own", follows=True, owned=True)
    bench.settler.perform()
    done = bench.ledger.done
    failed = ["after-a", "errback-of-after-a", "after-own"]
    assert sorted(done) == sorted(
        [*(f"store {name}" for name in ("a", "own", *failed)), "publish errback-of-after-own", "dead a"]
    )
    assert joint or done.index("store errback-of-after-a") < done.index("dead a")
    assert not bench.settler.has_news


def test_of_several_calls_that_follow_only_those_fail_that_have_nowhere_to_go() -> None:
    bench = Bench()
    bench.ledger.unroutable = {"1"}
    failed: list[str] = []
    bench.settler._fail = lambda settlement, unsent: failed.extend(payload.headers["id"] for payload, _ in unsent)
    publish = [Payload(b"", "", "", {"id": str(n)}, {}, Route("q")) for n in range(3)]
    bench.settler.add(Settlement("a"), (), publish)
    bench.settler.perform()
    assert (bench.ledger.done, failed) == (["publish 0", "publish 2"], ["1"])
