"""The client's half of remote control: `app.control` asks workers and tells them what to do.

A request is broadcast; replies come back on a queue of this call's own. Nobody can know how many workers there are, so
a call without a destination waits for its whole timeout.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from celeriac.app.revocations import id_key, keys_of_stamps
from celeriac.events.receiver import Ears
from celeriac.exceptions import DuplicateNodenameWarning, OperationalError, Unsupported
from celeriac.messaging.broadcasts import (
    MATCHERS,
    Request,
    control_exchange,
    make_request,
    new_ticket,
    read_reply,
    reply_exchange,
    reply_queue,
    require_fanout,
)
from celeriac.utils.ids import uuid

if TYPE_CHECKING:
    from celeriac.app.base import Celery

#: One reply: node name → what it answered.
Reply: TypeAlias = dict[str, Any]

TERM_SIGNAME: Final = "SIGTERM"

_log = logging.getLogger("celeriac.app")


class Inspect:
    """Asks workers about themselves. Each method returns node name → answer, or None if nobody answered.

    Args:
        destination: Node names; None: all.
        timeout: Seconds to wait for replies.
        callback: Called with each reply as it comes.
        limit: Do not wait for more replies than these.
        pattern, matcher: Ask nodes whose names match (`glob` or `pcre`).
    """

    def __init__(
        self,
        destination: Sequence[str] | str | None = None,
        timeout: float = 1.0,
        callback: Callable[[Reply], Any] | None = None,
        connection: Any = None,
        app: Celery | None = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> None:
        assert app is not None, "an Inspect belongs to an app: app.control.inspect()"
        self.app = app
        self.destination = [destination] if isinstance(destination, str) else destination
        self.timeout = timeout
        self.callback = callback
        self.limit = limit
        self.pattern = pattern
        self.matcher = matcher

    def _request(self, command: str, **arguments: Any) -> Any:
        replies = self.app.control.broadcast(
            command,
            arguments=arguments,
            destination=self.destination,
            reply=True,
            timeout=self.timeout,
            limit=self.limit,
            callback=self.callback,
            pattern=self.pattern,
            matcher=self.matcher,
        )
        return flatten_reply(replies or ()) or None

    def report(self) -> Any:
        """Versions and settings, for bug reports."""
        return self._request("report")

    def clock(self) -> Any:
        """The value of its clock."""
        return self._request("clock")

    def active(self, safe: bool | None = None) -> Any:
        """What runs now, a list of requests.

        Args:
            safe: Arguments as text, undecoded.
        """
        return self._request("active", **({} if safe is None else {"safe": safe}))

    def scheduled(self, safe: bool | None = None) -> Any:
        """What waits in the worker for its time."""
        return self._request("scheduled")

    def reserved(self, safe: bool | None = None) -> Any:
        """What the worker has, but no slot has begun."""
        return self._request("reserved")

    def stats(self) -> Any:
        """Counts, pool, broker and what the process has used."""
        return self._request("stats")

    def revoked(self) -> Any:
        """Ids of revoked tasks."""
        return self._request("revoked")

    def registered(self, *taskinfoitems: str) -> Any:
        """Names of the tasks it knows, with the values of these attributes."""
        return self._request("registered", taskinfoitems=list(taskinfoitems))

    registered_tasks = registered

    def ping(self, destination: Sequence[str] | str | None = None) -> Any:
        """Whether it is there."""
        if destination:
            self.destination = [destination] if isinstance(destination, str) else destination
        return self._request("ping")

    def active_queues(self) -> Any:
        """The queues it consumes from."""
        return self._request("active_queues")

    def query_task(self, *ids: Any) -> Any:
        """Where these tasks are in it: id → [state, request]."""
        names = ids[0] if len(ids) == 1 and isinstance(ids[0], (list, tuple)) else ids
        return self._request("query_task", ids=list(names))

    def conf(self, with_defaults: bool = False) -> Any:
        """Its settings, secrets masked."""
        return self._request("conf", with_defaults=with_defaults)

    def hello(self, from_node: str, revoked: Any = None) -> Any:
        """As a starting worker asks: revoked ids and clock."""
        return self._request("hello", from_node=from_node, revoked=revoked)

    def memsample(self) -> Any:
        """How much memory it uses now."""
        return self._request("memsample")

    def memdump(self, samples: int = 10) -> Any:
        """The samples so far."""
        return self._request("memdump", samples=samples)

    def objgraph(self, type: str = "Request", n: int = 200, max_depth: int = 10) -> Any:
        """Draws who refers to objects of a type (needs objgraph in the worker)."""
        return self._request("objgraph", num=n, max_depth=max_depth, type=type)


_Inspect: TypeAlias = Inspect


def flatten_reply(reply: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The replies of a broadcast, one mapping for each node, as one mapping. Of two of one node the last is kept.

    Warns of nodes that answered twice, for they have one name between them (`DuplicateNodenameWarning`).
    """
    nodes: dict[str, Any] = {}
    twice: set[str] = set()
    for item in reply:
        twice.update(nodes.keys() & item.keys())
        nodes.update(item)
    if twice:
        text = f"several workers are named {', '.join(sorted(twice))}: give each a name of its own (-n)"
        warnings.warn(text, DuplicateNodenameWarning, stacklevel=2)
    return nodes


class Control:
    """Tells workers what to do, as `app.control`.

    Every method takes the keywords of `broadcast`, such as `destination` and `reply`.
    """

    Inspect = Inspect

    def __init__(self, app: Celery) -> None:
        self.app = app

    def inspect(self, destination: Sequence[str] | str | None = None, timeout: float = 1.0, **options: Any) -> _Inspect:
        """Asks workers about themselves; see `Inspect`."""
        return self.Inspect(destination, timeout, app=self.app, **options)

    # -- asking ---------------------------------------------------------------------------------------------

    def broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Sequence[str] | str | None = None,
        connection: Any = None,
        reply: bool = False,
        timeout: float = 1.0,
        limit: int | None = None,
        callback: Callable[[Reply], Any] | None = None,
        channel: Any = None,
        pattern: str | None = None,
        matcher: str | None = None,
        **extra: Any,
    ) -> list[Reply] | None:
        """Send a command to workers.

        Args:
            destination: Node names, an empty list for nobody; None: all, or those that match `pattern` by `matcher`
                (`glob`, `pcre`).
            reply: Wait for replies.
            timeout: Seconds to wait for them.
            limit: How many to wait for; default: one for each destination.
            callback: Called with each reply as it comes.
            extra: Further arguments of the command.
        Returns:
            With `reply` a list of `{node: answer}`, else None.
        Raises:
            TransportLost, TransportUnreachable: The broker is away.
            Unsupported: It cannot broadcast.
        """
        if isinstance(destination, str):
            destination = [destination]
        if destination is not None and not isinstance(destination, (list, tuple)):
            raise ValueError(f"destination must be a list of node names, not {destination!r}")
        if matcher is not None and matcher not in MATCHERS:
            raise ValueError(f"matcher {matcher!r} is none of {', '.join(MATCHERS)}")
        request = Request(
            command,
            {**(arguments or {}), **extra},
            None if destination is None else list(destination),
            pattern,
            matcher,
            clock=self.app.clock.forward(),
        )
        transport: Any = self.app.transport
        require_fanout(transport, "remote control")
        if request.destination == []:  # on the wire it would mean everybody
            return [] if reply else None
        if not reply:
            self._send(transport, request, None)
            return None
        if limit is None and destination is not None:
            limit = len(destination)
        return self._ask(transport, request, timeout, limit, callback)

    def _send(self, transport: Any, request: Request, timeout_s: float | None) -> None:
        conf = self.app.conf
        payload = make_request(request, conf, self.app.codec, timeout_s)
        transport.broadcast(control_exchange(conf), [payload])

    def _ask(
        self,
        transport: Any,
        request: Request,
        timeout_s: float,
        limit: int | None,
        callback: Callable[[Reply], Any] | None,
    ) -> list[Reply]:
        app = self.app
        exchange = reply_exchange(app.conf)
        key = uuid()
        request.ticket, request.reply_to = new_ticket(), (exchange.name, key)
        ears, replies = Ears(), list[Reply]()
        # First the ears, then the question: an answer may be quick.
        listener = transport.listen(exchange, reply_queue(app.conf, key), poller=ears)
        try:
            self._send(transport, request, timeout_s)
            ends = time.monotonic() + timeout_s
            while limit is None or len(replies) < limit:
                raws = listener.receive(100)
                for raw in raws:
                    found = self._read(transport, raw, request.ticket)
                    if found is not None:
                        replies.append(found)
                        if callback is not None:
                            callback(found)
                left_s = ends - time.monotonic()
                if left_s <= 0:
                    break
                if not raws:
                    ears.sleep(listener, left_s)
        finally:
            listener.close()
        return replies if limit is None else replies[:limit]

    def _read(self, transport: Any, raw: bytes, ticket: str) -> Reply | None:
        try:
            answered, reply, clock = read_reply(transport.unpack(raw), self.app.codec)
        except ValueError:
            return None  # whatever that was, it is no answer to anybody
        self.app.clock.adjust(clock)
        return reply if answered == ticket else None

    # -- commands -------------------------------------------------------------------------------------------

    def purge(self, connection: Any = None) -> int:
        """Drop all messages that wait in the app's queues; how many."""
        app = self.app
        app.kernel.require(app.transport, {"purge"}, because="control.purge was called")
        return sum(app.transport.purge(name) for name in app.router.queues)

    discard_all = purge

    def ping(self, destination: Any = None, timeout: float = 1.0, **options: Any) -> list[Reply]:
        """Ask who is there: `[{"celery@host": {"ok": "pong"}}]`."""
        return self.broadcast("ping", {}, destination, reply=True, timeout=timeout, **options) or []

    def revoke(
        self, task_id: str | Iterable[str], destination: Any = None, terminate: bool = False,
        signal: str = TERM_SIGNAME, **options: Any,
    ) -> list[Reply] | None:  # fmt: skip
        """Have these tasks not run; with `terminate`, end those that run already by a signal.

        Without a destination it is kept in the app's shared state first, for workers that are not there yet; then
        those that are there are told.
        """
        ids = [task_id] if isinstance(task_id, str) else list(task_id)
        arguments = {"task_id": task_id if isinstance(task_id, str) else ids, "terminate": terminate, "signal": signal}
        return self._revoke("revoke", [id_key(id) for id in ids], arguments, destination, options)

    def revoke_by_stamped_headers(
        self, headers: Mapping[str, Any] | Sequence[str], destination: Any = None, terminate: bool = False,
        signal: str = TERM_SIGNAME, **options: Any,
    ) -> list[Reply] | None:  # fmt: skip
        """As `revoke`, for all tasks that carry one of these stamps: `{"customer": ["a", "b"]}` or `["customer=a"]`."""
        arguments = {"headers": headers, "terminate": terminate, "signal": signal}
        keys = keys_of_stamps(headers)
        return self._revoke("revoke_by_stamped_headers", keys, arguments, destination, options)

    def _revoke(
        self, command: str, keys: list[str], arguments: dict[str, Any], destination: Any, options: dict[str, Any]
    ) -> list[Reply] | None:
        terminate, signal = arguments["terminate"], arguments["signal"]
        kept = destination is None and self.app.revocations.add(keys, terminate=terminate, signal=signal)
        if destination is None and not kept:
            _log.warning(
                "Neither the broker nor the result backend of this app can keep revocations (ability state): only the "
                "workers that run now hear of this one."
            )
        try:
            return self.broadcast(command, arguments, destination, **options)
        except (OperationalError, Unsupported) as exc:
            if not kept:
                raise
            _log.info("Workers will learn of the revocation by looking: %s", exc)
            return [] if options.get("reply") else None

    def terminate(
        self, task_id: str | Iterable[str], destination: Any = None, signal: str = TERM_SIGNAME, **options: Any
    ) -> list[Reply] | None:
        """As `revoke(…, terminate=True)`."""
        return self.revoke(task_id, destination, terminate=True, signal=signal, **options)

    def rate_limit(self, task_name: str, rate_limit: Any, destination: Any = None, **options: Any) -> Any:
        """Change a task's rate limit: `10/s`, `10/m`, `10/h`; 0 or None for none."""
        return self.broadcast("rate_limit", {"task_name": task_name, "rate_limit": rate_limit}, destination, **options)

    def time_limit(
        self, task_name: str, soft: float | None = None, hard: float | None = None, destination: Any = None,
        **options: Any,
    ) -> Any:  # fmt: skip
        """Change a task's time limits, in seconds."""
        arguments = {"task_name": task_name, "soft": soft, "hard": hard}
        return self.broadcast("time_limit", arguments, destination, **options)

    def add_consumer(
        self, queue: str, exchange: str | None = None, exchange_type: str = "direct", routing_key: str | None = None,
        options: Mapping[str, Any] | None = None, destination: Any = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Have workers consume from this queue, too."""
        arguments = {
            "queue": queue,
            "exchange": exchange,
            "exchange_type": exchange_type,
            "routing_key": routing_key,
            **(options or {}),
        }
        return self.broadcast("add_consumer", arguments, destination, **kwargs)

    def cancel_consumer(self, queue: str, destination: Any = None, **kwargs: Any) -> Any:
        """Have workers consume from this queue no more."""
        return self.broadcast("cancel_consumer", {"queue": queue}, destination, **kwargs)

    def enable_events(self, destination: Any = None, **options: Any) -> Any:
        """Have workers tell about every task."""
        return self.broadcast("enable_events", {}, destination, **options)

    def disable_events(self, destination: Any = None, **options: Any) -> Any:
        """The opposite."""
        return self.broadcast("disable_events", {}, destination, **options)

    def heartbeat(self, destination: Any = None, **options: Any) -> Any:
        """Have workers send a heartbeat now."""
        return self.broadcast("heartbeat", {}, destination, **options)

    def pool_grow(self, n: int = 1, destination: Any = None, **options: Any) -> Any:
        """Add slots to the pool."""
        return self.broadcast("pool_grow", {"n": n}, destination, **options)

    def pool_shrink(self, n: int = 1, destination: Any = None, **options: Any) -> Any:
        """Take slots away; busy ones finish first."""
        return self.broadcast("pool_shrink", {"n": n}, destination, **options)

    def pool_restart(
        self, modules: Sequence[str] | None = None, reload: bool = False, reloader: Any = None,
        destination: Any = None, **options: Any,
    ) -> Any:  # fmt: skip
        """Replace the pool's processes, after these modules were imported (with `reload`, again)."""
        arguments = {"modules": modules, "reload": reload, "reloader": reloader}
        return self.broadcast("pool_restart", arguments, destination, **options)

    def autoscale(self, max: int, min: int, destination: Any = None, **options: Any) -> Any:
        """Change the bounds of autoscaling."""
        return self.broadcast("autoscale", {"max": max, "min": min}, destination, **options)

    def shutdown(self, destination: Any = None, **options: Any) -> Any:
        """Have workers stop warmly."""
        return self.broadcast("shutdown", {}, destination, **options)

    def election(self, id: str, topic: str, action: Any = None, connection: Any = None) -> None:
        """Hold an election among the workers that gossip."""
        self.broadcast("election", {"id": id, "topic": topic, "action": action})
