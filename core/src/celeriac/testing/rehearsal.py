"""An app without servers and without threads: what it sends can be looked at, and is run when the test says so.

The calls go the whole way of real ones (protocol, serializer, worker, results); only the broker and the result store
are memory of this process, and before the broker there is a hall in which messages wait for `run_until_idle`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from types import TracebackType
from typing import Any, Final, NamedTuple, cast

from msgspec import structs

from celeriac import _state, signals
from celeriac.app.parts import Host, Parts
from celeriac.messaging.protocol import read_call
from celeriac.spec.backend import ResultBackend
from celeriac.spec.data import Payload, QueueSpec, Settlement
from celeriac.spec.transport import Consumer, Transport
from celeriac.utils.ids import uuid
from celeriac.utils.times import parse_iso
from celeriac.worker.shutdown import wind_down
from celeriac.worker.worker import Worker

MAX_RUNS: Final = 10_000
Take = Callable[[Sequence[Payload]], None]


class Sent:
    """A call that was sent, as it was then.

    Attributes:
        task, id: The task's name, the call's id.
        args, kwargs: As the worker will read them: a tuple and a dict of what the serializer makes of the values.
        queue, routing_key, exchange, priority: Where it goes.
        eta, expires: Moments, or None.
        countdown_s: Seconds from the sending until it is due; 0 for at once. Some milliseconds off.
        retries: How often it was tried before.
        headers, properties: All of them, as they travel.
        parent_id: Of the task that sent it; None for the test itself.
    """

    def __init__(self, app: Any, payload: Payload) -> None:
        self._app = app
        self._payload = payload
        headers, properties = payload.headers, payload.properties
        self.task: str = headers["task"]
        self.id: str = headers["id"]
        self.queue = payload.route.queue or payload.route.routing_key
        self.routing_key = payload.route.routing_key
        self.exchange = payload.route.exchange
        self.priority = properties.get("priority")
        self.eta = _moment(headers.get("eta"))
        self.expires = _moment(headers.get("expires"))
        self.countdown_s = max(0.0, (payload.due or 0.0) - time.time()) if payload.due is not None else 0.0
        self.retries: int = headers.get("retries") or 0
        self.parent_id: str | None = headers.get("parent_id")
        self.headers = dict(headers)
        self.properties = dict(properties)

    @property
    def args(self) -> tuple[Any, ...]:
        return tuple(self._call[0])

    @property
    def kwargs(self) -> dict[str, Any]:
        return self._call[1]

    @cached_property
    def _call(self) -> tuple[list[Any], dict[str, Any]]:
        args, kwargs, _, _ = read_call(self._payload, self._app.codec)
        return args, kwargs

    def __repr__(self) -> str:
        called = [*map(repr, self.args), *(f"{key}={value!r}" for key, value in self.kwargs.items())]
        when = f" in {self.countdown_s:.1f} s" if self.countdown_s else ""
        return f"<Sent: {self.task}({', '.join(called)}) to {self.queue}{when}>"


class Failed(NamedTuple):
    """A run that raised."""

    task: str
    id: str
    exception: BaseException


class Rehearsal:
    """Takes an app over for the time of a `with` block.

    Whatever the app's settings say: nothing speaks to a server. Results are kept if the app has a result backend. Rate
    limits do not apply, queues do not matter. Only the thread that opened it may use it.

    Args:
        app: Any app; it may have been used before. Its connections are its own again afterwards.

    Attributes:
        sent: All calls sent so far, in order: by the test, and by tasks that ran.
        failed: The runs that raised, in order, retries not among them.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.sent: list[Sent] = []
        self.failed: list[Failed] = []
        self._hall: list[Payload] = []
        self._ran = 0
        self._kept: tuple[Any, Any] | None = None

    def __enter__(self) -> Rehearsal:
        if self._kept is not None:
            raise RuntimeError("this rehearsal has begun already; make another: with Rehearsal(app) as rehearsal")
        app, remembered = self.app, _state.remember_apps()
        app.finalize()
        self._kept = app._parts, remembered
        app._parts = _Parts(app, self._take, self._why_not_yet)
        try:
            self._worker = _Worker(app, pool="solo", concurrency=1, hostname="rehearsal@%h")
            self._worker.begin()
        except BaseException:
            self._put_back()
            raise
        _state.restore_apps(remembered)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._worker.end()
        finally:
            self._put_back()

    def _put_back(self) -> None:
        assert self._kept is not None
        self.app._parts, remembered = self._kept
        _state.restore_apps(remembered)

    # -- looking --------------------------------------------------------------------------------------------

    def sent_of(self, task: Any) -> list[Sent]:
        """The calls of one task (or of a task's name) among `sent`."""
        name = task if isinstance(task, str) else task.name
        return [call for call in self.sent if call.task == name]

    @property
    def waiting(self) -> list[Sent]:
        """What was sent and has not been run: not run yet, not due yet, or of a task that the app does not have."""
        return [Sent(self.app, payload) for payload in self._hall]

    # -- running --------------------------------------------------------------------------------------------

    def run_until_idle(self, *, raise_errors: bool = True, skip_waits: bool = False, max_runs: int = MAX_RUNS) -> int:
        """Run here and now whatever is due, and what that sends, until nothing is left.

        Calls of tasks that the app does not have are for somebody else, and stay in `waiting`.

        Args:
            raise_errors: When all is done, raise the first exception that a task has raised in this call.
            skip_waits: Go on with `advance` to what is due next, until nothing waits: retries, countdowns.
            max_runs: More runs than this are an error: tasks that send each other for ever.
        Returns:
            How many runs it took, retries included.
        Raises:
            RuntimeError: `max_runs`.
            Exception: See `raise_errors`.
        """
        failed_before, self._ran = len(self.failed), 0
        with _state_kept(), self._listening():
            self._worker.look_for_revocations()
            while True:
                let_in = self._let_in()
                if self._worker.is_busy():
                    self._worker.take_turn()
                elif not let_in and not (skip_waits and self._skip()):
                    break
                if self._ran > max_runs:
                    raise RuntimeError(
                        f"more than {max_runs} runs, and no end: the last ones were sent for "
                        f"{', '.join(sorted({call.task for call in self.sent[-20:]}))}. Give max_runs if this is meant."
                    )
        if raise_errors and len(self.failed) > failed_before:
            raise self.failed[failed_before].exception
        return self._ran

    def advance(self, by: float | timedelta) -> None:
        """Let time pass for all that waits: seconds, or a timedelta. What is due by then is run by the next
        `run_until_idle`, what expires by then is not.

        Clocks that tasks read themselves do not change.
        """
        by_s = by.total_seconds() if isinstance(by, timedelta) else float(by)
        if by_s < 0:
            raise ValueError(f"time only passes: advance({by!r})")
        seal = self.app.codec.seal
        for payload in self._hall:
            if payload.due is not None:
                payload.due -= by_s
            for name in ("eta", "expires"):
                moment = _moment(payload.headers.get(name))
                if moment is not None:
                    payload.headers[name] = (moment - timedelta(seconds=by_s)).isoformat()
            if seal is not None:
                seal.put_on(payload)

    def _skip(self) -> bool:
        """Advance to what is due next; False if nothing of ours waits."""
        times = [payload.due for payload in self._hall if payload.due is not None and self._is_ours(payload)]
        if not times:
            return False
        self.advance(max(0.0, min(times) - time.time()))
        return True

    def _take(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            copy = structs.replace(payload, headers=dict(payload.headers), properties=dict(payload.properties))
            eta = _moment(copy.headers.get("eta"))
            if copy.due is None and eta is not None:
                copy.due = eta.timestamp()
            self.sent.append(Sent(self.app, copy))
            self._hall.append(copy)

    def _let_in(self) -> bool:
        """Give the broker what is due; whether there was anything."""
        now = time.time()
        ready = [
            payload for payload in self._hall if (payload.due is None or payload.due <= now) and self._is_ours(payload)
        ]
        if ready:
            taken = set(map(id, ready))
            self._hall = [payload for payload in self._hall if id(payload) not in taken]
            ready.sort(key=lambda payload: payload.due or 0.0)
            self._worker.give(ready)
        return bool(ready)

    def _why_not_yet(self, task_id: str) -> BaseException | None:
        for call in self.waiting:
            if call.id == task_id:
                return RuntimeError(f"{call!r} waits to be run: call run_until_idle() before you ask for its result.")
        return None

    def _is_ours(self, payload: Payload) -> bool:
        return payload.headers.get("task") in self.app.tasks

    @contextmanager
    def _listening(self) -> Iterator[None]:
        def count(**_: Any) -> None:
            self._ran += 1

        def note(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
            self.failed.append(Failed(sender.name, task_id, exception))

        signals.task_prerun.connect(count, weak=False)
        signals.task_failure.connect(note, weak=False)
        try:
            yield
        finally:
            signals.task_prerun.disconnect(count)
            signals.task_failure.disconnect(note)


class _Worker(Worker):
    """A worker that does one turn when it is told to, in the caller's thread."""

    def begin(self) -> None:
        self._prepare()
        self._start()
        self.loop._admission._rates = False
        self._known: set[str] = set(self._queue_names)

    def look_for_revocations(self) -> None:
        if self._watch is not None:
            self._watch.look()

    def give(self, payloads: Sequence[Payload]) -> None:
        consumer = cast(_Consumer, self.link.consumer)
        for payload in payloads:
            queue = payload.route.queue or payload.route.routing_key
            if queue not in self._known:
                self._known.add(queue)
                consumer.subscribe(QueueSpec(queue))
        cast(_Transport, self.transport).pass_on(payloads)

    def is_busy(self) -> bool:
        joiner = self.link._joiner
        return bool(
            len(self.loop.flights)
            or len(self.loop._waiting)
            or self.link.held()
            or (joiner is not None and joiner.left())
            or any(self.transport.depth(queue) for queue in self._known)
        )

    def take_turn(self) -> None:
        self._sleeper.wake()  # nothing comes from outside, so there is nothing to sleep for
        self._turn()

    def end(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        wind_down(self.loop, self.pool, self._turn, lambda: 2, grace_s=0.0, soft_s=0.0)
        self.transport.close()
        self._sleeper.close()


class _Parts(Parts):
    """The parts of an app whose broker and store are memory."""

    def __init__(self, app: Any, take: Take, why_not_yet: Callable[[str], BaseException | None]) -> None:
        super().__init__(app.conf, app._oid.get)
        self._why_not_yet = why_not_yet
        self._place = f"memory://rehearsal-{uuid()}"
        self._transport = _Transport(self.kernel.make_transport(self._place, "memory"), take)

    def make_transport(self, url: str | None = None) -> Transport:
        return cast(Transport, self._transport)

    def _make_backend(self) -> ResultBackend | None:
        if not self.keeps_results:
            return None
        return self.kernel.make_backend(self._place, "memory", Host(self, self._reply_queue))

    def _why_no_result(self, task_id: str) -> BaseException | None:
        return self._why_not_yet(task_id)


class _Transport:
    """The memory broker behind the hall."""

    def __init__(self, inner: Transport, take: Take) -> None:
        self._inner = inner
        self._take = take
        self._once: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        self._take(payloads)

    def send_once(self, payloads: Sequence[Payload], *, key: str, keep_s: float, timeout_s: float = 10.0) -> bool:
        now = time.monotonic()
        if self._once.get(key, now) > now:
            return False
        self._once[key] = now + keep_s
        self._take(payloads)
        return True

    def consumer(self, queues: Sequence[QueueSpec], **words: Any) -> Any:
        return _Consumer(self._inner.consumer(queues, **words), self._take)

    def pass_on(self, payloads: Sequence[Payload]) -> None:
        self._inner.send(payloads)


class _Consumer:
    """A consumer of it: what tasks send goes to the hall too."""

    def __init__(self, inner: Consumer, take: Take) -> None:
        self._inner = inner
        self._take = take

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        self._take(publish)
        self._inner.settle(batch, joined=joined)


@contextmanager
def _state_kept() -> Iterator[None]:
    remembered = _state.remember_apps()
    try:
        yield
    finally:
        _state.restore_apps(remembered)


def _moment(text: Any) -> datetime | None:
    return parse_iso(text) if isinstance(text, str) else None
