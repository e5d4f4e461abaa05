"""Requests of a program's own: a class that hears in the worker what becomes of its tasks' calls.

As in Celery: a task's attribute `Request` names a subclass of `Request`, whose hooks are called in the worker's
process, not in the one that runs the task: so it hears of time limits and of processes that died, too. A worker whose
tasks all have the plain class pays nothing for this; `CustomRequests` listens only if one has not.

In celeriac a request looks on: what becomes of the message is decided before it is asked, and not by it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from celeriac.exceptions import TimeLimitExceeded, Unsupported, WorkerLostError
from celeriac.execution.execute import ExceptionInfo
from celeriac.messaging.protocol import read_call
from celeriac.resultstore import result_of
from celeriac.spec.data import FINAL_OUTCOMES, JobReport
from celeriac.utils.names import get_cls_by_name
from celeriac.worker.flights import Flight, Flights

if TYPE_CHECKING:
    from celeriac.worker.endings import Endings

#: What `Task.Request` is unless a program says otherwise.
PLAIN: Final = "celeriac.worker.request:Request"

_log = logging.getLogger("celeriac.worker")


class Request:
    """One call in a worker.

    Attributes:
        task: The task; `app`: its app.
        id, task_id, name, type, args, kwargs, eta, expires, root_id, parent_id, correlation_id, reply_to, group,
        delivery_info, ignore_result, stamps, stamped_headers: As the message says; `args` and `kwargs` are empty if it
            cannot be read here.
        hostname: The worker's node name.
        time_start: Unix time at which it began, and worker_pid: in which process, once that is known.
    """

    def __init__(self, context: Any, task: Any, flight: Flight) -> None:
        self._context = context
        self._flight = flight
        self.task = task
        self.app = task.app

    @property
    def id(self) -> str:
        """The call's id."""
        return str(self._context.id)

    task_id = id

    @property
    def name(self) -> str:
        """The task's name."""
        return str(self.task.name)

    type = name

    @property
    def worker_pid(self) -> int | None:
        """The process that runs it."""
        return self._flight.pid or None

    @property
    def time_start(self) -> float | None:
        """When it began."""
        return self._flight.started or None

    @property
    def acknowledged(self) -> bool:
        """Whether its message was acknowledged before it ran."""
        return self._flight.acked

    @property
    def store_errors(self) -> bool:
        """Whether its error is stored."""
        return not self.ignore_result or bool(self.task.store_errors_even_if_ignored)

    @property
    def ignore_result(self) -> bool:
        """Whether its result is not stored."""
        asked = self._context.ignore_result
        return bool(self.task.ignore_result if asked is None else asked)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._context, name)

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What `inspect active` says of it."""
        return {
            "id": self.id, "name": self.name, "args": self.args, "kwargs": self.kwargs, "type": self.name,
            "hostname": self.hostname, "time_start": self.time_start, "acknowledged": self.acknowledged,
            "delivery_info": self.delivery_info, "worker_pid": self.worker_pid,
        }  # fmt: skip

    def humaninfo(self) -> str:
        """`name[id]`."""
        return f"{self.name}[{self.id}]"

    def __str__(self) -> str:
        return self.humaninfo()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.humaninfo()}>"

    # -- hooks: a subclass's to fill; these do nothing ----------------------------------------------------------

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A slot has taken it, in this process, at this `time.monotonic`."""

    def on_timeout(self, soft: bool, timeout: float | None) -> None:
        """It ran beyond a limit, of so many seconds: the soft one, which the task has let through, or the hard one."""

    def on_success(self, failed__retval__runtime: tuple[bool, Any, float], **kwargs: Any) -> None:
        """It has ended well: (False, its result as a text for people, seconds)."""

    def on_retry(self, exc_info: ExceptionInfo) -> None:
        """It is to be run again, because of this."""

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """It has failed with this, or its process has died (`WorkerLostError`; `on_retry`, if that is a retry)."""

    # -- what is not a request's to do --------------------------------------------------------------------------

    def _not_here(self, *args: Any, **kwargs: Any) -> Any:
        raise Unsupported(
            f"{self!r}: in celeriac a request only hears what becomes of its message. Raise Reject or Retry in the "
            "task, call AsyncResult.revoke(), or set acks_late, acks_on_failure and reject_on_worker_lost on it."
        )

    acknowledge = reject = terminate = cancel = execute = execute_using_pool = _not_here


class CustomRequests:
    """Tells requests of a program's own what the pool reports; one of the loop's listeners.

    Attributes:
        kinds: Their classes, by task name.
    """

    def __init__(self, endings: Endings) -> None:
        self._endings = endings
        self._open: dict[int, Request] = {}
        self.kinds: dict[str, type[Request]] = {}

    def add(self, task: Any) -> None:
        """Tell this task's requests from now on.

        Raises:
            ImproperlyConfigured: There is no such class.
        """
        self.kinds[task.name] = get_cls_by_name(task.Request)

    def ended(self, runs: Sequence[Any]) -> None:
        """See `RunListener`: `reported` says more."""

    def reported(self, flights: Flights, reports: Sequence[JobReport]) -> None:
        """These are about to be performed. What a hook raises is logged, and changes nothing."""
        for report in reports:
            flight = flights.get(report.token)
            kind = self.kinds.get(flight.plan.name) if flight is not None else None
            if flight is None or kind is None or report.outcome == "progress":
                continue
            request = self._open.get(report.token) or make_request(kind, flight, self._endings)
            self._open[report.token] = request
            if report.outcome in FINAL_OUTCOMES:
                del self._open[report.token]
            retried = report.outcome == "lost" and self._endings.retries_death(flight)
            try:
                _tell(request, flight, report, self._error(request, report), retried)
            except Exception:
                _log.exception("%r raised when it heard that its task was %s", request, report.outcome)

    def _error(self, request: Request, report: JobReport) -> ExceptionInfo | None:
        """What a run has failed with, from what is stored of it, or else as a text."""
        if report.outcome == "lost":
            return ExceptionInfo(WorkerLostError(f"Worker exited prematurely: {report.detail}."), "")
        if report.outcome == "timed_out":
            return ExceptionInfo(TimeLimitExceeded(report.detail), "")
        if report.outcome not in ("failed", "retried"):
            return None
        error: Any = Exception(report.detail)
        for stored in report.stored:
            if stored.task_id == request.id:
                error = result_of(request.app.backend.decode(stored.task_id, stored.data))
        return ExceptionInfo(error if isinstance(error, BaseException) else Exception(error), report.traceback or "")


def make_request(kind: type[Request], flight: Flight, endings: Endings) -> Request:
    """A request of what flies."""
    context, task = endings.request(flight.delivery), flight.plan.task
    with contextlib.suppress(Exception):  # it is read where it runs; this process may not be able to
        context.args, context.kwargs = read_call(endings.unpack(flight.delivery), task.app.codec)[:2]
    return kind(context, task, flight)


def _tell(
    request: Request, flight: Flight, report: JobReport, error: ExceptionInfo | None, retried: bool = False
) -> None:
    if report.outcome == "accepted":
        flight.pid, flight.started = report.pid, time.time()
        request.on_accepted(report.pid, time.monotonic())
    elif report.outcome == "succeeded":
        request.on_success((False, report.detail, report.runtime_s))
    elif report.outcome == "timed_out":
        request.on_timeout(False, _limit(request, 0))
    elif error is not None and (report.outcome == "retried" or retried):
        request.on_retry(error)
    elif error is not None:
        if report.timed_out:
            request.on_timeout(True, _limit(request, 1))
        request.on_failure(error)


def _limit(request: Request, place: int) -> float | None:
    """The hard (0) or soft (1) limit of its call, else of its task."""
    given = (request.timelimit or (None, None))[place]
    own = (request.task.time_limit, request.task.soft_time_limit)[place]
    return given or own or None
