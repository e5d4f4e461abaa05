"""`app.amqp`: queues, routes and messages as Celery's users reach them, in kombu's vocabulary.

A view of the app's router: nothing is kept here. kombu is imported when a kombu object is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from celeriac.app.sending import build_payload, publish
from celeriac.messaging.protocol import EMPTY_EMBED, REPR_CHARS
from celeriac.spec.data import QueueSpec

if TYPE_CHECKING:
    from celeriac.app.base import Celery
    from celeriac.messaging.routes import Router

__all__ = ["AMQP", "Queues", "task_message"]


class task_message(NamedTuple):
    """A message that was made and not yet sent; `body` is `(args, kwargs, embed)`."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    body: tuple[Any, Any, Any] | dict[str, Any]
    sent_event: dict[str, Any] | None


class AMQP:
    """See the module."""

    argsrepr_maxsize = REPR_CHARS
    kwargsrepr_maxsize = REPR_CHARS
    task_protocols = (1, 2)

    def __init__(self, app: Celery) -> None:
        self.app = app

    @property
    def queues(self) -> Queues:
        """Queues by name, as `kombu.Queue`s; changing it changes what the app knows and what its worker consumes."""
        return Queues(self.app)

    @property
    def router(self) -> Router:
        """Finds the route of a call."""
        return self.app.router

    @property
    def routes(self) -> Any:
        """The setting `task_routes`."""
        return self.app.conf["task_routes"]

    @property
    def default_queue(self) -> Any:
        """The queue of calls that no route claims."""
        return self.queues[self.app.conf["task_default_queue"]]

    @property
    def default_exchange(self) -> Any:
        """The exchange of queues that name none."""
        conf = self.app.conf
        return import_module("kombu").Exchange(conf["task_default_exchange"], type=conf["task_default_exchange_type"])

    @property
    def utc(self) -> bool:
        """The setting `enable_utc`."""
        return bool(self.app.conf["enable_utc"])

    @property
    def producer_pool(self) -> Any:
        """kombu producers of this app's broker."""
        return self.app.producer_pool

    @property
    def Connection(self) -> Any:
        """`kombu.Connection`."""
        return import_module("kombu").Connection

    @property
    def Producer(self) -> Any:
        """`kombu.Producer`."""
        return import_module("kombu").Producer

    @property
    def Consumer(self) -> Any:
        """`kombu.Consumer`."""
        return import_module("kombu").Consumer

    def TaskConsumer(self, channel: Any, queues: Any = None, accept: Any = None, **options: Any) -> Any:
        """A kombu consumer of task messages on this app's queues."""
        wanted = list(self.queues.consume_from.values()) if queues is None else queues
        accepted = self.app.conf["accept_content"] if accept is None else accept
        return self.Consumer(channel, accept=list(accepted), queues=wanted, **options)

    def create_task_message(
        self, task_id: str, name: str, args: Sequence[Any] | None = None, kwargs: Any = None, **options: Any
    ) -> task_message:
        """The message of a call, not sent; options as of `apply_async`."""
        payload = build_payload(self.app, name, args, kwargs, task_id, options)
        body = self.app.codec.decode(payload.body, payload.content_type, payload.headers.get("compression"))
        body = body if isinstance(body, dict) else tuple(body)
        return task_message(payload.headers, payload.properties, body, None)

    def send_task_message(self, producer: Any, name: str, message: task_message, **options: Any) -> None:
        """Send what `create_task_message` made, perhaps with other headers and properties.

        Args:
            producer: Unused: messages go through the broker plugin.
            options: `queue`, `exchange`, `routing_key`, `serializer`, `compression`, `retry`, `retry_policy`.
        """
        app, headers = self.app, dict(message.headers)
        headers.pop("compression", None)
        if isinstance(message.body, dict):  # protocol 1
            args, kwargs, embed = message.body["args"], message.body["kwargs"], {**EMPTY_EMBED, **message.body}
        else:
            args, kwargs, embed = message.body
        call = {key: options[key] for key in ("serializer", "compression") if options.get(key) is not None}
        where = {key: options[key] for key in ("queue", "exchange", "routing_key") if options.get(key) is not None}
        linked = {"link": embed["callbacks"], "link_error": embed["errbacks"]}
        linked |= {key: embed[key] for key in ("chain", "chord")}
        payload = build_payload(app, name, args, kwargs, headers["id"], {**call, **where, **linked})
        payload.headers.update(headers)
        payload.properties.update(message.properties)
        if app.codec.seal is not None:
            app.codec.seal.put_on(payload)
        publish(app, [payload], options)


class Queues(MutableMapping[str, Any]):
    """The queues an app knows, by name or alias, as `kombu.Queue`s made at each look."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    @property
    def _router(self) -> Router:
        return self._app.router

    def __getitem__(self, name: str) -> Any:
        router = self._router
        name = router.aliases.get(name, name)
        if name not in router.queues and not self._app.conf["task_create_missing_queues"]:
            raise KeyError(name)
        return as_kombu(router.spec(name), router.alias_of(name), router.bindings.get(name, ()))

    def __setitem__(self, name: str, queue: Any) -> None:
        self.add(queue)

    def __delitem__(self, name: str) -> None:
        self._router.forget(name)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._router.queues))

    def __len__(self) -> int:
        return len(self._router.queues)

    def __contains__(self, name: object) -> bool:
        return name in self._router.queues or name in self._router.aliases

    @property
    def aliases(self) -> dict[str, Any]:
        """Queues by their other names (`Broadcast('news')` is known as `news`)."""
        return {alias: self[name] for alias, name in self._router.aliases.items()}

    @property
    def consume_from(self) -> dict[str, Any]:
        """Those that a worker of this app consumes."""
        return {name: self[name] for name in self._router.consumed()}

    def add(self, queue: Any, **options: Any) -> Any:
        """Know one more queue: a `kombu.Queue`, or a name and the options of an entry of `task_queues`."""
        router = self._router
        return self[router.add(queue, **options)]

    def select(self, include: str | Iterable[str] | None) -> None:
        """Let workers consume these only."""
        names = [include] if isinstance(include, str) else list(include or ())
        if names:
            self._router.select_only(names)

    def deselect(self, exclude: str | Iterable[str] | None) -> None:
        """Let workers not consume these."""
        self._router.deselect([exclude] if isinstance(exclude, str) else list(exclude or ()))

    def select_add(self, queue: Any, **options: Any) -> Any:
        """`add`, and let workers consume it too."""
        added = self.add(queue, **options)
        self._router.select_also(added.name)
        return added

    def new_missing(self, name: str) -> Any:
        """The queue that is made of a name that nobody declared."""
        return as_kombu(self._router.missing(name), None)

    def format(self, indent: int = 0, indent_first: bool = True) -> str:
        """One line for each that is consumed: name, exchange and key."""
        lines = []
        for name in sorted(self.consume_from):
            spec = self._router.spec(name)
            kind = spec.exchange_type
            lines.append(f".> {name:<16} exchange={spec.exchange or name}({kind}) key={spec.routing_key or name}")
        pad = " " * indent
        text = ("\n" + pad).join(lines)
        return f"{pad}{text}" if indent_first else text


def as_kombu(spec: QueueSpec, alias: str | None, bindings: Iterable[QueueSpec] = ()) -> Any:
    """A `kombu.Queue` that declares what the spec does, and these further bindings."""
    kombu: Any = import_module("kombu")
    queue = kombu.Queue(
        spec.name,
        kombu.Exchange(spec.exchange or spec.name, type=spec.exchange_type),
        routing_key=spec.routing_key or spec.name,
        durable=spec.durable,
        auto_delete=spec.auto_delete,
        exclusive=spec.exclusive,
        queue_arguments=dict(spec.arguments) or None,
        alias=alias,
    )
    for bound in bindings:  # given to `Queue`, they would be instead of its own exchange
        queue.bindings.add(
            kombu.binding(kombu.Exchange(bound.exchange, type=bound.exchange_type), routing_key=bound.routing_key)
        )
    return queue
