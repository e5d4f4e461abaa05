"""Task name to queue: the queues an app knows, and the rules that choose among them.

`task_routes` takes what Celery takes: a dict of names, globs or compiled patterns, a list of pairs, a function,
an object with `route_for_task`, a dotted path to one, or a list of those; the first that answers wins,
and options of the call itself win over the route.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from msgspec.structs import replace

from celeriac.exceptions import ImproperlyConfigured, QueueNotFound
from celeriac.spec.data import ExchangeSpec, QueueSpec, Route
from celeriac.utils.bounded import Bounded
from celeriac.utils.names import get_cls_by_name

Rule = Callable[[str, Any, Any, dict[str, Any], Any], "dict[str, Any] | None"]

#: Options of a call that say where it goes.
ROUTING_OPTIONS = ("queue", "exchange", "routing_key", "exchange_type")
#: Of so many queues that nobody declared, and of so many tasks, it is remembered where they are.
REMEMBERED = 10_000


class QueueChoice:
    """What a program chose by `app.amqp.queues`, or a worker by its options.

    Attributes:
        added: Queues beside those of the settings: a kombu Queue or a name, and options.
        only: What workers consume; None: all.
        without: What they do not.
    """

    def __init__(self) -> None:
        self.added: list[tuple[Any, Mapping[str, Any]]] = []
        self.only: list[str] | None = None
        self.without: set[str] = set()


class Router:
    """Finds the route of each call of one app; answers for plain calls are remembered.

    Args:
        conf: The app's settings, by item.
        choice: What the program chose beyond them; outlives the router, which is made anew when settings change.

    Attributes:
        queues: By name: those that were declared, which workers consume. Others to which something is sent are not.
        aliases: Other name → name: `Broadcast('news')` is known as `news`.
        broadcasts: Names of kombu's `Broadcast` queues: each worker has one of its own, and no sender declares it.
        bindings: Name → the queue once more for each further binding of it, kombu's `Queue(name, [binding(…), …])`.
    """

    def __init__(self, conf: Mapping[str, Any], choice: QueueChoice | None = None) -> None:
        self._conf = conf
        self._choice = choice or QueueChoice()
        self.queues: dict[str, QueueSpec] = {}
        self._others: dict[str, QueueSpec] = Bounded(REMEMBERED)
        self.aliases: dict[str, str] = {}
        self.broadcasts: set[str] = set()
        self.bindings: dict[str, list[QueueSpec]] = {}
        self._broadcast_exchanges: dict[str, QueueSpec] = {}
        self.default_queue: str = conf["task_default_queue"]
        for queue, options in [*_declared_queues(conf), *self._choice.added]:
            self._know(queue, options)
        if not self.queues or (self._choice.added and not conf["task_queues"]):
            self.queues = {self.default_queue: _default_spec(conf), **self.queues}
        self._rules = _make_rules(conf["task_routes"])
        self._direct: dict[str, Route] = Bounded(REMEMBERED)
        self._by_task: dict[str, tuple[Route, dict[str, Any]]] = Bounded(REMEMBERED)
        # Only a dict of plain names gives the same answer for every call of one task.
        self._stable = all(getattr(rule, "stable", False) for rule in self._rules)

    def route(
        self, name: str, args: Any, kwargs: Any, options: dict[str, Any], task: Any = None
    ) -> tuple[Route, dict[str, Any]]:
        """Where a call goes, and the route's other options (priority, serializer …).

        Args:
            options: The call's own; its routing options are honoured before any rule.
        Raises:
            QueueNotFound: The queue is not declared and `task_create_missing_queues` is off.
        """
        plain = self._stable and not any(key in options for key in ROUTING_OPTIONS)
        if plain:
            known = self._by_task.get(name)
            if known is not None:
                return known
        found: dict[str, Any] = {}
        for rule in self._rules:
            answer = rule(name, args, kwargs, options, task)
            if answer is not None:
                found = dict(answer)
                break
        merged = {**found, **{key: options[key] for key in ROUTING_OPTIONS if options.get(key) is not None}}
        route = self._resolve(merged)
        extra = {key: value for key, value in found.items() if key not in ROUTING_OPTIONS}
        if plain:
            self._by_task[name] = (route, extra)
        return route, extra

    def direct(self, queue: str) -> Route:
        """The route to a queue by its name or alias."""
        route = self._direct.get(queue)
        if route is None:
            spec = self.spec(queue)
            if spec.name in self.broadcasts:
                route = Route(spec.routing_key, spec.exchange, "fanout", "")
            elif spec.exchange_type == "direct" or not spec.exchange:
                route = Route(spec.name, "", "direct", spec.name)
            else:
                route = Route(spec.routing_key, spec.exchange, spec.exchange_type, spec.name)
            self._direct[queue] = route
        return route

    def is_broadcast(self, route: Route) -> bool:
        """Whether this route leads to workers that listen, rather than to queues."""
        return not route.queue and route.exchange in self._broadcast_exchanges

    def spec(self, queue: str) -> QueueSpec:
        """The declaration of a queue, by name or alias; a missing one is made, if that is allowed.

        Raises:
            QueueNotFound: It is not.
        """
        spec = self.queues.get(queue) or self.queues.get(self.aliases.get(queue, queue)) or self._others.get(queue)
        if spec is None:
            if not self._conf["task_create_missing_queues"]:
                raise QueueNotFound(
                    f"queue {queue!r} is not in task_queues ({', '.join(sorted(self.queues))}) and "
                    f"task_create_missing_queues is off"
                )
            spec = self._others[queue] = _missing_spec(queue, self._conf)
        return spec

    def declarations(self, queue: str) -> list[QueueSpec]:
        """All that there is to declare for a queue: its bindings, itself last."""
        spec = self.spec(queue)
        return [*self.bindings.get(spec.name, ()), spec]

    def broadcast_exchange(self, route: Route) -> ExchangeSpec:
        """The exchange of a route for which `is_broadcast` holds."""
        return ExchangeSpec(route.exchange, "fanout", durable=self._broadcast_exchanges[route.exchange].durable)

    def missing(self, name: str) -> QueueSpec:
        """What is declared for a name that nobody declared."""
        return _missing_spec(name, self._conf)

    def alias_of(self, queue: str) -> str | None:
        """The other name of a queue."""
        return next((alias for alias, name in self.aliases.items() if name == queue), None)

    def add(self, queue: Any, **options: Any) -> str:
        """Know one more queue: a kombu Queue, or a name with the options of an entry of `task_queues`; its name."""
        self._choice.added.append((queue, options))
        self._direct.clear()
        self._by_task.clear()
        return self._know(queue, options)

    def forget(self, name: str) -> None:
        """Know a queue no more.

        Raises:
            KeyError: It is not known.
        """
        if self._others.pop(name, None) is None or name in self.queues:
            del self.queues[name]
        self._choice.added = [entry for entry in self._choice.added if _name_of(entry[0]) != name]
        self._direct.clear()
        self._by_task.clear()

    def select_only(self, names: Iterable[str]) -> None:
        """Let workers consume these, and no others."""
        self._choice.only = list(dict.fromkeys(names))
        self._choice.without.clear()

    def select_also(self, name: str) -> None:
        """Let workers consume this one, too."""
        self._choice.without.discard(name)
        if self._choice.only is not None and name not in self._choice.only:
            self._choice.only.append(name)

    def deselect(self, names: Iterable[str]) -> None:
        """Let workers not consume these."""
        self._choice.without.update(names)

    @contextmanager
    def choice_for(self, only: Sequence[str], without: Sequence[str]) -> Iterator[None]:
        """For the while, what workers consume is what one worker's options say; without any, what the program chose."""
        choice = self._choice
        before = (choice.only, set(choice.without))
        if only:
            self.select_only(only)
        elif choice.only is not None:
            choice.only = list(choice.only)
        self.deselect(without)
        try:
            yield
        finally:
            choice.only, choice.without = before

    def consumed(self) -> list[str]:
        """The names of the queues that a worker consumes: the chosen ones, else all that are known."""
        names = [self.spec(name).name for name in self._choice.only] if self._choice.only else list(self.queues)
        without = {self.aliases.get(name, name) for name in self._choice.without}
        return [name for name in names if name not in without]

    def _know(self, queue: Any, options: Mapping[str, Any], declared: bool = True) -> str:
        if isinstance(queue, str):
            spec = _spec_from_options(queue, options, self._conf) if options else _missing_spec(queue, self._conf)
        else:
            spec = spec_from_queue(queue, self._conf)
            self.bindings.pop(spec.name, None)
            further = _further_bindings(queue, spec)
            if further:
                self.bindings[spec.name] = further
            alias = getattr(queue, "alias", None)
            if alias:
                self.aliases[alias] = spec.name
            if type(queue).__name__ == "Broadcast":
                self.broadcasts.add(spec.name)
                self._broadcast_exchanges[spec.exchange] = spec
        (self.queues if declared else self._others)[spec.name] = spec
        return spec.name

    def select(self, names: Iterable[str]) -> list[QueueSpec]:
        """The declarations of the named queues, in that order (the worker's `-Q`)."""
        return [self.spec(name) for name in names]

    def _resolve(self, options: dict[str, Any]) -> Route:
        queue = options.get("queue")
        if queue is not None and not isinstance(queue, str):  # a kombu Queue, given as such
            known = queue.name in self.queues or queue.name in self._others
            queue = queue.name if known else self._know(queue, {}, declared=False)
        exchange, key = options.get("exchange"), options.get("routing_key")
        if exchange is not None and not isinstance(exchange, str):
            options = {**options, "exchange_type": exchange.type}
            exchange = exchange.name
        if key is not None and not isinstance(key, str):  # a number, in a signature that came over the wire
            key = str(key)
        if queue is None and exchange is None and key is None:
            return self.direct(self.default_queue)
        if queue is not None:
            spec = self.spec(queue)
            if spec.exchange_type == "direct" or not spec.exchange or spec.name in self.broadcasts:
                return self.direct(queue)
            return Route(key or spec.routing_key, exchange or spec.exchange, spec.exchange_type, queue)
        default = self.spec(self.default_queue)
        name = exchange if exchange is not None else default.exchange
        kind = str(options.get("exchange_type") or self._exchange_type(name))
        return Route(key if key is not None else default.routing_key, name, kind, "")

    def _exchange_type(self, exchange: str) -> str:
        for name, spec in [*self.queues.items(), *self._others.items()]:
            for bound in (spec, *self.bindings.get(name, ())):
                if bound.exchange == exchange:
                    return str(bound.exchange_type)
        return str(self._conf["task_default_exchange_type"])


def spec_from_queue(queue: Any, conf: Mapping[str, Any]) -> QueueSpec:
    """A `QueueSpec` from a kombu Queue (recognised by its attributes, so that kombu need not be imported)."""
    exchange = queue.exchange
    name = getattr(exchange, "name", "")
    kind = exchange.type if name else None  # without a name it is kombu's for none: the default one is meant
    arguments = dict(queue.queue_arguments or {})
    for attribute, argument, scale in (
        ("expires", "x-expires", 1000),
        ("message_ttl", "x-message-ttl", 1000),
        ("max_length", "x-max-length", 1),
        ("max_length_bytes", "x-max-length-bytes", 1),
        ("max_priority", "x-max-priority", 1),
    ):
        value = getattr(queue, attribute, None)
        if value is not None:
            arguments[argument] = int(value * scale)
    _add_max_priority(arguments, conf)
    return QueueSpec(
        queue.name,
        name or conf["task_default_exchange"] or conf["task_default_queue"],
        kind or conf["task_default_exchange_type"],
        queue.routing_key or conf["task_default_routing_key"] or conf["task_default_queue"],
        bool(queue.durable),
        bool(queue.auto_delete),
        bool(queue.exclusive),
        arguments,
        dict(getattr(queue, "binding_arguments", None) or {}),
        bool(getattr(queue, "no_declare", False)),
    )


def _further_bindings(queue: Any, spec: QueueSpec) -> list[QueueSpec]:
    return [
        replace(
            spec,
            exchange=bound.exchange.name,
            exchange_type=bound.exchange.type,
            routing_key=bound.routing_key or "",
            binding_arguments=dict(getattr(bound, "arguments", None) or {}),
        )
        for bound in getattr(queue, "bindings", None) or ()
    ]


def _declared_queues(conf: Mapping[str, Any]) -> list[tuple[Any, Mapping[str, Any]]]:
    declared = conf["task_queues"]
    if not declared:
        return []
    if isinstance(declared, Mapping):
        return [(name, options or {"routing_key": None}) for name, options in declared.items()]
    return [(item, {}) for item in declared]


def _name_of(queue: Any) -> str:
    return queue if isinstance(queue, str) else str(queue.name)


def _spec_from_options(name: str, options: Mapping[str, Any], conf: Mapping[str, Any]) -> QueueSpec:
    key, exchange = options.get("routing_key") or options.get("binding_key"), options.get("exchange")
    kind = options.get("exchange_type") or "direct" if exchange else None  # as of kombu's queues
    arguments = dict(options.get("queue_arguments") or options.get("arguments") or {})
    _add_max_priority(arguments, conf)
    flags = {"durable": True, "auto_delete": False, "exclusive": False, "no_declare": False}
    for flag in flags:  # in kombu's words, of the queue alone or of its exchange too
        said = options.get(f"queue_{flag}")
        said = options.get(flag) if said is None else said
        flags[flag] = flags[flag] if said is None else bool(said)
    return QueueSpec(
        name,
        exchange or conf["task_default_exchange"] or conf["task_default_queue"],
        kind or conf["task_default_exchange_type"],
        key or name,
        arguments=arguments,
        binding_arguments=dict(options.get("binding_arguments") or {}),
        **flags,
    )


def _default_spec(conf: Mapping[str, Any]) -> QueueSpec:
    name = conf["task_default_queue"]
    arguments: dict[str, Any] = {}
    if conf["task_default_queue_type"] == "quorum":
        arguments["x-queue-type"] = "quorum"
    _add_max_priority(arguments, conf)
    return QueueSpec(
        name,
        conf["task_default_exchange"] or name,
        conf["task_default_exchange_type"],
        conf["task_default_routing_key"] or name,
        arguments=arguments,
    )


def _missing_spec(name: str, conf: Mapping[str, Any]) -> QueueSpec:
    if name == conf["task_default_queue"]:
        return _default_spec(conf)
    arguments: dict[str, Any] = {}
    if conf["task_create_missing_queue_type"] == "quorum":
        arguments["x-queue-type"] = "quorum"
    _add_max_priority(arguments, conf)
    kind = conf["task_create_missing_queue_exchange_type"] or conf["task_default_exchange_type"]
    return QueueSpec(name, name, kind, name, arguments=arguments)


def _add_max_priority(arguments: dict[str, Any], conf: Mapping[str, Any]) -> None:
    if conf["task_queue_max_priority"] is not None:
        arguments.setdefault("x-max-priority", conf["task_queue_max_priority"])


# -- rules ------------------------------------------------------------------------------------------------


def _make_rules(routes: Any) -> list[Rule]:
    if not routes:
        return []
    if not isinstance(routes, (list, tuple)) or _is_pairs(routes):
        routes = [routes]
    return [_make_rule(route) for route in routes]


def _is_pairs(routes: Iterable[Any]) -> bool:
    return all(isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], (str, re.Pattern)) for item in routes)


def _make_rule(route: Any) -> Rule:
    if isinstance(route, str):
        route = _import(route)
        if isinstance(route, type):
            route = route()
    if isinstance(route, Mapping):
        return _NameRule(route.items())
    if isinstance(route, (list, tuple)):
        return _NameRule(route)
    if hasattr(route, "route_for_task"):
        return lambda name, args, kwargs, options, task: _as_options(route.route_for_task(name, args, kwargs))
    if callable(route):
        return lambda name, args, kwargs, options, task: _as_options(route(name, args, kwargs, options, task=task))
    raise ImproperlyConfigured(
        f"task_routes: {route!r} is neither a mapping, a function, an object with route_for_task nor a path"
    )


class _NameRule:
    """Names, globs and patterns; the same answer for every call of one task."""

    stable = True

    def __init__(self, items: Iterable[tuple[Any, Any]]) -> None:
        self._exact: dict[str, dict[str, Any] | None] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Any] | None]] = []
        for key, value in items:
            if isinstance(key, re.Pattern):
                self._patterns.append((key, _as_options(value)))
            elif any(char in key for char in "*?["):
                self._patterns.append((re.compile(fnmatch.translate(key)), _as_options(value)))
            else:
                self._exact[key] = _as_options(value)

    def __call__(self, name: str, args: Any, kwargs: Any, options: dict[str, Any], task: Any) -> dict[str, Any] | None:
        if name in self._exact:
            return self._exact[name]
        return next((value for pattern, value in self._patterns if pattern.match(name)), None)


def _as_options(answer: Any) -> dict[str, Any] | None:
    if answer is None or isinstance(answer, dict):
        return answer
    if isinstance(answer, str):
        return {"queue": answer}
    return {"queue": answer} if hasattr(answer, "exchange") else dict(answer)


def _import(path: str) -> Any:
    try:
        return get_cls_by_name(path)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ImproperlyConfigured(f"task_routes: cannot import {path!r}: {exc}") from exc
