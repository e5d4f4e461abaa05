"""The end of a worker, in phases that only go forward: warm, soft, cold (D1 to D5).

`Worker` runs this once it was asked to stop; how often it was asked says how far it may go. Tests run it on a clock
of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from celeriac.spec.data import JobReport
from celeriac.worker.clock import SYSTEM, Clock

if TYPE_CHECKING:
    from celeriac.worker.consumer import Loop

#: An idle child may take so long to end; a busy one, in a cold shutdown, none before it gets its signal.
IDLE_GRACE_S: Final = 2.0
#: How long the last settlements may take: after a warm end, and after a cold one (which must be over in 5 s).
SETTLE_S: Final = 5.0
COLD_SETTLE_S: Final = 2.0

_log = logging.getLogger("celeriac.worker")


class Ended(NamedTuple):
    """How it went.

    Attributes:
        finished: Deliveries that were ended in its life.
        returned: … given back unstarted.
        forced: Tasks that were given up while they ran, and results that could not be stored: these run again.
    """

    finished: int
    returned: int
    forced: int


class Stops(Protocol):
    """The part of a pool that is needed here."""

    def stop(self, *, grace_s: float) -> list[JobReport]:
        """See `Pool.stop`."""


def wind_down(
    loop: Loop,
    pool: Stops,
    turn: Callable[[], None],
    asked: Callable[[], int],
    *,
    grace_s: float | None,
    soft_s: float,
    soft_when_idle: bool = False,
    clock: Clock = SYSTEM,
) -> Ended:
    """End the worker's work: nothing that is finished runs again, nothing that is not is lost.

    Args:
        turn: One turn of the loop.
        asked: How often the worker was asked to stop so far: 1 warmly; 2 ends waiting; 3 ends the soft phase too.
        grace_s: How long running tasks may go on; None: until they end.
        soft_s: How long they may go on after that, or after the second request.
        soft_when_idle: That long is waited before a cold end in any case, also when nothing runs.
    """
    # Warm. First no new work; reports still come, so settling lives on; the link goes last: acks travel on it.
    loop.stop_receiving()
    _let_finish(loop, turn, asked, grace_s, 2, clock)
    # Cold, but softly where the app says so: a last while for what still runs.
    loop.lingers = soft_when_idle and (len(loop.flights) > 0 or asked() >= 2)
    _let_finish(loop, turn, asked, soft_s, 3, clock)
    left = len(loop.flights)
    if left:
        _log.warning("Cold shutdown: %d running tasks are given up; their messages go back to the queue.", left)
    last: Sequence[JobReport] = pool.stop(grace_s=0.0 if left else IDLE_GRACE_S)
    given_up = loop.close(last, COLD_SETTLE_S if left else SETTLE_S)
    return Ended(loop.endings.finished, loop.endings.given_back, given_up)


def _let_finish(
    loop: Loop, turn: Callable[[], None], asked: Callable[[], int], seconds: float | None, until: int, clock: Clock
) -> None:
    """Go on until nothing runs (and the loop does not linger), the seconds are over (None: no bound), or it was asked
    to stop so often."""
    ends = None if seconds is None else clock.monotonic() + seconds
    while (len(loop.flights) or loop.lingers) and asked() < until and (ends is None or clock.monotonic() < ends):
        turn()
