"""The conformance suite of shared state (`docs/plugins/state.md`), for brokers and backends with the ability `state`.

For a plugin's own tests::

    class TestMyState(StateConformance):
        @pytest.fixture
        def states(self):
            # two ways to one store, as two processes have them
            yield first.state(), second.state()
"""

from __future__ import annotations

import threading
import time
import uuid

import pytest

from celeriac.spec import ABSENT, Change, Entry, SharedState
from celeriac.testing.kit import eventually

__all__ = ["StateConformance"]

Pair = tuple[SharedState, SharedState]
BYTES = [b"", b" ", b"\x00\xff 1 2 ", "ä".encode(), b"x" * 100_000]
KEYS = ["plain", "with space", "ä", "a:b/c.d", "x" * 255]


class StateConformance:
    """Subclass it in a plugin's tests and give it `states`."""

    @pytest.fixture
    def states(self) -> Pair:
        raise NotImplementedError("give two `SharedState` of one store: a fixture `states`")

    @pytest.fixture
    def space(self) -> str:
        return f"kit-{uuid.uuid4().hex[:12]}"

    def test_an_unknown_space_is_empty(self, states: Pair, space: str) -> None:
        snapshot = states[0].read(space)
        assert (snapshot.version, snapshot.entries) == (0, {})
        assert states[0].version(space) == 0

    @pytest.mark.parametrize("value", BYTES, ids=lambda value: f"{len(value)} bytes")
    def test_what_one_writes_the_other_reads(self, states: Pair, space: str, value: bytes) -> None:
        version = states[0].write(space, [Change(key, value) for key in KEYS])
        assert version
        snapshot = states[1].read(space)
        assert snapshot.version == version == states[1].version(space)
        assert snapshot.entries == dict.fromkeys(KEYS, Entry(value, version))
        assert set(states[1].read(space, [KEYS[2], "nobody"]).entries) == {KEYS[2]}
        assert states[1].read(space, []).entries == {}

    def test_spaces_are_apart(self, states: Pair, space: str) -> None:
        states[0].write(space, [Change("key", b"here")])
        states[0].write(f"{space}-2", [Change("key", b"there")])
        assert states[1].read(space).entries["key"].value == b"here"

    def test_a_removed_entry_is_gone_and_the_version_tells(self, states: Pair, space: str) -> None:
        first = states[0].write(space, [Change("a", b"1"), Change("b", b"2")])
        second = states[0].write(space, [Change("a", None), Change("never there", None)])
        assert first
        assert second
        assert second > first
        snapshot = states[1].read(space)
        assert snapshot.version == second
        assert {key: entry.version for key, entry in snapshot.entries.items()} == {"b": first}

    def test_a_condition_that_does_not_hold_changes_nothing(self, states: Pair, space: str) -> None:
        first = states[0].write(space, [Change("a", b"1")], given={"a": ABSENT})
        assert first
        assert states[1].write(space, [Change("a", b"2"), Change("b", b"2")], given={"a": ABSENT}) is None
        assert states[1].write(space, [Change("b", b"2")], given={"a": first + 1}) is None
        assert states[1].write(space, [Change("b", b"2")], given={"a": first, "c": first}) is None
        snapshot = states[1].read(space)
        assert snapshot.version == first
        assert set(snapshot.entries) == {"a"}
        second = states[1].write(space, [Change("a", b"2")], given={"a": first, "c": ABSENT})
        assert second
        assert states[0].write(space, [Change("a", b"3")], given={"a": first}) is None

    def test_a_fence_may_stand_on_a_key_that_is_not_changed(self, states: Pair, space: str) -> None:
        leader = states[0].write(space, [Change("leader", b"me")])
        assert leader
        assert states[0].write(space, [Change("work", b"1")], given={"leader": leader})
        assert states[1].write(space, [Change("leader", b"you")])
        assert states[0].write(space, [Change("work", b"2")], given={"leader": leader}) is None
        assert states[0].read(space).entries["work"].value == b"1"

    def test_an_entry_expires_by_the_clock_of_the_store(self, states: Pair, space: str) -> None:
        entries = [Change("brief", b"1", ttl_s=0.3), Change("long", b"1", ttl_s=600), Change("ever", b"1")]
        version = states[0].write(space, entries)
        snapshot = states[1].read(space)
        expires = snapshot.entries["long"].expires
        assert expires is not None
        assert 500 < expires - snapshot.now <= 600
        eventually(lambda: set(states[1].read(space).entries) == {"long", "ever"})
        assert states[1].version(space) == version
        assert states[0].write(space, [Change("brief", b"2")], given={"brief": ABSENT})
        time.sleep(0.4)
        assert states[1].read(space).entries["brief"].value == b"2"  # the first one's end is not this one's

    def test_an_entry_written_again_lives_by_its_new_end(self, states: Pair, space: str) -> None:
        states[0].write(space, [Change("a", b"1", ttl_s=0.2), Change("b", b"1", ttl_s=0.2)])
        states[0].write(space, [Change("a", b"2", ttl_s=600)])
        eventually(lambda: "b" not in states[1].read(space).entries)
        assert states[1].read(space).entries["a"].value == b"2"

    def test_of_many_who_want_a_key_one_gets_it(self, states: Pair, space: str) -> None:
        won: list[int] = []
        barrier = threading.Barrier(8)

        def try_for_it(number: int) -> None:
            barrier.wait()
            for round_number in range(10):
                if states[number % 2].write(
                    space, [Change(f"{round_number}", b"x")], given={f"{round_number}": ABSENT}
                ):
                    won.append(round_number)

        threads = [threading.Thread(target=try_for_it, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == list(range(10))

    def test_counting_by_conditions_loses_nothing(self, states: Pair, space: str) -> None:
        def count(state: SharedState) -> None:
            done = 0
            while done < 10:
                found = state.read(space, ["n"]).entries.get("n")
                value, version = (int(found.value), found.version) if found else (0, ABSENT)
                if state.write(space, [Change("n", b"%d" % (value + 1))], given={"n": version}):
                    done += 1

        threads = [threading.Thread(target=count, args=(states[number % 2],)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert states[0].read(space).entries["n"].value == b"40"
