"""The pipeline in the slot: decode → resolve → run → classify → encode the report. No I/O of its own.

`TaskProgram` is what a pool runs. Per message it does only what this task needs: all that can be known of a task
beforehand stands in its `ReadyTask`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import wraps
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from celeriac import _state, signals, states
from celeriac.exceptions import (
    EndedByPool,
    Ignore,
    NotRegistered,
    Reject,
    Retry,
    SecurityError,
    SoftTimeLimitExceeded,
)
from celeriac.execution import followup
from celeriac.execution.request import Context
from celeriac.messaging.announce import announce_after, announce_before
from celeriac.messaging.failures import format_traceback, legible
from celeriac.messaging.notices import RESULTS_HEADER, make_notice
from celeriac.messaging.protocol import EncodeError, read_call
from celeriac.result import EagerResult
from celeriac.spec.data import ChordWork, Job, JobReport, Payload, StoredResult
from celeriac.utils.text import bounded_repr

if TYPE_CHECKING:
    from celeriac.messaging.seal import Seal
    from celeriac.resultstore import ResultStore

ERROR_CHARS: Final = 8192  # of a traceback that is kept although its error cannot be
TRACEBACK_CHARS: Final = 2**18  # at most, of any other, whatever its error has to say: store and log get it
MAX_NOTICES: Final = 100  # to one client, of results that are kept elsewhere
MAX_CLIENTS: Final = 1000
Emit = Callable[[JobReport], None]

_log = logging.getLogger("celeriac.task")
_clock = time.perf_counter


class ExceptionInfo:
    """What hooks and signals are given of an exception: `exception`, `type`, `traceback` (text), `tb`."""

    def __init__(self, exc: BaseException, traceback: str) -> None:
        self.exception = exc
        self.type = type(exc)
        self.tb = exc.__traceback__
        self.traceback = traceback

    def __str__(self) -> str:
        return self.traceback

    def __repr__(self) -> str:
        return f"<ExceptionInfo: {self.exception!r}>"


class ReadyTask:
    """All that can be decided once for a task."""

    __slots__ = (
        "after_return", "before_start", "call", "ignore_result", "name", "on_failure", "on_retry",
        "on_success", "own_store", "repr_chars", "store_errors", "task", "throws", "track_started",
    )  # fmt: skip

    def __init__(self, task: Any, plain: type) -> None:
        kind = type(task)

        def own(hook: str) -> Any:
            return getattr(task, hook) if getattr(kind, hook) is not getattr(plain, hook) else None

        self.task = task
        self.name = task.name
        self.own_store = task.own_backend is not None
        self.call = _through_call(task) if kind.__call__ is not plain.__call__ else task.run
        self.ignore_result = bool(task.ignore_result)
        self.store_errors = bool(task.store_errors_even_if_ignored)
        self.track_started = bool(task.track_started)
        self.before_start = own("before_start")
        self.on_success = own("on_success")
        self.on_failure = own("on_failure")
        self.on_retry = own("on_retry")
        self.after_return = _when_over(own("after_return"))
        self.throws = task.throws if isinstance(task.throws, type) else tuple(task.throws or ())
        self.repr_chars = task.resultrepr_maxsize


#: What `_read` finds: the task, its request, whether its result is ignored, and when the run began.
Begun = tuple[ReadyTask, Context, bool, float]


class TaskProgram:
    """Runs the tasks of one app in pool slots.

    Args:
        unpack: The transport's reader of raw messages.
        node: The worker's node name.
        detail: Reports carry the repr of results, for the log.
        forked: Called in a child process before anything else: it lets go of the worker's connections.
        worker_pid: The worker's process, if that is not this one: the program was made anew by a `Recipe`.
    """

    def __init__(
        self,
        app: Any,
        unpack: Callable[[bytes], Payload],
        node: str,
        *,
        detail: bool,
        forked: Callable[[], None] | None = None,
        worker_pid: int | None = None,
    ) -> None:
        self._app = app
        self._unpack = unpack
        self._node = node
        self._detail = detail
        self._forked = forked
        self._ready: dict[str, ReadyTask] = {}
        self._seal: Seal | None = app.codec.seal
        self._store: ResultStore = app.backend
        self._fingerprint: str = app.results_fingerprint
        self._max_result_bytes = int(app.conf["result_max_bytes"])
        self._told: dict[str, int] = {}
        self._parent_pid = worker_pid or os.getpid()
        self._pid = self._parent_pid

    # -- the pool calls these -------------------------------------------------------------------------------

    def begin(self) -> None:
        """See `SlotProgram.begin`."""
        self._pid = os.getpid()
        if self._pid != self._parent_pid and self._forked is not None:
            self._forked()
        self._store = self._app.backend
        _state.set_current_app(self._app)
        _state.set_default_app(self._app)
        if self._pid != self._parent_pid:
            self._app.loader.init_worker_process()
            signals.worker_process_init.send(sender=self._node)

    def end(self) -> None:
        """See `SlotProgram.end`."""
        if self._pid != self._parent_pid:
            signals.worker_process_shutdown.send(sender=self._node, pid=self._pid, exitcode=0)
            self._app.close()

    def run(self, job: Job, emit: Emit) -> JobReport:
        """See `SlotProgram.run`."""
        begun: Begun | JobReport | None = None
        try:
            begun = self._read(job, emit)
            done = begun if isinstance(begun, JobReport) else self._carry_out(job, emit, begun)
            return self._outgoing(done, begun) if done.publish else done
        except EndedByPool:
            raise  # by the pool, which answers for the job
        except BaseException as exc:  # after the task: a hook, a limit that struck late, a bug of ours
            return self._failed_internally(job, begun, exc)

    async def arun(self, job: Job, emit: Emit) -> JobReport:
        """See `CoroutineProgram.arun`."""
        from asyncio import CancelledError

        begun: Begun | JobReport | None = None
        try:
            begun = self._read(job, emit)
            done = begun if isinstance(begun, JobReport) else await self._carry_out_awaiting(job, emit, begun)
            return self._outgoing(done, begun) if done.publish else done
        except CancelledError:
            raise  # by the pool, which answers for the job
        except BaseException as exc:  # as in `run`
            return self._failed_internally(job, begun, exc)

    # -- steps ----------------------------------------------------------------------------------------------

    def _read(self, job: Job, emit: Emit) -> Begun | JobReport:
        """All that can be known before the task begins; a report if it cannot begin."""
        started = _clock()
        try:
            payload = self._unpack(job.raw)
            if self._seal is not None:
                self._seal.check(payload)
            args, kwargs, embed, headers = read_call(payload, self._app.codec)
            name = headers["task"]
            if not headers.get("id"):
                raise ValueError("it has no id, under which its result could be kept")
            ready = self._ready.get(name) or self._prepare(name)
        except NotRegistered as exc:
            return JobReport(job.token, "rejected", detail=str(exc), dead=f"unknown task: {exc}")
        except (ValueError, KeyError, TypeError, SecurityError) as exc:
            return JobReport(job.token, "rejected", detail=str(exc), dead=f"malformed: {exc}")
        request = self._request(job, payload, args, kwargs, embed, headers, emit)
        ignored = request.ignore_result
        return ready, request, ready.ignore_result if ignored is None else ignored, started

    def _carry_out(self, job: Job, emit: Emit, begun: Begun) -> JobReport:
        ready, request, ignored, started = begun
        token = self._enter(job, emit, begun)
        try:
            try:
                self._before(ready, request, ignored)
                value = ready.call(*request.args, **request.kwargs)
                if type(value) is CoroutineType:
                    value = _complete(value)
            except EndedByPool:
                raise
            except BaseException as exc:
                return self._ended_badly(job, ready, request, exc, ignored, started)
            return self._ended_well(job, ready, request, value, ignored, started)
        finally:
            _state.pop_running(token)

    async def _carry_out_awaiting(self, job: Job, emit: Emit, begun: Begun) -> JobReport:
        """The same, of a coroutine in a loop that has others too; the soft limit is kept here."""
        from asyncio import CancelledError, TimerHandle, get_running_loop

        from celeriac.execution.coroutines import Interruptible

        ready, request, ignored, started = begun
        token = self._enter(job, emit, begun)
        running: Interruptible | None = None
        limit: TimerHandle | None = None
        try:
            try:
                self._before(ready, request, ignored)
                running = Interruptible(ready.call(*request.args, **request.kwargs))
                if job.soft_limit_s:
                    exceeded = SoftTimeLimitExceeded(job.soft_limit_s)
                    limit = get_running_loop().call_later(job.soft_limit_s, running.interrupt, exceeded)
                value = await running
            except BaseException as exc:
                if isinstance(exc, CancelledError) and running is not None and running.cancelled:
                    raise
                return self._ended_badly(job, ready, request, exc, ignored, started)
            finally:
                if limit is not None:
                    limit.cancel()
            return self._ended_well(job, ready, request, value, ignored, started)
        finally:
            _state.pop_running(token)

    def _enter(self, job: Job, emit: Emit, begun: Begun) -> Any:
        """Say that the task runs from now on: to the worker, to a client that waits elsewhere, and here."""
        ready, request, ignored, _ = begun
        if job.announce:
            emit(JobReport(job.token, "accepted", pid=self._pid))
        wanted = request._message_headers.get(RESULTS_HEADER)
        if wanted and wanted != self._fingerprint and not ignored and request.reply_to:
            self._send_notice(request, wanted)
        return _state.push_running(ready.task, request)

    def _before(self, ready: ReadyTask, request: Context, ignored: bool) -> None:
        """What comes before the task itself, and fails with it."""
        if ready.track_started and not ignored:
            store = ready.task.backend if ready.own_store else self._store
            if store.plugin is not None:
                meta = {"pid": self._pid, "hostname": self._node}
                request._emit(store.make(request.id, states.STARTED, meta, None, request))
        if signals.task_prerun.receivers:
            signals.task_prerun.send(
                sender=ready.task, task_id=request.id, task=ready.task, args=request.args, kwargs=request.kwargs
            )
        if ready.before_start is not None:
            ready.before_start(request.id, request.args, request.kwargs)

    def _outgoing(self, report: JobReport, begun: Begun | JobReport) -> JobReport:
        """A report whose messages say that they may have been sent before, if so, and have been announced, as those
        are that a program sends by itself."""
        tries = followup.tries_of(begun[1]) if isinstance(begun, tuple) else 1
        if tries > 1:
            for payload in report.publish:
                payload.headers.setdefault(followup.AGAIN, tries)
        if signals.before_task_publish.receivers:
            announce_before(report.publish, self._seal)
        if signals.after_task_publish.receivers:
            announce_after(report.publish)
        return report

    def _send_notice(self, request: Context, wanted: str) -> None:
        """Let the client know that its result will not be where it looks; a few times, not for every call."""
        told = self._told.get(request.reply_to or "", 0)
        if told >= MAX_NOTICES:
            return
        if len(self._told) > MAX_CLIENTS:
            self._told.clear()
        self._told[request.reply_to or ""] = told + 1
        notice = make_notice(
            self._app.codec,
            request.id,
            request.reply_to or "",
            worker=self._node,
            keeps=self._fingerprint,
            wanted=wanted,
        )
        assert request._effects is not None
        request._effects.append(notice)

    def _prepare(self, name: str) -> ReadyTask:
        task = self._app.tasks[name]
        ready = self._ready[name] = ReadyTask(task, plain_task_class(type(task)))
        if self._app.loader.has_task_hooks:
            _add_loader_hooks(ready, self._app.loader)
        return ready

    def _request(
        self,
        job: Job,
        payload: Payload,
        args: Any,
        kwargs: Any,
        embed: dict[str, Any],
        headers: dict[str, Any],
        emit: Emit,
    ) -> Context:
        properties = payload.properties
        request = Context.__new__(Context)
        fields = request.__dict__
        fields.update(headers)
        fields.update(embed)
        fields["_message_headers"] = headers
        fields.pop("headers", None)  # a user's header of that name: still among request.headers
        fields["args"] = args
        fields["kwargs"] = kwargs
        fields["called_directly"] = False
        fields["hostname"] = self._node
        fields["properties"] = properties
        fields["reply_to"] = properties.get("reply_to")
        fields["correlation_id"] = properties.get("correlation_id")
        fields["attempt"] = job.attempt
        fields["delivery_info"] = {
            "exchange": payload.route.exchange,
            "routing_key": payload.route.routing_key or job.queue,
            "priority": properties.get("priority"),
            "redelivered": job.redelivered or followup.AGAIN in headers,
        }
        fields["_effects"] = []

        def report(stored: StoredResult) -> None:
            emit(JobReport(job.token, "progress", stored=[stored]))

        fields["_emit"] = report
        return request

    def _ended_well(
        self, job: Job, ready: ReadyTask, request: Context, value: Any, ignored: bool, started: float
    ) -> JobReport:
        stored: list[StoredResult] = []
        publish: list[Payload] = request._effects  # type: ignore[assignment]
        chords: ChordWork | None = None
        try:
            if request.callbacks or request.chain or request.chord:
                following = followup.after_success(self._app, self._store, request, value, ready.task.trail)
                publish, chords = [*publish, *following.publish], following.chords
            store = ready.task.backend if ready.own_store else self._store
            if not ignored and store.plugin is not None:
                result = store.make(request.id, states.SUCCESS, value, None, request)
                if len(result.data) > self._max_result_bytes:
                    size = len(result.data)
                    raise ValueError(f"it has {size} bytes, of {self._max_result_bytes} allowed (result_max_bytes)")
                stored.append(result)
        except Exception as exc:
            if isinstance(exc, (TypeError, ValueError)):
                text = f"{ready.name} returned a {type(value).__name__} that cannot be stored or sent on: {exc}"
                exc = EncodeError(text).with_traceback(exc.__traceback__)
            return self._ended_badly(job, ready, request, exc, ignored, started)
        runtime_s = _clock() - started
        if ready.on_success is not None:
            _guarded(ready.on_success, value, request.id, request.args, request.kwargs)
        if signals.task_success.receivers:
            signals.task_success.send(sender=ready.task, result=value, runtime=runtime_s)
        if ready.after_return is not None or signals.task_postrun.receivers:
            self._finish(ready, request, states.SUCCESS, value, None)
        detail = bounded_repr(value, ready.repr_chars) if self._detail or job.announce else ""
        return JobReport(job.token, "succeeded", runtime_s, stored, publish, detail, chords=chords)

    def _ended_badly(
        self, job: Job, ready: ReadyTask, request: Context, exc: BaseException, ignored: bool, started: float
    ) -> JobReport:
        runtime_s = _clock() - started
        store = ready.task.backend if ready.own_store else self._store
        report = JobReport(job.token, "failed", runtime_s, publish=list(request._effects or ()))
        if isinstance(exc, Ignore):
            report.outcome = "ignored"
            self._finish(ready, request, states.IGNORED, None, None)
            return report
        if isinstance(exc, Reject):
            report.outcome, report.requeue, report.detail = "rejected", bool(exc.requeue), str(exc.reason)
            if not exc.requeue:
                report.dead = f"rejected by the task: {exc.reason}"
                report.publish = []
                if store.plugin is not None and (not ignored or ready.store_errors):
                    report.stored.append(self._failure(store, request, exc, ""))
                self._add_following(request, report, exc, "")
            self._finish(ready, request, states.REJECTED, None, None)
            return report
        traceback = _traceback(exc)
        info = ExceptionInfo(exc, traceback)
        if isinstance(exc, Retry):
            report.outcome, report.detail = "retried", str(exc)
            reason = exc.exc or exc
            if store.plugin is not None and not ignored:
                report.stored.append(self._failure(store, request, reason, traceback, states.RETRY))
            if ready.on_retry is not None:
                _guarded(ready.on_retry, reason, request.id, request.args, request.kwargs, info)
            if signals.task_retry.receivers:
                signals.task_retry.send(sender=ready.task, request=request, reason=exc, einfo=info)
            self._finish(ready, request, states.RETRY, exc, info)
            return report
        report.detail = bounded_repr(exc, 2048)
        report.timed_out = isinstance(exc, SoftTimeLimitExceeded)
        if not isinstance(exc, ready.throws):
            report.traceback = traceback
        if store.plugin is not None and (not ignored or ready.store_errors):
            report.stored.append(self._failure(store, request, exc, traceback))
        self._add_following(request, report, exc, traceback)
        if ready.on_failure is not None:
            _guarded(ready.on_failure, exc, request.id, request.args, request.kwargs, info)
        if signals.task_failure.receivers:
            _send_failure(ready, request, exc, info)
        self._finish(ready, request, states.FAILURE, exc, info)
        return report

    def _add_following(self, request: Context, report: JobReport, exc: BaseException, traceback: str) -> None:
        """What a failure sets off."""
        if not (request.errbacks or request.chain or request.chord):
            return
        try:
            following = followup.after_failure(self._app, self._store, request, exc, traceback)
        except Exception:  # any words may stand where a message has its chain and its chord
            _log.exception("what follows from the failure of %s[%s] cannot be made", request.task, request.id)
            return
        report.stored.extend(following.stored)
        report.publish.extend(following.publish)
        report.chords = following.chords

    def _failed_internally(self, job: Job, begun: Begun | JobReport | None, exc: BaseException) -> JobReport:
        """The run ended in a way that no step foresaw: a failure like others, and said as such.

        A message that could not even be read, or a failure that cannot be said, is set aside: the worker stores what it
        can of that.
        """
        detail, traceback = bounded_repr(exc, 2048), _traceback(exc)
        if not isinstance(begun, tuple):
            return JobReport(job.token, "rejected", detail=detail, dead=f"malformed: it cannot be read: {detail}")
        try:
            return self._said_as_failure(job, begun, exc, detail, traceback)
        except EndedByPool:
            raise  # by the pool, which answers for the job
        except BaseException as trouble:  # a plugin's panic, too, costs this message only
            _log.exception("the failure of %s[%s] cannot be said", begun[1].task, begun[1].id)
            dead = f"it failed ({detail}), and that cannot be stored: {bounded_repr(trouble)}"
            return JobReport(job.token, "rejected", detail=detail, dead=dead)

    def _said_as_failure(self, job: Job, begun: Begun, exc: BaseException, detail: str, traceback: str) -> JobReport:
        ready, request, ignored, _ = begun
        report = JobReport(job.token, "failed", detail=detail, traceback=traceback)
        report.timed_out = isinstance(exc, SoftTimeLimitExceeded)
        store = self._app.store_of(request.task)
        if store.plugin is not None and (not ignored or ready.store_errors):
            report.stored = [self._failure(store, request, exc, traceback)]
        self._add_following(request, report, exc, traceback)
        if signals.task_internal_error.receivers:
            signals.task_internal_error.send(
                sender=ready.task,
                task_id=request.id,
                args=request.args,
                kwargs=request.kwargs,
                request=request,
                exception=exc,
                traceback=exc.__traceback__,
                einfo=ExceptionInfo(exc, report.traceback or ""),
            )
        return report

    def _failure(
        self, store: ResultStore, request: Context, exc: BaseException, traceback: str, state: str = states.FAILURE
    ) -> StoredResult:
        try:
            made = store.make(request.id, state, store.failure(exc), traceback, request)
            if len(made.data) <= self._max_result_bytes:
                return made
            trouble = f"it has {len(made.data)} bytes, of {self._max_result_bytes} allowed"
            traceback = traceback[-ERROR_CHARS:]
        except Exception as problem:  # an exception that the serializer cannot take: its text always works
            trouble = str(problem)
        plain = Exception(f"{type(exc).__qualname__}: {bounded_repr(exc)} (not storable: {trouble:.1000})")
        try:
            return store.make(request.id, state, store.failure(plain), traceback, request)
        except Exception as problem:  # the store writes no failure at all
            if isinstance(exc, EncodeError):
                raise
            raise EncodeError(f"{bounded_repr(exc)} ({state}) cannot be stored: {bounded_repr(problem)}") from exc

    @staticmethod
    def _finish(ready: ReadyTask, request: Context, state: str, value: Any, info: ExceptionInfo | None) -> None:
        if ready.after_return is not None:
            _guarded(ready.after_return, state, value, request.id, request.args, request.kwargs, info)
        if signals.task_postrun.receivers:
            signals.task_postrun.send(
                sender=ready.task,
                task_id=request.id,
                task=ready.task,
                args=request.args,
                kwargs=request.kwargs,
                retval=value,
                state=state,
            )


def _through_call(task: Any) -> Callable[..., Any]:
    """Runs a task that has a `__call__` of its own, which may lead to `Task.__call__`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        running = _state.running()
        if running is not None:
            running.request._through_call = True
        return task(*args, **kwargs)

    return call


def run_eagerly(
    app: Any, task: Any, request: Context, args: Any, kwargs: Any, *, raises: bool = False
) -> EagerResult[Any]:
    """Run a task in the caller, retries, callbacks and errbacks included; see `Task.apply`.

    Args:
        raises: Whoever called will raise its error, and is told by that: errbacks are not called.
    """
    ready = ReadyTask(task, plain_task_class(type(task)))
    retry: Retry | None = None
    state, value, traceback = states.SUCCESS, None, None
    token = _state.push_running(task, request)
    try:
        signals.task_prerun.send(sender=task, task_id=request.id, task=task, args=args, kwargs=kwargs)
        try:
            if ready.before_start is not None:
                ready.before_start(request.id, args, kwargs)
            value = ready.call(*args, **kwargs)
            if type(value) is CoroutineType:
                value = _complete(value)
        except Ignore as exc:
            state, value = states.IGNORED, exc
        except Reject as exc:
            state, value = states.REJECTED, exc
        except Retry as exc:
            state, value, retry = states.RETRY, exc, exc
        except Exception as exc:
            state, value, traceback = states.FAILURE, exc, _traceback(exc)
        info = None if traceback is None and retry is None else ExceptionInfo(value, traceback or "")
        _tell_eagerly(ready, request, state, value, info)
        TaskProgram._finish(ready, request, state, value, info)
    finally:
        _state.pop_running(token)
    if retry is not None and retry.sig is not None:
        again: EagerResult[Any] = retry.sig.apply(task_id=request.id, retries=request.retries + 1, throw=raises)
        return again
    token = _state.push_running(task, request)  # what follows from it is its child
    try:
        if state == states.SUCCESS:
            for callback in request.callbacks or ():
                app.signature(callback).apply((value,))
        elif state == states.FAILURE and request.errbacks and not raises:
            followup.call_errbacks_here(app, request, value, traceback or "")
    finally:
        _state.pop_running(token)
    kept = state not in (states.IGNORED, states.REJECTED) and not request.ignore_result
    if kept and task.store_eager_result and task.backend.plugin is not None:
        task.backend.store_result(request.id, value, state, traceback, request)
    return EagerResult(request.id, value, state, traceback, name=task.name)


def _tell_eagerly(ready: ReadyTask, request: Context, state: str, value: Any, info: ExceptionInfo | None) -> None:
    """Hooks and signals of an eager run; here a hook's error is the caller's to see."""
    task, args, kwargs = ready.task, request.args, request.kwargs
    if state == states.SUCCESS:
        if ready.on_success is not None:
            ready.on_success(value, request.id, args, kwargs)
        signals.task_success.send(sender=task, result=value, runtime=0.0)
    elif state == states.FAILURE:
        if ready.on_failure is not None:
            ready.on_failure(value, request.id, args, kwargs, info)
        _send_failure(ready, request, value, info)
    elif state == states.RETRY:
        if ready.on_retry is not None:
            ready.on_retry(value.exc or value, request.id, args, kwargs, info)
        signals.task_retry.send(sender=task, request=request, reason=value, einfo=info)


def _send_failure(ready: ReadyTask, request: Context, exc: BaseException, info: ExceptionInfo | None) -> None:
    signals.task_failure.send(
        sender=ready.task,
        task_id=request.id,
        exception=exc,
        args=request.args,
        kwargs=request.kwargs,
        traceback=exc.__traceback__,
        einfo=info,
    )


def plain_task_class(kind: type) -> type:
    """celeriac's own `Task` among the bases of a task's class; what differs from it was overridden."""
    return next(base for base in kind.__mro__ if base.__module__ == "celeriac.app.task" and base.__name__ == "Task")


def _complete(coroutine: Any) -> Any:
    from celeriac.execution.coroutines import complete  # asyncio costs 30 ms to import, and few need it

    return complete(coroutine)


def _add_loader_hooks(ready: ReadyTask, loader: Any) -> None:
    """Let a loader that wants to know of each run hear of it around the task's own hooks."""
    before, after, task = ready.before_start, ready.after_return, ready.task

    def before_start(task_id: str, args: Any, kwargs: Any) -> None:
        loader.on_task_init(task_id, task)
        if before is not None:
            before(task_id, args, kwargs)

    def after_return(*ending: Any) -> None:
        try:
            if after is not None:
                after(*ending)
        finally:
            loader.on_process_cleanup()

    ready.before_start, ready.after_return = before_start, after_return


def _when_over(hook: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """The hook `after_return`, for calls that have ended: one that is tried again, ignored or rejected has not."""
    if hook is None:
        return None

    @wraps(hook)
    def after_return(state: str, *ending: Any) -> None:
        if state in (states.SUCCESS, states.FAILURE):
            hook(state, *ending)

    return after_return


def _guarded(hook: Callable[..., Any], *args: Any) -> None:
    """Call a user's hook after the run: its errors are logged, they do not change the outcome."""
    try:
        hook(*args)
    except Exception:
        _log.exception("%s raised", getattr(hook, "__qualname__", hook))


def _traceback(exc: BaseException) -> str:
    try:
        text = legible(format_traceback(exc))
        if len(text) <= TRACEBACK_CHARS:
            return text
        left_out = f"\n[{len(text) - TRACEBACK_CHARS} characters of this traceback are left out here]\n"
        return text[: TRACEBACK_CHARS // 2] + left_out + text[-TRACEBACK_CHARS // 2 :]
    except Exception as trouble:  # an exception whose own text raises
        return f"{type(exc).__qualname__} (its traceback cannot be shown: {type(trouble).__name__})\n"
