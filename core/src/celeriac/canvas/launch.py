"""What it takes to start a canvas: chords to be opened, then calls to be sent, in that order.

The client performs it at once, in bulk; a slot hands it to the worker as data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final

from celeriac import _state
from celeriac.exceptions import ChordsUnsupported
from celeriac.resultstore import NoResultBackend
from celeriac.spec.data import CLAIM_HEADER, Chord, Payload
from celeriac.utils.ids import derived_uuid
from celeriac.utils.times import UTC, as_moment, as_seconds

#: So many messages go to the broker in one exchange.
SEND_AT_ONCE: Final = 500
#: What is added to the longest that one of a chord's parts may take, before a chord without news has failed (R10).
PATIENCE_S: Final = 3600.0

Call = tuple[str, Any, Any, str, dict[str, Any]]

_gathered: ContextVar[list[Payload] | None] = ContextVar("celeriac_gathered", default=None)


@contextmanager
def gathering() -> Iterator[list[Payload]]:
    """Within it what would be published is put into a list."""
    payloads: list[Payload] = []
    token = _gathered.set(payloads)
    try:
        yield payloads
    finally:
        _gathered.reset(token)


def gathered() -> list[Payload] | None:
    """Where to put what would be published; None: it is."""
    return _gathered.get()


def payloads_of(app: Any, call: Call) -> Sequence[Payload]:
    """The message of a call that follows from a run. In a slot a class with an `apply_async` of its own makes it by
    that, as where it is called directly, and may add others, or send none."""
    name, args, kwargs, task_id, options = call
    task = app.tasks.get(name)
    if task is None or not task.sends_its_own_way or _state.running() is None:
        return [app.make_payload(*call)]
    with gathering() as payloads:
        task.apply_async(args, kwargs, task_id=task_id, add_to_parent=False, **options)
    return payloads


def claim_of(token: str, group: str) -> str:
    """A claim on a chord as its body's messages carry it."""
    return f"{token} {group}"


def chord_of(claim: Any) -> str:
    """The group of the chord of such a claim."""
    return str(claim).partition(" ")[2]


class Launch:
    """Gathers chords and calls.

    Attributes:
        opened: Chords to open before the calls are sent.
        calls: `(task, args, kwargs, task_id, options)` each.
        claim: The claim on a chord under which these calls are published (`claim_of`), if another may publish them
            too; it travels with them.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.opened: list[Chord] = []
        self.calls: list[Call] = []
        self.claim = ""

    def call(self, task: str, args: Any, kwargs: Mapping[str, Any], task_id: str, options: dict[str, Any]) -> None:
        """A call to send."""
        self.calls.append((task, args, kwargs, task_id, self._marked(options)))

    def open(self, group: str, size: int, body: Any, patience_s: float, header: Callable[[], Any]) -> None:
        """A chord to open; called before its parts.

        Args:
            header: Gives the results of its parts in their tuple form, for backends that cannot count.
        Raises:
            NoResultBackend, ChordsUnsupported: Its parts could never be joined.
        """
        plugin = self.app.backend.plugin
        if plugin is None:
            raise NoResultBackend("a chord was called: its parts' results must be kept until the last has come")
        if "count" in plugin.abilities:
            self.opened.append(Chord(group, size, write_body(self.app, body), patience_s))
        elif "replies" in plugin.abilities:
            raise ChordsUnsupported(type(plugin).__name__)
        else:
            self._poll(group, body, patience_s, header())

    def _marked(self, options: dict[str, Any]) -> dict[str, Any]:
        if self.claim:
            options["headers"] = {**(options.get("headers") or {}), CLAIM_HEADER: self.claim}
        return options

    def _poll(self, group: str, body: Any, patience_s: float, header: Any) -> None:
        """The join of backends that cannot count: a call that comes again until all parts are ready."""
        conf = self.app.conf
        pause_s = float(conf["result_chord_retry_interval"])
        options: dict[str, Any] = {
            "countdown": pause_s,
            "ignore_result": True,
            "headers": {PATIENCE_HEADER: patience_s},
        }
        route = body.last()["options"]
        options.update({key: route[key] for key in ("queue", "exchange", "routing_key") if key in route})
        kwargs = {"interval": None, "max_retries": None, "result": header, "_chord_unlock_exchange_type": "direct"}
        self.call("celery.chord_unlock", (group, dict(body)), kwargs, derived_uuid(f"{group} unlock"), options)


#: In messages `celery.chord_unlock`: seconds without news after which the chord has failed.
PATIENCE_HEADER: Final = "x-celeriac-chord-patience"


class Sending(Launch):
    """Sends what it gathers, a part at a time, so that a long group needs little memory."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self._one_by_one: bool = app.sends_its_own_way

    def call(self, task: str, args: Any, kwargs: Mapping[str, Any], task_id: str, options: dict[str, Any]) -> None:
        """See `Launch.call`.

        Raises:
            TypeError: The arguments do not fit the task.
        """
        own = self.app.tasks.get(task)
        if self._one_by_one or (own is not None and own.sends_its_own_way):
            self.flush()
            options = {**self._marked(options), "task_id": task_id, "add_to_parent": False}
            if own is not None:
                own.apply_async(args, kwargs, **options)
            else:
                self.app.send_task(task, args, kwargs, **options)
            return
        if own is not None:
            own.check_arguments(args, kwargs)
        super().call(task, args, kwargs, task_id, options)
        if len(self.calls) >= SEND_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Send what there is."""
        opened, self.opened = self.opened, []
        calls, self.calls = self.calls, []
        if opened:
            self.app.backend.plugin.open_chords(opened)
        self.app.publish_calls(calls)


def send(app: Any, start: Callable[[Launch], Any], *, add_to_parent: bool = True) -> Any:
    """Perform a launch here and now; returns the result, which becomes a child of the running task.

    Raises:
        OperationalError: As `Task.apply_async`; calls sent in exchanges before that one may have been taken.
    """
    launch = Sending(app)
    result = start(launch)
    launch.flush()
    running = _state.running()
    if result is not None and add_to_parent and running is not None and running.task.trail:
        running.request.children.append(result)
    return result


def patience_of(app: Any, members: Iterable[Any], options: Mapping[str, Any]) -> float:
    """How long a chord of these parts may be without news, as far as delays, time limits and tasks say.

    Args:
        options: What the call gives to all parts.
    """
    configured = app.conf["result_chord_patience"]
    if configured is not None:
        return as_seconds(configured)
    tasks, default = app.tasks, app.conf["task_time_limit"] or 0

    def longest_s(signature: Any) -> float:
        """Delays and time limits on the longest way through it."""
        own, shape = signature["options"], signature["subtask_type"]
        delay_s = _delay_s(own)
        if shape == "chain":
            return delay_s + sum(map(longest_s, signature.tasks))
        if shape in ("group", "chord"):
            body = signature.body if shape == "chord" else None
            header_s = max(map(longest_s, signature.tasks), default=0.0)
            return delay_s + header_s + (0.0 if body is None else longest_s(body))
        task = tasks.get(signature["task"])
        limit_s = as_seconds(own.get("time_limit") or (task is not None and task.time_limit) or default)
        return delay_s + limit_s + _retries_s(task, limit_s)

    longest = max(map(longest_s, members), default=0.0)
    return longest + as_seconds(options.get("time_limit") or 0) + _delay_s(options) + PATIENCE_S


def _retries_s(task: Any, limit_s: float) -> float:
    """How long the tries after the first may take, as far as the task says so: by itself it retries on some errors."""
    if task is None or not task.autoretry_for:
        return 0.0
    words = task.retry_kwargs
    count = words.get("max_retries", task.max_retries) or 0  # without end: there is no telling
    pause = task.retry_backoff_max if task.retry_backoff else words.get("countdown", task.default_retry_delay)
    return float(count) * (limit_s + as_seconds(pause))


def _delay_s(options: Mapping[str, Any]) -> float:
    countdown, eta = options.get("countdown"), options.get("eta")
    try:
        if countdown is not None:
            return max(0.0, as_seconds(countdown))
        if eta is not None:
            return max(0.0, (as_moment(eta) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, AttributeError):
        pass  # who makes the message of it says what is wrong
    return 0.0


def write_body(app: Any, body: Any) -> bytes:
    """A body's signature for a backend to keep, which does not read it."""
    name: str = app.conf["task_serializer"]
    text: bytes = app.codec.serializer(name).dumps(body)
    return name.encode() + b"\n" + text


def read_body(app: Any, data: bytes) -> Any:
    """What `write_body` wrote, as a dict."""
    name, _, text = data.partition(b"\n")
    return app.codec.serializer(name.decode()).loads(text)
