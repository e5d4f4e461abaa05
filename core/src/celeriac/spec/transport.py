"""The broker contract: a `Transport` sends; its `Consumer` receives and settles, in batches.

Clause numbers (B7 …) are those of `docs/plugins/delivery-contract.md`. A plugin inherits nothing: the kernel
compares its members with these protocols when it is loaded and names what is missing.

Abilities a transport may declare, each a promise that the conformance kit checks:

==================  ======================================================================================
`delay`             holds a message until `Payload.due` / `Settlement.due`, over restarts (B23)
`priority`          serves 0-9 in the order Celery's users expect of this broker
`fanout`            it is a `FanoutTransport` too: `broadcast` reaches every listener (B31)
`lease`             unsettled deliveries of a dead worker come back by themselves within seconds (B11)
`attempts`          counts deliveries lost with their workers (B13)
`crashes`           without `attempts`: counts them at least from the second on, and nothing else but once (B14)
`spares`            tells attempts that were given up on purpose from crashes: `Settlement.spared` (B14)
`dead_letter`       keeps `dead` settlements with their reason and raw bytes (B21)
`browse_dead`       shows them, gives them back and drops them: the verbs of `DeadLetters`
`durable`           messages survive the end of the process that sent them
`shared`            several processes may use one URL
`purge` `depth`     those verbs work
`once`              `send_once` takes a message one time, however often and by whomever it is sent
`diagnose`          looks at its server for trouble, for `celeriac doctor`: `celeriac.spec.diagnosis.Diagnoses`
`state`             it keeps shared state too: one member more, `celeriac.spec.state.KeepsState`
==================  ======================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from celeriac.spec.data import (
    DeadBox,
    DeadLetter,
    Delivery,
    ExchangeSpec,
    Head,
    Malformed,
    Payload,
    QueueSpec,
    Settlement,
)


class Poller(Protocol):
    """Where a consumer or pool registers file descriptors that become readable when it has news.

    The worker sleeps on all of them at once; it then asks everyone (`receive`, `collect`) without
    saying which descriptor woke it. Spurious wakes are harmless.
    """

    def watch(self, fd: int) -> None:
        """Wake the worker whenever `fd` is readable."""

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`; call it before the descriptor is closed. Unknown ones are ignored."""


class Consumer(Protocol):
    """Receives from some queues and settles what it received. Used by one thread, `renew` excepted."""

    def receive(self, limit: int) -> list[Delivery]:
        """Return at most `limit` deliveries that can be had without waiting.

        Never blocks longer than one quick exchange with the broker. When fewer than `limit` were there, the
        consumer arranges that a descriptor it watches becomes readable once more may be had (asking the broker
        in advance for up to `limit` is fine, for they are then held under its lease); a consumer that cannot,
        has `poll_interval_s` and is asked again at that pace. Everything handed out is already recorded in the
        store under this consumer's name (B7). With limit 0 it only reads replies and keeps the connection alive.

        Raises:
            TransportLost: The connection dropped. Unsettled deliveries come again, to this worker or another.
                The worker closes this consumer and opens a new one.
        """

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        """Perform, in this order and as one atomic step where the store can: `joined`, `publish`, `batch`.

        May return before the broker has answered, as long as the order holds; what goes wrong is then raised by
        the next `receive` or `settle`. A settlement of a tag that this consumer no longer owns changes nothing.
        Where the store can tell, a batch of which it owns nothing any more does nothing else either; what follows from
        no delivery comes with an empty batch.

        Args:
            batch: Endings of deliveries of this consumer.
            publish: Messages that must be safe before the deliveries they follow from are acknowledged (R12).
            joined: What `ResultBackend.commands` made, if its `joint` equals this consumer's.
        Raises:
            TransportLost: As in `receive`; nothing, all or (never part of one settlement) some was done.
            PublishRejected: One of `publish` has nowhere to go. Nothing was done, everything is owned as before, and
                the connection is well. A consumer that learns of it too late to say so sets such a message aside, and
                tells of it by one method more, `unsent` (see `TellsUnsent`).
        """

    def flush(self, timeout_s: float) -> None:
        """Return when everything settled so far is known to the broker, or raise `TransportLost`."""

    def renew(self) -> list[Any]:
        """Prove that this worker lives; return the tags it no longer owns. Called every few seconds
        from a thread of its own, concurrently with the other verbs (B9). Brokers that see death by the
        connection return [].

        It is called every 5 s; a consumer whose leases are shorter than three times that says how often, by an
        attribute `renew_interval_s`, which it may have or not.

        No thread runs while a task's C code holds Python's interpreter up. A consumer that wants its lease kept then
        too has one method more, `stand_in() -> tuple[str, dict]` (see `StandsIn`).
        """

    def resize(self, window: int) -> None:
        """The worker will hold at most `window` deliveries from now on. Called when that changes, which is
        rare; a broker that pushes adapts its prefetch, others need not listen."""

    def subscribe(self, queue: QueueSpec) -> None:
        """Receive from this queue too."""

    def unsubscribe(self, queue: str) -> None:
        """Receive no more from this queue; what is held of it is settled as usual."""

    def stop(self) -> None:
        """Acquire nothing more, and give back what was acquired but not yet handed out. `settle` still works."""

    def close(self) -> None:
        """Give back what is unsettled as far as the broker can be told, and let go. Idempotent, at most 5 s (B29)."""

    @property
    def poll_interval_s(self) -> float | None:
        """How soon to ask again when idle, for a consumer without a descriptor; None if it wakes the worker."""


class TellsUnsent(Protocol):
    """A consumer that learns later than by `settle` which messages had nowhere to go."""

    def unsent(self) -> list[tuple[Payload, str]]:
        """Those of `publish` that were set aside since the last call, each with a sentence that says why: they have
        failed. Called each time something was settled, so it must cost nothing while there are none."""


class StandsIn(Protocol):
    """What renews a consumer's lease from a small process beside the worker, while the worker cannot.

    `Consumer.stand_in` names it: `"module:name"` and keyword arguments of JSON types, with which that process calls it.
    Only workers whose pools run tasks in their own process have such a process, and it imports the module when it is
    first needed, so the module should import little.
    """

    def renew(self) -> None:
        """Keep everything that the consumer holds for one lease more, and take back nothing that it has lost.

        Whatever it raises, it is made anew and called again a second later at most.
        """


class Transport(Protocol):
    """One broker, reached by one URL. `send` and the queue verbs may be called from any thread.

    Nothing is connected before the first verb that needs it. Connection errors are raised as
    `TransportLost` or `TransportUnreachable`, refusals as `PublishRejected`, an unknown outcome as
    `PublishUncertain`; always within `broker_connection_timeout` and the verb's own timeout.
    """

    abilities: frozenset[str]
    #: Names the store this transport writes to when a result backend may ride in its transactions; else None.
    joint: str | None

    def send(self, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        """Return when the broker has taken all of them (B1); all or nothing, or an error that says (B5)."""

    def consumer(self, queues: Sequence[QueueSpec], *, owner: str, poller: Poller, window: int) -> Consumer:
        """Open a consumer, with the queues declared.

        Args:
            queues: In order of preference; equal turns if the broker has none.
            owner: Names this worker incarnation: node name and a random part. Leases are held under it.
            poller: Register descriptors here.
            window: As for `Consumer.resize`.
        """

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Make the queues and their bindings exist; existing ones are left as they are."""

    def delete(self, queue: str) -> None:
        """Remove a queue with all its messages; an unknown one is no error."""

    def purge(self, queue: str) -> int:
        """Drop the messages that wait in a queue (delayed ones included); return how many."""

    def depth(self, queue: str) -> int:
        """How many messages wait in a queue now (unsettled and delayed ones not counted)."""

    def read_head(self, raw: bytes) -> Head | Malformed:
        """Read just the head of a message of this transport. Pure; never raises."""

    def unpack(self, raw: bytes) -> Payload:
        """Read a whole message of this transport. Pure, called in pool slots.

        Raises:
            ValueError: The bytes are not such a message.
        """

    def ping(self, timeout_s: float) -> str:
        """Reach the broker and return a short text that names it and its version.

        Raises:
            TransportUnreachable: It cannot be reached or refuses us; the text says what to check.
        """

    def after_fork(self) -> None:
        """In a forked child: drop all handles without speaking on them. The object is usable afterwards (B28)."""

    def close(self) -> None:
        """Let go of all connections. Idempotent."""


class Listener(Protocol):
    """Hears what is broadcast while it is open. Used by one thread.

    Nothing is settled: what `receive` has returned is gone, and what was sent while nobody listened was never kept.
    """

    def receive(self, limit: int) -> list[bytes]:
        """Return at most `limit` raw messages that have come, oldest first; `Transport.unpack` and `read_head` read
        them. Never blocks. When fewer than `limit` came, the descriptor it watches becomes readable with the next.

        Raises:
            TransportLost: The connection dropped. The caller closes this listener and opens a new one; what was sent
                in between is lost.
        """

    def close(self) -> None:
        """Hear no more, and leave nothing behind on the broker. Idempotent, at most 5 s."""

    @property
    def dropped(self) -> int:
        """How many messages were thrown away here because they were not received in time, as far as can be known."""

    @property
    def poll_interval_s(self) -> float | None:
        """How soon to call `receive` again even without news, to keep the connection alive; None: no need."""


class FanoutTransport(Protocol):
    """What a transport with the ability `fanout` has besides: messages at most once, for all who listen (B31).

    Remote control, events and kombu's `Broadcast` queues stand on it. Both verbs keep away from the messages of
    queues: a flood of broadcasts, or a listener that does not read, delays no delivery and blocks no sender. How much
    is kept for a slow listener is bounded.
    """

    def broadcast(self, exchange: ExchangeSpec, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        """Send these to whoever listens now; nobody listening is no error. Safe for threads.

        Args:
            exchange: Exists afterwards. Each payload's `route` names it, with the routing key.
        Raises:
            TransportLost, TransportUnreachable, PublishRejected, PublishUncertain: Some or all may not have gone out.
        """

    def listen(self, exchange: ExchangeSpec, queue: QueueSpec, *, poller: Poller) -> Listener:
        """Hear what is broadcast from now on.

        Args:
            queue: Its `name` is the listener's own, `routing_key` what it wants to hear, by the rules of the
                exchange's type; the other fields are for brokers that keep a queue for it. `exchange` in it is unread.
            poller: Register a descriptor here.
        Raises:
            TransportLost, TransportUnreachable: As they say.
        """


class DeadLetters(Protocol):
    """What a transport with the ability `browse_dead` has besides: the entries that were set aside (B21).

    They are kept for 7 days, and 10,000 of a queue; the oldest make room. Every verb may be called from any thread.
    Nobody is delivered an entry while it is dead.
    """

    def dead_boxes(self, queues: Sequence[str]) -> list[DeadBox]:
        """What is kept of each of these queues, and of every other of which the broker knows that it has some.

        In the order of `queues`, then by name. A queue of which nothing was ever set aside has a count of 0.
        """

    def browse_dead(self, queue: str, *, after: str = "", limit: int = 100) -> list[DeadLetter]:
        """At most `limit` entries of a queue, oldest first, from behind the one whose id is `after`.

        An id that is gone by now, on a broker whose ids have no order, begins anew.
        """

    def requeue_dead(self, queue: str, ids: Sequence[str]) -> int:
        """Make these ready in `queue` again, as if they had never been delivered (attempt 1, not redelivered).

        Returns how many; those that are not there any more do not count. Whenever it is cut short, each entry is
        dead or ready, on a broker without transactions possibly both, never gone.
        """

    def drop_dead(self, queue: str, ids: Sequence[str]) -> int:
        """Remove these for good; return how many there were."""


class OnceTransport(Protocol):
    """What the ability `once` adds to a transport."""

    def send_once(self, payloads: Sequence[Payload], *, key: str, keep_s: float, timeout_s: float = 10.0) -> bool:
        """As `Transport.send`, unless messages were already sent with this key; in one atomic step of the store.

        After `PublishUncertain` it may be called again: that is what it is for.

        Args:
            key: Any text of at most 255 characters; shared by all who use the broker.
            keep_s: How long the key is known at least, by the store's clock.
        Returns:
            False if nothing was sent because the key was known.
        """
