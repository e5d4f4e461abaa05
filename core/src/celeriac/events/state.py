"""What is known of a cluster from its events: workers and tasks. For monitors; nothing here speaks to a server.

Events come late and out of order; a task's state never goes back to a weaker one, except to be retried.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

from celeriac import states
from celeriac.utils.bounded import Bounded

#: A worker is alive for so many of its own intervals after its last heartbeat.
HEARTBEAT_INTERVALS: Final = 2
HEARTBEATS_KEPT: Final = 8
#: The state that an event brings.
TASK_EVENT_STATES: Final = {
    "sent": states.PENDING,
    "received": states.RECEIVED,
    "started": states.STARTED,
    "failed": states.FAILURE,
    "retried": states.RETRY,
    "succeeded": states.SUCCESS,
    "revoked": states.REVOKED,
    "rejected": states.REJECTED,
    "cancelled": states.RETRY,
}
#: Said when the call is sent or arrives, so still right when the news of it comes last.
CALL_FIELDS: Final = (
    "name", "args", "kwargs", "parent_id", "root_id", "retries", "eta", "expires", "client", "queue", "exchange",
    "routing_key",
)  # fmt: skip
#: What tasks are found by; whoever sends events may put anything there.
_TEXTS: Final = ("name", "parent_id", "root_id")


class Worker:
    """A worker as its events show it."""

    def __init__(
        self, hostname: str | None = None, pid: int | None = None, freq: float = 60, event: Any = None, **fields: Any
    ) -> None:
        self.hostname = hostname
        self.pid = pid
        self.freq = freq
        self.heartbeats: list[float] = []
        self.clock = 0
        self.active: int | None = None
        self.processed: int | None = None
        self.loadavg: Any = None
        self.sw_ident: str | None = None
        self.sw_ver: str | None = None
        self.sw_sys: str | None = None
        self.is_offline = False
        self.update(fields)

    def update(self, f: dict[str, Any], **fields: Any) -> None:
        """Take over fields."""
        for name, value in {**f, **fields}.items():
            setattr(self, name, value)

    def event(self, type: str, timestamp: float | None, local_received: float | None, fields: dict[str, Any]) -> None:
        """Note one event; `type` is without its `worker-`."""
        for name in ("pid", "clock", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys"):
            if fields.get(name) is not None:
                setattr(self, name, fields[name])
        if isinstance(fields.get("freq"), (int, float)):
            self.freq = fields["freq"]
        if type == "offline":
            self.is_offline = True
            self.heartbeats.clear()
            return
        self.is_offline = False
        if local_received is not None:
            self.heartbeats = [*self.heartbeats[1 - HEARTBEATS_KEPT :], local_received]

    @property
    def heartbeat_expires(self) -> float:
        """Until when it counts as alive."""
        return self.heartbeats[-1] + self.freq * HEARTBEAT_INTERVALS if self.heartbeats else 0.0

    @property
    def alive(self) -> bool:
        """It has given a sign of life lately."""
        return bool(self.heartbeats) and time.time() < self.heartbeat_expires

    @property
    def status_string(self) -> str:
        """`ONLINE` or `OFFLINE`."""
        return "ONLINE" if self.alive else "OFFLINE"

    @property
    def id(self) -> str:
        """Name and process."""
        return f"{self.hostname}.{self.pid}"

    def __repr__(self) -> str:
        return f"<Worker: {self.hostname} ({self.status_string})>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Worker) and other.hostname == self.hostname

    def __hash__(self) -> int:
        return hash(self.hostname)


class Task:
    """A task as its events show it. A field that no event has told is None."""

    name: str | None = None
    args: str | None = None
    kwargs: str | None = None
    #: When each of its events was sent, as unix time.
    sent: float | None = None
    received: float | None = None
    started: float | None = None
    succeeded: float | None = None
    failed: float | None = None
    retried: float | None = None
    revoked: float | None = None
    rejected: float | None = None
    cancelled: float | None = None
    timestamp: float | None = None
    eta: str | None = None
    expires: str | None = None
    retries: int | None = None
    worker: Worker | None = None
    result: str | None = None
    exception: str | None = None
    traceback: str | None = None
    runtime: float | None = None
    exchange: str | None = None
    routing_key: str | None = None
    queue: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    client: str | None = None
    clock = 0
    state: str = states.PENDING

    #: What `info` shows unless asked for other fields.
    _info_fields: Final = (
        "args", "kwargs", "retries", "result", "eta", "runtime", "expires", "exception", "exchange", "routing_key",
        "root_id", "parent_id",
    )  # fmt: skip

    def __init__(self, uuid: str, cluster_state: State | None = None, children: Iterable[str] = (), **fields: Any):
        self.uuid = uuid
        self.cluster_state = cluster_state
        self._children = set(children)
        self.__dict__.update(fields)

    def event(
        self, type: str, timestamp: float | None = None, local_received: float | None = None, fields: Any = None
    ) -> None:
        """Note one event; `type` is without its `task-`."""
        fields = dict(fields or {})
        fields.pop("type", None)
        state = TASK_EVENT_STATES.get(type)
        if state is not None:
            setattr(self, type, timestamp)
        else:
            state = type.upper()
        late = (
            states.RETRY not in (state, self.state)
            and states.precedence(state) > states.precedence(self.state)
        )  # fmt: skip
        if late:
            fields = {name: fields[name] for name in CALL_FIELDS if fields.get(name) is not None}
        else:
            self.state = state
            self.timestamp = timestamp
        self.__dict__.update(fields)

    @property
    def ready(self) -> bool:
        """It has ended."""
        return self.state in states.READY_STATES

    @property
    def id(self) -> str:
        """Its id."""
        return self.uuid

    @property
    def origin(self) -> Any:
        """Who sent it, or the process that runs it."""
        return self.client if self.worker is None else self.worker.id

    @property
    def parent(self) -> Task | None:
        """The task that called it, if that is known."""
        return self.cluster_state.tasks.get(self.parent_id) if self.cluster_state and self.parent_id else None

    @property
    def root(self) -> Task | None:
        """The first task of its tree, if that is known."""
        return self.cluster_state.tasks.get(self.root_id) if self.cluster_state and self.root_id else None

    @property
    def children(self) -> list[Task]:
        """The tasks that it called, as far as they are known."""
        tasks = self.cluster_state.tasks if self.cluster_state else {}
        return [tasks[uuid] for uuid in self._children if uuid in tasks]

    def info(self, fields: Iterable[str] | None = None, extra: Iterable[str] = ()) -> dict[str, Any]:
        """The fields that are known, as a dict."""
        names = [*(self._info_fields if fields is None else fields), *extra]
        return {name: value for name in names if (value := getattr(self, name, None)) is not None}

    def as_dict(self) -> dict[str, Any]:
        """All fields as a dict."""
        return {name: value for name, value in self.__dict__.items() if name != "cluster_state"}

    def __repr__(self) -> str:
        return f"<Task: {self.name}({self.uuid}) {self.state} clock:{self.clock}>"


def heartbeat_expires(
    timestamp: float, freq: float = 60.0, expire_window: float = 100.0 * HEARTBEAT_INTERVALS
) -> float:
    """Until when a worker counts as alive that gave a sign of life at `timestamp`.

    Args:
        freq: Seconds between two of them.
        expire_window: Percent of that after which it is taken for dead.
    """
    return timestamp + freq * expire_window / 100


class State:
    """Workers and tasks of a cluster.

    Args:
        callback: Called with the state and each event.
        on_node_join, on_node_leave: Called with a worker.
        max_workers_in_memory, max_tasks_in_memory: The oldest are forgotten beyond these.
    """

    def __init__(
        self,
        callback: Callable[[State, dict[str, Any]], Any] | None = None,
        workers: Any = None,
        tasks: Any = None,
        taskheap: Any = None,
        max_workers_in_memory: int = 5000,
        max_tasks_in_memory: int = 10_000,
        on_node_join: Callable[[Worker], Any] | None = None,
        on_node_leave: Callable[[Worker], Any] | None = None,
        **_: Any,
    ) -> None:
        self.event_callback = callback
        self.on_node_join = on_node_join
        self.on_node_leave = on_node_leave
        self.max_workers_in_memory = max_workers_in_memory
        self.max_tasks_in_memory = max_tasks_in_memory
        self.event_count = 0
        self.task_count = 0
        self.workers: dict[str, Worker] = Bounded(max_workers_in_memory)
        self.tasks: dict[str, Task] = Bounded(max_tasks_in_memory)
        self.workers.update(workers or {})
        self.tasks.update(tasks or {})
        self.handlers: dict[str, Callable[..., Any]] = {}
        #: Ids of tasks by that of a parent which is not known (yet).
        self._orphans: dict[str, set[str]] = Bounded(max_tasks_in_memory)
        self._names: set[str] = set()
        self._lock = threading.RLock()

    def event(self, event: dict[str, Any]) -> tuple[Any, str]:
        """Note one event; what it is about, and its type without the first word."""
        with self._lock:
            self.event_count += 1
            if self.event_callback is not None:
                self.event_callback(self, event)
            group, _, subject = event["type"].partition("-")
            if group == "worker":
                return self._worker_event(event, subject), subject
            if group == "task":
                return self._task_event(event, subject), subject
            handler = self.handlers.get(group)
            return (handler(subject, event) if handler else None), subject

    def worker_event(self, type_: str, fields: dict[str, Any]) -> tuple[Worker, bool]:
        """Note an event of a worker; `type_` is without its `worker-`. The worker, and whether it is new here."""
        with self._lock:
            return self._worker_event(fields, type_)

    def task_event(self, type_: str, fields: dict[str, Any]) -> tuple[Task, bool]:
        """Note an event of a task, likewise."""
        with self._lock:
            return self._task_event(fields, type_)

    def _worker_event(self, event: dict[str, Any], subject: str) -> tuple[Worker, bool]:
        hostname = str(event.get("hostname") or "")
        worker, is_new = self.get_or_create_worker(hostname)
        before = worker.alive
        worker.event(subject, event.get("timestamp"), event.get("local_received"), event)
        if self.on_node_join is not None and subject != "offline" and not before:
            self.on_node_join(worker)
        if subject == "offline" and (is_new or self.on_node_leave is not None):
            self.workers.pop(hostname, None)  # else whoever looks sees that it is offline
        if subject == "offline" and self.on_node_leave is not None:
            self.on_node_leave(worker)
        return worker, is_new

    def _task_event(self, event: dict[str, Any], subject: str) -> tuple[Task, bool]:
        fields = {name: value for name, value in event.items() if name not in ("uuid", "hostname", "timestamp")}
        for name in _TEXTS:
            if fields.get(name) is not None:
                fields[name] = str(fields[name])
        task, is_new = self.get_or_create_task(str(event.get("uuid")))
        hostname = str(event.get("hostname") or "")
        if subject == "sent":
            fields["client"] = hostname
        else:
            worker, _ = self.get_or_create_worker(hostname)
            fields["worker"] = worker
            if worker.heartbeats and event.get("local_received"):
                worker.event("", event.get("timestamp"), event["local_received"], {})
        self.task_count += subject == "received"
        task.event(subject, event.get("timestamp"), event.get("local_received"), fields)
        if task.name:
            self._names.add(task.name)
        if task.parent_id:
            parent = self.tasks.get(task.parent_id)
            children = self._orphans.setdefault(task.parent_id, set()) if parent is None else parent._children
            children.add(task.uuid)
            if len(children) > 2 * self.max_tasks_in_memory:
                children.intersection_update(self.tasks)
        return task, is_new

    def get_or_create_worker(self, hostname: str, **fields: Any) -> tuple[Worker, bool]:
        """The worker of that name, and whether it is new here."""
        worker = self.workers.get(hostname)
        if worker is not None:
            worker.update(fields)
            return worker, False
        worker = self.workers[hostname] = Worker(hostname, **fields)
        return worker, True

    def get_or_create_task(self, uuid: str) -> tuple[Task, bool]:
        """The task of that id, and whether it is new here."""
        task = self.tasks.get(uuid)
        if task is not None:
            return task, False
        task = self.tasks[uuid] = Task(uuid, cluster_state=self, children=self._orphans.pop(uuid, ()))
        return task, True

    # -- looking --------------------------------------------------------------------------------------------

    def itertasks(self, limit: int | None = None) -> Iterator[tuple[str, Task]]:
        """Tasks by id, as they came to be known."""
        return islice(list(self.tasks.items()), limit)

    def tasks_by_time(self, limit: int | None = None, reverse: bool = True) -> Iterator[tuple[str, Task]]:
        """Tasks by their last news, the newest first."""
        items = sorted(
            self.tasks.items(), key=lambda item: (item[1].clock or 0, item[1].timestamp or 0.0), reverse=reverse
        )
        return islice(items, limit)

    tasks_by_timestamp = tasks_by_time

    def tasks_by_type(self, name: str, limit: int | None = None, reverse: bool = True) -> Iterator[tuple[str, Task]]:
        """Those of one name."""
        return islice((item for item in self.tasks_by_time(None, reverse) if item[1].name == name), limit)

    def tasks_by_worker(
        self, hostname: str, limit: int | None = None, reverse: bool = True
    ) -> Iterator[tuple[str, Task]]:
        """Those that one worker has received."""
        found = (
            item
            for item in self.tasks_by_time(None, reverse)
            if item[1].worker is not None and item[1].worker.hostname == hostname
        )
        return islice(found, limit)

    def task_types(self) -> list[str]:
        """Names of all tasks that were heard of."""
        return sorted(self._names)

    def alive_workers(self) -> Iterator[Worker]:
        """Workers that gave a sign of life lately."""
        return (worker for worker in list(self.workers.values()) if worker.alive)

    # -- keeping --------------------------------------------------------------------------------------------

    def freeze_while(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function while no event is noted; with `clear_after` forget what has ended afterwards."""
        clear_after = kwargs.pop("clear_after", False)
        with self._lock:
            try:
                return fun(*args, **kwargs)
            finally:
                if clear_after:
                    self._clear()

    def clear(self, ready: bool = True) -> None:
        """Forget all tasks (with `ready`, only those that have ended), and the counts."""
        with self._lock:
            self._clear(ready)

    def clear_tasks(self, ready: bool = True) -> None:
        """Forget all tasks, or only those that have ended."""
        with self._lock:
            self._clear_tasks(ready)

    def _clear_tasks(self, ready: bool = True) -> None:
        kept = {uuid: task for uuid, task in self.tasks.items() if not task.ready} if ready else {}
        self.tasks.clear()
        self.tasks.update(kept)
        self._orphans.clear()

    def _clear(self, ready: bool = True) -> None:
        self.workers.clear()
        self._clear_tasks(ready)
        self.event_count = self.task_count = 0

    def __repr__(self) -> str:
        return f"<State: events={self.event_count} tasks={self.task_count}>"
