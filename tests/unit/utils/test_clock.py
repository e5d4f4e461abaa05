"""The clock that processes without a common time set by each other."""

from __future__ import annotations

from celeriac.utils.clock import LamportClock


def test_it_is_beyond_what_others_have_seen_and_believes_no_nonsense() -> None:
    clock = LamportClock()
    assert (clock.forward(), clock.adjust(7), clock.adjust(3)) == (1, 8, 9)
    assert clock.adjust(10**30) == 10, "what it shows goes into headers, which have room for 63 bits"
    assert clock.adjust(-5) == 11
