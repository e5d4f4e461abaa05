"""Lets extensions hear of the runs that have ended; the loop comes here only if one listens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from celeriac.spec.data import FINAL_OUTCOMES, JobReport
from celeriac.spec.listener import Run
from celeriac.worker.flights import Flights
from celeriac.worker.request import CustomRequests

if TYPE_CHECKING:
    from celeriac.spec.listener import RunListener

_log = logging.getLogger("celeriac.worker")


def tell_listeners(listeners: list[RunListener], flights: Flights, reports: Sequence[JobReport]) -> None:
    """Tell them of these reports, whose flights have not been ended yet. Who raises is taken off the list.

    One that wants more than an extension may know (requests of a program's own) has `reported`.
    """
    for listener in listeners:
        if isinstance(listener, CustomRequests):
            listener.reported(flights, reports)
    runs = []
    for report in reports:
        flight = flights.get(report.token)
        if flight is not None and report.outcome in FINAL_OUTCOMES:
            delivery = flight.delivery
            name, task_id = flight.plan.name, flight.head.id
            runs.append(Run(name, task_id, delivery.queue, report.outcome, report.runtime_s, delivery.raw))
    if not runs:
        return
    for listener in list(listeners):
        try:
            listener.ended(runs)
        except Exception:
            _log.exception("%r raised when it heard of %d runs; it is not told of others.", listener, len(runs))
            listeners.remove(listener)
