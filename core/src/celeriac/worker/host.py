"""The consumer as steps and programs see it, and what programs may put in its place: `worker_consumer`, `worker_agent`.

celeriac's loop is `Loop` in `worker/consumer.py`, and is nobody's to replace. A `Consumer` stands beside it: it is the
parent of the steps in `app.steps["consumer"]`, starts and stops them, and hears of messages that no task is known for.
`worker_consumer` names a subclass of it; `worker_agent` a class that is started and stopped with those steps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from celeriac import bootsteps, signals
from celeriac.bootsteps import StartStopStep, Step
from celeriac.exceptions import ImproperlyConfigured, Unsupported
from celeriac.spec.data import Malformed
from celeriac.utils.names import get_cls_by_name

if TYPE_CHECKING:
    from celeriac.worker.worker import Worker

#: Methods of Celery's consumer that are parts of its loop: ours has no use for them.
OF_CELERYS_LOOP: Final = (
    "apply_eta_task", "bucket_for_task", "call_soon", "connect", "connection_for_read", "connection_for_write",
    "create_task_handler", "ensure_connected", "loop_args", "on_close", "on_connection_error_after_connected",
    "on_connection_error_before_connected", "on_decode_error", "on_invalid_task", "on_ready", "on_send_event_buffered",
    "perform_pending_operations", "register_with_event_loop", "reset_rate_limits", "shutdown", "update_strategies",
)  # fmt: skip

_log = logging.getLogger("celeriac.worker")


class Consumer:
    """What a worker consumes with, for steps and for subclasses. Made anew for each start of a worker.

    Args:
        worker_options: The worker's, for its steps.

    Attributes:
        app, hostname, pool, timer: The worker's.
        controller: The worker.
        gossip: What is known of other workers; None unless `worker_gossip` is on.
        agent: What `worker_agent` has made.
        by_force: It is stopped in a cold shutdown: steps are terminated.
    """

    class Blueprint:
        """A subclass may have one with steps of its own, beside those of `app.steps["consumer"]`."""

        default_steps: ClassVar[Sequence[Any]] = ()

    def __init__(
        self,
        on_task_request: Any = None,
        *,
        app: Any,
        controller: Worker,
        hostname: str = "",
        pool: Any = None,
        timer: Any = None,
        worker_options: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        self.app = app
        self.controller = controller
        self.hostname = hostname
        self.pool = pool
        self.timer = timer
        self.gossip = controller.gossip
        self.agent: Any = None
        self.by_force = False
        self._options = worker_options or {}
        self._steps = bootsteps.Blueprint((), self, {})

    @property
    def connection(self) -> Any:
        """A kombu connection to the broker, for whoever asks alone."""
        return self.app.connection_for_read()

    def start(self) -> None:
        """Called once the worker consumes, in its thread. Starts the steps, and returns."""
        self._listen()
        kinds = {get_cls_by_name(kind) for kind in (*self.app.steps["consumer"], *self.Blueprint.default_steps)}
        agent = agent_class(self.app)
        if agent is not None:
            kinds.add(agent)
        self._steps = bootsteps.Blueprint(kinds, self, self._options)
        self._steps.start()

    def stop(self) -> None:
        """Called when the worker begins to stop. Stops the steps."""
        self._steps.stop(by_force=self.by_force)

    def info(self) -> dict[str, Any]:
        """What its steps say of themselves."""
        return self._steps.info()

    def add_task_queue(
        self,
        queue: Any,
        exchange: str | None = None,
        exchange_type: str | None = None,
        routing_key: str | None = None,
        **options: Any,
    ) -> None:
        """Consume from this queue too. In the worker's thread: in `start`, in a hook, or in a step's `start`;
        elsewhere `app.control.add_consumer` does it."""
        name = getattr(queue, "name", queue)
        if queue is not name:
            self.app.amqp.queues.add(queue)
        self.controller.consume_from(name, exchange, exchange_type, routing_key, **options)

    def cancel_task_queue(self, queue: Any) -> None:
        """Consume from it no more; likewise."""
        self.controller.link.unsubscribe(getattr(queue, "name", queue))

    # -- hooks: a subclass's to fill; what becomes of the message is not theirs to say ------------------------------

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A message has come of a task that this worker does not know. It is offered to other workers, and may come
        again.

        Args:
            body: Its bytes.
            message: `body, headers, properties, content_type, content_encoding`.
            exc: `NotRegistered`.
        """

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """A message has come that is no task's, and was set aside.

        Args:
            body: Its bytes; all that came, if not even its headers can be read: then `message` is None.
        """

    def _listen(self) -> None:
        """Have the hooks called that a subclass has."""
        kind, loop = type(self), self.controller.loop
        if kind.on_unknown_task is not Consumer.on_unknown_task:
            signals.task_unknown.connect(self._hear_unknown, sender=loop, weak=True)
        if kind.on_unknown_message is not Consumer.on_unknown_message:
            signals.task_rejected.connect(self._hear_set_aside, sender=loop.endings, weak=True)

    def _hear_unknown(self, message: Any, exc: Exception, **_: Any) -> None:
        payload = self.controller.transport.unpack(message.raw)
        self.on_unknown_task(payload.body, payload, exc)

    def _hear_set_aside(self, message: Any, **_: Any) -> None:
        if isinstance(message.head, Malformed) or not message.head.task:
            try:
                payload = self.controller.transport.unpack(message.raw)
            except ValueError:
                self.on_unknown_message(message.raw, None)
            else:
                self.on_unknown_message(payload.body, payload)


class Agent(StartStopStep):
    """The step that makes, starts and stops what `worker_agent` names: a class that is called with a kombu connection,
    as by Celery (None on brokers that kombu does not know), and whose objects have `start` and `stop`."""

    name = "celeriac.worker.consumer:Agent"
    label = "Agent"
    requires = ("celeriac.worker.consumer:Connection",)

    def create(self, parent: Any) -> Any:
        """See `Step.create`."""
        try:
            self._connection = parent.connection
        except Unsupported:
            self._connection = None
        parent.agent = get_cls_by_name(parent.app.conf["worker_agent"])(self._connection)
        return parent.agent

    def stop(self, parent: Any) -> None:
        """See `StartStopStep.stop`."""
        try:
            super().stop(parent)
        finally:
            if self._connection is not None:
                self._connection.release()


def agent_class(app: Any) -> type[Step] | None:
    """The step for `worker_agent`: itself, if it names one.

    Raises:
        ImproperlyConfigured: It names nothing.
    """
    if app.conf["worker_agent"] is None:
        return None
    kind = _find(app, "worker_agent")
    return kind if isinstance(kind, type) and issubclass(kind, Step) else Agent


def consumer_class(app: Any) -> type[Consumer]:
    """The class that `worker_consumer` names.

    Raises:
        ImproperlyConfigured: It names nothing, or what is no subclass of `Consumer`.
    """
    kind = _find(app, "worker_consumer")
    if not (isinstance(kind, type) and issubclass(kind, Consumer)):
        raise ImproperlyConfigured(
            f"worker_consumer: {app.conf['worker_consumer']!r} is no subclass of celeriac.worker.consumer:Consumer. "
            "celeriac's worker has a loop of its own, so a consumer written for Celery must be made one."
        )
    unheard = [name for name in OF_CELERYS_LOOP if getattr(kind, name, None) is not getattr(Consumer, name, None)]
    if unheard:
        _log.warning("%s.%s: this worker does not call %s.", kind.__module__, kind.__qualname__, ", ".join(unheard))
    return kind


def _find(app: Any, setting: str) -> Any:
    try:
        return get_cls_by_name(app.conf[setting])
    except (ImportError, AttributeError, ValueError) as exc:
        raise ImproperlyConfigured(f"{setting}: {app.conf[setting]!r} leads to nothing: {exc}") from exc
