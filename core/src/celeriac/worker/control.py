"""The commands that a worker performs: `inspect_command` asks, `control_command` changes something.

Users add their own with the same decorators, in a module that the worker imports::

    from celeriac.worker.control import control_command, inspect_command

    @control_command(args=[("n", int)], signature="[N=1]")
    def widen(state, n=1):
        "Hold N messages more."
        ...
        return {"ok": "done"}

A command is called in the worker's own thread, between two turns of its loop, with the `WorkerState` and its arguments
by name; what it returns is the reply. Names, arguments and replies of ours are Celery's.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module, reload
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, overload
from urllib.parse import urlsplit

from celeriac.app.rate_limits import NO_STATE, is_cluster_wide
from celeriac.app.revocations import Revocation, id_key, keys_of_stamps, parse_signal
from celeriac.exceptions import mask_url
from celeriac.kernel.kernel import first_url
from celeriac.messaging.broadcasts import Request
from celeriac.messaging.protocol import read_call
from celeriac.spec.data import Delivery, Head, QueueSpec, StoredResult
from celeriac.spec.servers import split_urls
from celeriac.utils.rates import parse_rate
from celeriac.worker.consumer import read_limits
from celeriac.worker.revoked import keys_of

if TYPE_CHECKING:
    from celeriac.worker.flights import Flight
    from celeriac.worker.worker import Worker

F = TypeVar("F", bound=Callable[..., Any])

#: What the tables call a task's attributes, when nobody names others.
TASK_INFO: Final = ("exchange", "routing_key", "rate_limit")
#: What is added to that where a limit holds for all workers.
CLUSTER_INFO: Final = ("rate_limit_scope", "rate_limit_group")
OWN_TASKS: Final = ("celery.", "celeriac.")

_log = logging.getLogger("celeriac.worker.control")


class CommandInfo(NamedTuple):
    """What the command line needs to know of a command."""

    name: str
    kind: str  # inspect or control
    alias: str | None = None
    default_timeout: float = 1.0
    help: str = ""
    signature: str | None = None
    args: Sequence[tuple[str, Callable[[str], Any]]] = ()
    variadic: str | None = None
    visible: bool = True

    @property
    def type(self) -> str:
        """Celery's word for the kind."""
        return self.kind


class Panel:
    """All commands by name."""

    #: name or alias → function of the state and the arguments
    data: Final[dict[str, Callable[..., Any]]] = {}
    #: name → what is known of it
    meta: Final[dict[str, CommandInfo]] = {}

    @classmethod
    def register(cls, *args: Any, **options: Any) -> Any:
        """A control command of this function; as `control_command`."""
        return control_command(*args, **options)


@overload
def control_command(fun: F) -> F: ...
@overload
def control_command(**options: Any) -> Callable[[F], F]: ...
def control_command(fun: Any = None, **options: Any) -> Any:
    """Makes a function a command of `celeriac control`; options as for `inspect_command`."""
    return _command("control", fun, **options)


@overload
def inspect_command(fun: F) -> F: ...
@overload
def inspect_command(**options: Any) -> Callable[[F], F]: ...
def inspect_command(fun: Any = None, **options: Any) -> Any:
    """Makes a function a command of `celeriac inspect`.

    Args:
        name, alias: Default: the function's name, and none.
        args: `(argument, converter)` of each word on the command line.
        signature: What the help shows of them.
        variadic: The argument that takes all further words as a list.
        default_timeout: Seconds that the command line waits for replies.
        help: Default: the first line of the docstring.
        visible: Listed by the command line.
    """
    return _command("inspect", fun, **options)


def _command(kind: str, fun: Callable[..., Any] | None = None, **options: Any) -> Any:
    def register(fun: Callable[..., Any]) -> Callable[..., Any]:
        name = options.get("name") or fun.__name__
        text = options.get("help") or ((fun.__doc__ or "").strip().splitlines() or [""])[0]
        given = {
            key: value for key, value in options.items() if key in CommandInfo._fields and key not in ("name", "help")
        }
        Panel.data[name] = fun
        Panel.meta[name] = CommandInfo(name, kind, help=text, **given)
        if options.get("alias"):
            Panel.data[options["alias"]] = fun
        return fun

    return register if fun is None else register(fun)


class WorkerState:
    """What commands are given: the worker and its parts.

    Attributes:
        hostname: The node name.
        worker, loop, pool: Its parts.
        consumer: This object, by the name under which Celery's commands look for it.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.controller = worker
        self.consumer = self
        self.app = worker.app
        self.hostname = worker.hostname
        self.started_at = time.time()
        self.memory_samples: list[str] = []

    @property
    def loop(self) -> Any:
        """The loop between broker and pool."""
        return self.worker.loop

    @property
    def pool(self) -> Any:
        """The pool."""
        return self.worker.pool

    @property
    def tset(self) -> type[set[Any]]:
        """As in Celery: the class of sets of requests."""
        return set

    def perform(self, request: Request) -> Any:
        """Call a command; what it returns, or an error as a reply."""
        try:
            return Panel.data[request.method](self, **request.arguments)
        except Exception as exc:  # the command's, or the arguments'; whoever asked is told
            if request.method in Panel.data:
                _log.warning("remote command %s failed: %r", request.method, exc, exc_info=True)
            return {"error": repr(exc)}


# -- looking ------------------------------------------------------------------------------------------------


@inspect_command(default_timeout=0.2)
def ping(state: WorkerState, **_: Any) -> Any:
    """Ping worker(s)."""
    return {"ok": "pong"}


@inspect_command()
def clock(state: WorkerState, **_: Any) -> Any:
    """Get current logical clock value."""
    return {"clock": state.app.clock.value}


@inspect_command(alias="dump_active", signature="[SAFE]", args=[("safe", lambda word: word.lower() in ("1", "true"))])
def active(state: WorkerState, safe: bool = False, **_: Any) -> Any:
    """List of tasks currently being executed."""
    return [describe_flight(state, flight, safe) for flight in state.loop.running()]


@inspect_command(alias="dump_reserved")
def reserved(state: WorkerState, **_: Any) -> Any:
    """List of currently reserved tasks, not including scheduled/active."""
    return [describe_flight(state, flight) for flight in state.loop.reserved()]


@inspect_command(alias="dump_schedule")
def scheduled(state: WorkerState, **_: Any) -> Any:
    """List of currently scheduled ETA/countdown tasks."""
    entries = []
    for when, delivery in state.loop.scheduled():
        info = describe_delivery(state, delivery)
        eta = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when)) + f".{int(when % 1 * 1e6):06d}+00:00"
        entries.append({"eta": eta, "priority": info["priority"], "request": info})
    return entries


@inspect_command(alias="dump_revoked")
def revoked(state: WorkerState, **_: Any) -> Any:
    """List of revoked task-ids."""
    return state.loop.revoked.ids()


@inspect_command(alias="dump_tasks", variadic="taskinfoitems", signature="[attr1 [attr2 … [attrN]]]")
def registered(state: WorkerState, taskinfoitems: Sequence[str] | None = None, builtins: bool = False, **_: Any) -> Any:
    """List of registered tasks."""
    tasks = state.app.tasks
    wanted = tuple(taskinfoitems or TASK_INFO)

    def describe(name: str) -> str:
        items = wanted if taskinfoitems or not is_cluster_wide(tasks[name]) else wanted + CLUSTER_INFO
        fields = [f"{item}={value}" for item in items if (value := getattr(tasks[name], item, None)) is not None]
        return f"{name} [{' '.join(fields)}]" if fields else name

    return sorted(describe(name) for name in tasks if builtins or not name.startswith(OWN_TASKS))


@inspect_command()
def stats(state: WorkerState, **_: Any) -> Any:
    """Request worker statistics/information."""
    worker, loop, pool = state.worker, state.loop, state.pool
    return {
        "total": loop.totals(),
        "pid": os.getpid(),
        "clock": str(state.app.clock),
        "uptime": round(time.time() - state.started_at),
        "pool": {
            "implementation": f"{type(pool).__module__}:{type(pool).__name__}",
            "max-concurrency": pool.slots,
            "processes": pool.pids(),
            "max-tasks-per-child": worker.max_tasks_per_child or "N/A",
            "timeouts": list(worker.time_limits),
            "put-guarded-by-semaphore": False,
            **({"stuck": len(pool.stuck())} if "stuck" in pool.abilities else {}),
        },
        "broker": describe_broker(state.app),
        "prefetch_count": loop.window_size(),
        "rusage": _resource_usage(),
        **worker.extra_stats(),
    }


@inspect_command(alias="dump_queues")
def active_queues(state: WorkerState, **_: Any) -> Any:
    """List the task queues a worker is currently consuming from."""
    return [describe_queue(spec) for spec in state.worker.link.queues]


@inspect_command(variadic="ids", signature="[id1 [id2 … [idN]]]")
def query_task(state: WorkerState, ids: Any = (), **_: Any) -> Any:
    """Query for task information by id."""
    wanted = {ids} if isinstance(ids, str) else set(ids)
    found: dict[str, Any] = {}
    for name, flights in (("active", state.loop.running()), ("reserved", state.loop.reserved())):
        for flight in flights:
            if flight.head.id in wanted:
                found[flight.head.id] = [name, describe_flight(state, flight)]
    for _when, delivery in state.loop.scheduled():
        if isinstance(delivery.head, Head) and delivery.head.id in wanted:
            found[delivery.head.id] = ["scheduled", describe_delivery(state, delivery)]
    for stored in state.worker.link.waiting():
        if stored.task_id in wanted:  # it has ended, and nobody can know of it until its result is stored
            found[stored.task_id] = ["ready", describe_ended(state, stored)]
    return found


@inspect_command(
    alias="dump_conf",
    signature="[include_defaults=False]",
    args=[("with_defaults", lambda word: word.lower() in ("1", "true"))],
)
def conf(state: WorkerState, with_defaults: bool = False, **_: Any) -> Any:
    """List configuration."""
    return plain(state.app.conf.table(with_defaults=with_defaults))


@inspect_command()
def report(state: WorkerState, **_: Any) -> Any:
    """Information about Celeriac installation for bug reports."""
    return {"ok": state.app.bugreport()}


@inspect_command(visible=False)
def hello(state: WorkerState, from_node: str = "", revoked: Any = None, **_: Any) -> Any:
    """A starting worker asks for what the others know."""
    if from_node == state.hostname:
        return None
    ids = list(revoked or ())
    if ids:
        state.loop.revoke({id_key(str(id)): Revocation() for id in ids})
    return {"revoked": state.loop.revoked.ids(), "clock": state.app.clock.forward()}


@inspect_command()
def memsample(state: WorkerState, **_: Any) -> Any:
    """Sample current RSS memory usage."""
    kib = _resident_kib()
    text = f"{kib / 1024:.2f}MB" if kib else "N/A"
    state.memory_samples.append(text)
    del state.memory_samples[:-1000]
    return text


@inspect_command(args=[("samples", int)], signature="[n_samples=10]")
def memdump(state: WorkerState, samples: int = 10, **_: Any) -> Any:
    """Dump statistics of previous memsample requests."""
    memsample(state)
    return "\n".join(state.memory_samples[-int(samples) :])


@inspect_command(
    args=[("type", str), ("num", int), ("max_depth", int)], signature="[object_type=Request] [num=200 [max_depth=10]]"
)
def objgraph(state: WorkerState, num: int = 200, max_depth: int = 10, type: str = "Request", **_: Any) -> Any:
    """Create graph of uncollected objects (memory-leak debugging)."""
    import tempfile

    graph = import_module("objgraph")
    fd, path = tempfile.mkstemp(prefix="celeriac-objgraph-", suffix=".png")
    os.close(fd)
    graph.show_backrefs(graph.by_type(type)[:num], max_depth=max_depth, highlight=lambda _: False, filename=path)
    return {"filename": path}


# -- changing -----------------------------------------------------------------------------------------------


@control_command(variadic="task_id", signature="[id1 [id2 … [idN]]]")
def revoke(state: WorkerState, task_id: Any = (), terminate: bool = False, signal: str | None = None, **_: Any) -> Any:
    """Revoke task by task id (or list of ids)."""
    ids = [task_id] if isinstance(task_id, str) else [str(id) for id in task_id]
    found = _revoke(state, [id_key(id) for id in ids], terminate, signal)
    if not terminate:
        return {"ok": f"tasks {', '.join(ids)} flagged as revoked"}
    return {"ok": f"terminate: {', '.join(found) if found else 'tasks unknown'}"}


@control_command(variadic="headers", signature="[key1=value1 [key2=value2 … [keyN=valueN]]]")
def revoke_by_stamped_headers(
    state: WorkerState, headers: Any = (), terminate: bool = False, signal: str | None = None, **_: Any
) -> Any:
    """Revoke task by header (or list of headers)."""
    found = _revoke(state, keys_of_stamps(headers), terminate, signal)
    if not terminate:
        return {"ok": f"headers {headers} flagged as revoked"}
    return {"ok": f"terminate: {', '.join(found) if found else 'tasks unknown'}"}


def _revoke(state: WorkerState, keys: Sequence[str], terminate: bool, signal: Any) -> list[str]:
    """Revoke what these keys name; the ids of those that the pool has now."""
    revocation = Revocation(parse_signal(signal) if terminate else 0)
    wanted = set(keys)
    found = [flight.head.id for flight in state.loop.flights if not wanted.isdisjoint(keys_of(flight.head))]
    state.loop.revoke(dict.fromkeys(keys, revocation))
    return found


@control_command(variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [id2 … [idN]]]")
def terminate(state: WorkerState, signal: str | None = None, task_id: Any = (), **_: Any) -> Any:
    """Terminate task by task id (or list of ids)."""
    return revoke(state, task_id, terminate=True, signal=signal)


@control_command(
    args=[("task_name", str), ("rate_limit", str)], signature="<task_name> <rate_limit (e.g., 5/s | 5/m | 5/h)>"
)
def rate_limit(state: WorkerState, task_name: str, rate_limit: Any = None, **_: Any) -> Any:
    """Tell worker(s) to modify the rate limit for a task by type."""
    try:
        limit = rate_limit if parse_rate(rate_limit) else None
    except ValueError as exc:
        return {"error": f"Invalid rate limit string: {exc!r}"}
    task = state.app.tasks.get(task_name)
    if task is None:
        return {"error": "unknown task"}
    if limit is not None and task.rate_limit_scope == "cluster" and state.app.shared_state is None:
        return {"error": f"{task_name}: {NO_STATE}"}
    task.rate_limit = limit
    state.loop.renew_rate(task_name)
    if limit is None:
        return {"ok": "rate limit disabled successfully"}
    return {"ok": "new rate limit set successfully"}


@control_command(
    args=[("task_name", str), ("soft", float), ("hard", float)], signature="<task_name> <soft_secs> [hard_secs]"
)
def time_limit(
    state: WorkerState, task_name: str | None = None, hard: float | None = None, soft: float | None = None, **_: Any
) -> Any:
    """Tell worker(s) to modify the time limit for task by type."""
    task = state.app.tasks.get(task_name)
    if task is None:
        return {"error": "unknown task"}
    try:
        read_limits([hard, soft])
    except ValueError as exc:
        return {"error": str(exc)}
    task.soft_time_limit, task.time_limit = soft, hard
    state.loop.renew_limits(task_name)
    return {"ok": "time limits set successfully"}


@control_command(
    args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
    signature="<queue> [exchange [type [routing_key]]]",
)
def add_consumer(
    state: WorkerState,
    queue: str,
    exchange: str | None = None,
    exchange_type: str | None = None,
    routing_key: str | None = None,
    **options: Any,
) -> Any:
    """Tell worker(s) to consume from task queue by name."""
    if state.worker.consume_from(queue, exchange, exchange_type, routing_key, **options):
        return {"ok": f"add consumer {queue}"}
    return {"ok": f"already consuming from {queue}"}


@control_command(args=[("queue", str)], signature="<queue>")
def cancel_consumer(state: WorkerState, queue: str, **_: Any) -> Any:
    """Tell worker(s) to stop consuming from task queue by name."""
    state.worker.link.unsubscribe(queue)
    return {"ok": f"no longer consuming from {queue}"}


@control_command()
def enable_events(state: WorkerState, **_: Any) -> Any:
    """Tell worker(s) to send task-related events."""
    if state.worker.tell_events(True):
        return {"ok": "task events enabled"}
    return {"ok": "task events already enabled"}


@control_command()
def disable_events(state: WorkerState, **_: Any) -> Any:
    """Tell worker(s) to stop sending task-related events."""
    if state.worker.tell_events(False):
        return {"ok": "task events disabled"}
    return {"ok": "task events already disabled"}


@control_command()
def heartbeat(state: WorkerState, **_: Any) -> Any:
    """Tell worker(s) to send event heartbeat immediately."""
    if state.worker.remote is not None:
        state.worker.remote.beat()


@control_command(args=[("n", int)], signature="[N=1]")
def pool_grow(state: WorkerState, n: int = 1, **_: Any) -> Any:
    """Grow pool by n processes/threads."""
    return state.worker.resize_pool(int(n)) or {"ok": "pool will grow"}


@control_command(args=[("n", int)], signature="[N=1]")
def pool_shrink(state: WorkerState, n: int = 1, **_: Any) -> Any:
    """Shrink pool by n processes/threads."""
    return state.worker.resize_pool(-int(n)) or {"ok": "pool will shrink"}


@control_command()
def pool_restart(
    state: WorkerState, modules: Sequence[str] | None = None, reload: bool = False, reloader: Any = None, **_: Any
) -> Any:
    """Restart execution pool."""
    if not state.app.conf["worker_pool_restarts"]:
        raise ValueError("Pool restarts not enabled: set worker_pool_restarts = True")
    for name in modules or ():
        reimport(name, anew=reload)
    return state.worker.restart_pool() or {"ok": "reload started"}


@control_command(args=[("max", int), ("min", int)], signature="[max [min]]")
def autoscale(state: WorkerState, max: int | None = None, min: int | None = None, **_: Any) -> Any:
    """Modify autoscale settings."""
    scaler = state.worker.autoscaler
    if scaler is None:
        raise ValueError("Autoscale not enabled")
    most, least = scaler.update(max, min)
    return {"ok": f"autoscale now max={most} min={least}"}


@control_command()
def shutdown(state: WorkerState, msg: str = "Got shutdown from remote", **_: Any) -> Any:
    """Shutdown worker(s)."""
    _log.warning("%s", msg)
    state.worker.stop()


@control_command(args=[("id", str), ("topic", str), ("action", str)], visible=False)
def election(state: WorkerState, id: str, topic: str, action: Any = None, **_: Any) -> Any:
    """Hold election: workers of celeriac take no part."""


# -- descriptions -------------------------------------------------------------------------------------------


def describe_flight(state: WorkerState, flight: Flight, safe: bool = False) -> dict[str, Any]:
    """A request as `inspect active` shows it."""
    info = describe_delivery(state, flight.delivery, safe)
    info["time_start"] = flight.started or None
    info["acknowledged"] = flight.acked
    info["worker_pid"] = flight.pid or None
    return info


def describe_delivery(state: WorkerState, delivery: Delivery, safe: bool = False) -> dict[str, Any]:
    """A request that no slot has yet. Arguments that cannot be read are shown as the sender described them."""
    head = delivery.head
    headers: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    args: Any = ""
    kwargs: Any = ""
    exchange = routing_key = ""
    try:
        payload = state.worker.transport.unpack(delivery.raw)
        headers, properties = payload.headers, payload.properties
        exchange, routing_key = payload.route.exchange, payload.route.routing_key
        args, kwargs = headers.get("argsrepr"), headers.get("kwargsrepr")
        if not safe or args is None:
            args, kwargs, _, _ = read_call(payload, state.app.codec)
            args, kwargs = plain(args), plain(kwargs)
    except Exception as exc:  # any bytes may stand in a queue
        _log.debug("a message cannot be shown: %s", exc)
    name = getattr(head, "task", "")
    return {
        "id": getattr(head, "id", ""),
        "name": name,
        "args": args,
        "kwargs": kwargs,
        "type": name,
        "hostname": state.hostname,
        "time_start": None,
        "acknowledged": False,
        "delivery_info": {
            "exchange": exchange,
            "routing_key": routing_key or delivery.queue,
            "priority": properties.get("priority"),
            "redelivered": delivery.redelivered,
        },
        "worker_pid": None,
        "priority": properties.get("priority") or 0,
    }


def describe_ended(state: WorkerState, stored: StoredResult) -> dict[str, Any]:
    """A request whose run has ended: of its message nothing is known any more."""
    return {
        "id": stored.task_id, "name": None, "args": None, "kwargs": None, "type": None, "hostname": state.hostname,
        "time_start": None, "acknowledged": False, "delivery_info": {}, "worker_pid": None, "priority": 0,
        "state": stored.state,
    }  # fmt: skip


def describe_queue(spec: QueueSpec) -> dict[str, Any]:
    """A queue with the fields of kombu's."""
    return {
        "name": spec.name,
        "exchange": {
            "name": spec.exchange,
            "type": spec.exchange_type,
            "arguments": None,
            "durable": spec.durable,
            "passive": False,
            "auto_delete": False,
            "delivery_mode": None,
            "no_declare": False,
        },
        "routing_key": spec.routing_key or spec.name,
        "queue_arguments": dict(spec.arguments) or None,
        "binding_arguments": dict(spec.binding_arguments) or None,
        "consumer_arguments": None,
        "durable": spec.durable,
        "exclusive": spec.exclusive,
        "auto_delete": spec.auto_delete,
        "no_ack": False,
        "alias": None,
        "bindings": [],
        "no_declare": spec.no_declare or None,
        "expires": None,
        "message_ttl": None,
        "max_length": None,
        "max_length_bytes": None,
        "max_priority": spec.arguments.get("x-max-priority"),
    }


def describe_broker(app: Any) -> dict[str, Any]:
    """Where the broker is, without its password."""
    url, *others = split_urls(first_url(app.conf["broker_read_url"] or app.conf["broker_url"])) or [""]
    strategy = app.conf["broker_failover_strategy"]
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    return {
        "hostname": parts.hostname or "",
        "userid": parts.username,
        "virtual_host": parts.path.lstrip("/") or "/",
        "port": port,
        "insist": False,
        "ssl": bool(app.conf["broker_use_ssl"]),
        "transport": parts.scheme,
        "connect_timeout": app.conf["broker_connection_timeout"],
        "transport_options": {},
        "credential_provider": None,
        "login_method": app.conf["broker_login_method"],
        "uri_prefix": None,
        "heartbeat": app.conf["broker_heartbeat"],
        "failover_strategy": strategy if strategy is None or isinstance(strategy, str) else repr(strategy),
        "alternates": [mask_url(other) for other in others],
    }


def plain(value: Any, depth: int = 6) -> Any:
    """A value as JSON can carry it; what it cannot is shown by its repr."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth <= 0:
        return repr(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, depth - 1) for item in value]
    return repr(value)


def reimport(name: str, *, anew: bool) -> None:
    """Import a module; again, if it is there already and that is wished."""
    if anew and name in sys.modules:
        reload(sys.modules[name])
    else:
        import_module(name)


def _resident_kib() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)
    except (OSError, ValueError, IndexError):
        return 0


def _resource_usage() -> dict[str, Any]:
    try:
        import resource
    except ImportError:  # not on this system
        return {}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    names = (
        "utime", "stime", "maxrss", "ixrss", "idrss", "isrss", "minflt", "majflt", "nswap", "inblock", "oublock",
        "msgsnd", "msgrcv", "nsignals", "nvcsw", "nivcsw",
    )  # fmt: skip
    return {name: getattr(usage, f"ru_{name}") for name in names}
