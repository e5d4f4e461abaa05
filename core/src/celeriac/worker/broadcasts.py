"""kombu's `Broadcast` queues: each worker hears what is sent to one, and runs a copy of its own.

A thread listens to the exchanges and puts what it hears into a queue that only this worker consumes. From there on a
broadcast call is a call like others: it is acknowledged, delayed, retried and set aside by the same rules. What is sent
while a worker is away it never hears.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from celeriac.exceptions import CeleriacError, OperationalError
from celeriac.spec.data import ExchangeSpec, Payload, QueueSpec, Route
from celeriac.utils.ids import uuid
from celeriac.worker.poller import Sleeper

if TYPE_CHECKING:
    from celeriac.spec.transport import FanoutTransport, Listener, Transport

BATCH: Final = 100
REOPEN_S: Final = 1.0
#: How long the queue of a worker that died stays, where the broker can remove it by itself.
EXPIRES_MS: Final = 3_600_000

_log = logging.getLogger("celeriac.worker")


class Broadcasts(threading.Thread):
    """Hears broadcasts for one worker.

    Args:
        transport: For this thread alone; closed by `stop`.
        heard: The `Broadcast` queues as declared, with their exchanges.
    """

    def __init__(self, transport: Transport, heard: Sequence[QueueSpec]) -> None:
        super().__init__(name="celeriac-broadcasts", daemon=True)
        self._transport = transport
        self._sleeper = Sleeper()
        self._ending = False
        self._heard = [(spec, _own_queue(spec)) for spec in heard]
        self._listeners: list[tuple[Listener, Route]] = []

    @property
    def queues(self) -> list[QueueSpec]:
        """This worker's own queues, to be consumed."""
        return [own for _, own in self._heard]

    def open(self) -> None:
        """Make the queues and begin to listen; what is sent from now on is heard.

        Raises:
            OperationalError, Unsupported: The broker is away, or knows no broadcasts.
        """
        self._transport.declare(self.queues)
        fanout = cast("FanoutTransport", self._transport)
        for spec, own in self._heard:
            exchange = ExchangeSpec(spec.exchange, "fanout", durable=spec.durable)
            ear = QueueSpec(f"{own.name}.ear", routing_key=spec.routing_key, auto_delete=True)
            self._listeners.append(
                (fanout.listen(exchange, ear, poller=self._sleeper), Route(own.name, queue=own.name))
            )

    def run(self) -> None:
        """Until `stop`."""
        while not self._ending:
            try:
                if not self._listeners:
                    self.open()
                forwarded = [self._forward(listener, route) for listener, route in self._listeners]
                self._sleeper.sleep(0 if any(forwarded) else self._pause_s())
            except OperationalError as exc:
                _log.warning("Broadcasts are not heard: %s Listening again in %g s.", exc, REOPEN_S)
                self._close_listeners()
                self._sleeper.sleep(REOPEN_S)
            except Exception:  # a thread that dies unseen would leave the worker deaf
                _log.exception("unexpected error while listening to broadcasts")
                self._close_listeners()
                self._sleeper.sleep(REOPEN_S)
        self._close_listeners()

    def stop(self) -> None:
        """Hear no more, and remove this worker's queues with what is left in them."""
        self._ending = True
        self._sleeper.wake()
        if self.ident is not None:
            self.join(10)
        with contextlib.suppress(CeleriacError):  # it is ending, and the broker may be away
            for own in self.queues:
                self._transport.delete(own.name)
        self._transport.close()
        self._sleeper.close()

    def _forward(self, listener: Listener, route: Route) -> int:
        messages = listener.receive(BATCH)
        payloads: list[Payload] = []
        for raw in messages:
            try:
                payload = self._transport.unpack(raw)
            except ValueError as exc:  # anybody may broadcast anything
                _log.error("A broadcast could not be read: %s", exc)
                continue
            payload.route = route
            payloads.append(payload)
        if payloads:
            self._transport.send(payloads)
        return len(messages)

    def _pause_s(self) -> float | None:
        pauses = [pause for listener, _ in self._listeners if (pause := listener.poll_interval_s) is not None]
        return min(pauses, default=None)

    def _close_listeners(self) -> None:
        for listener, _ in self._listeners:
            with contextlib.suppress(CeleriacError):  # its connection may be what was lost
                listener.close()
        self._listeners.clear()


def _own_queue(spec: QueueSpec) -> QueueSpec:
    arguments: dict[str, Any] = {"x-expires": EXPIRES_MS}
    return QueueSpec(f"{spec.name}.{uuid()[:8]}", arguments=arguments)
