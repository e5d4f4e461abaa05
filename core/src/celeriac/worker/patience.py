"""How long a worker waits for a broker that is away: `broker_connection_retry` and its kin.

`broker_connection_max_retries` counts as Celery does, whose tries are 2 s, 4 s … 30 s apart. A worker here tries more
often than that, so what is taken from the number is the time after which Celery's worker would have given up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

#: Of Celery's pauses: each is so much longer than the one before, up to the longest.
STEP_S: Final = 2.0
LONGEST_S: Final = 30.0


@dataclass(frozen=True)
class Patience:
    """See the module.

    Attributes:
        at_start: The broker is waited for before the worker has ever reached it.
        after_loss: A lost link is opened again.
        longest_s: After so long without the broker the worker gives up; None: never.
    """

    at_start: bool = True
    after_loss: bool = True
    longest_s: float | None = None


#: A lost broker is waited for without end.
ENDLESS: Final = Patience()


def patience_of(conf: Mapping[str, Any]) -> Patience:
    """What an app's settings say."""
    retry, at_start = bool(conf["broker_connection_retry"]), conf["broker_connection_retry_on_startup"]
    retries = conf["broker_connection_max_retries"]
    longest_s = None if retries is None else sum(min(STEP_S * n, LONGEST_S) for n in range(1, int(retries) + 1))
    return Patience(retry if at_start is None else bool(at_start), retry, longest_s)
