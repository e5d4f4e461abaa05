"""Performs what reports ask for, in the one safe order, and ends deliveries: their only ender.

Order (R12): results → messages that follow → ack. Where broker and result store are one, that is one atomic step.
While the result store is down, everything is held back in order (and the loop stops taking more): nothing is
acknowledged unstored (R5).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Final

from celeriac.exceptions import BackendError
from celeriac.spec.backend import ResultBackend
from celeriac.spec.data import Payload, Settlement, StoredResult
from celeriac.spec.transport import Consumer

_log = logging.getLogger("celeriac.worker")

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 10.0


class Settler:
    """Ends deliveries of one consumer.

    Args:
        backend: Where states go; None drops them.
        joint: The backend's commands ride in the consumer's own exchange.
    """

    def __init__(self, consumer: Consumer, backend: ResultBackend | None, *, joint: bool) -> None:
        self._consumer = consumer
        self._backend = backend
        self._joint = joint
        self._stored: list[StoredResult] = []
        self._publish: list[Payload] = []
        self._batch: list[Settlement] = []
        self._pause_s = 0.0
        self._retry_at = 0.0
        self.trouble: BackendError | None = None

    def add(
        self, settlement: Settlement | None, stored: Sequence[StoredResult] = (), publish: Sequence[Payload] = ()
    ) -> None:
        """Put this into the next `perform`. Without a settlement: states of a run that goes on."""
        if stored and self._backend is not None:
            self._stored.extend(stored)
        if publish:
            self._publish.extend(publish)
        if settlement is not None:
            self._batch.append(settlement)

    @property
    def blocked(self) -> bool:
        """The result store is down: take no more work."""
        return self.trouble is not None

    def retry_in(self, now: float) -> float | None:
        """Seconds until the next try, when blocked."""
        return max(0.0, self._retry_at - now) if self.trouble is not None else None

    def perform(self) -> None:
        """Do all that was added.

        Raises:
            TransportLost: The broker's connection dropped.
        """
        if not (self._stored or self._publish or self._batch):
            return
        if self.trouble is not None and time.monotonic() < self._retry_at:
            return
        joined: Any = None
        if self._stored and self._backend is not None:
            if self._joint:
                joined = self._backend.commands(self._stored)
            elif not self._store():
                return
        self._stored = []
        batch, self._batch = self._batch, []
        publish, self._publish = self._publish, []
        self._consumer.settle(batch, publish=publish, joined=joined)

    def _store(self) -> bool:
        assert self._backend is not None
        try:
            self._backend.store(self._stored)
        except BackendError as exc:
            self._pause_s = min(max(FIRST_PAUSE_S, self._pause_s * 2), LONGEST_PAUSE_S)
            self._retry_at = time.monotonic() + self._pause_s
            if self.trouble is None:
                _log.warning("The result store is away: %s. No new messages are taken until it is back.", exc)
            self.trouble = exc
            return False
        if self.trouble is not None:
            _log.info("The result store is back.")
        self._pause_s, self.trouble = 0.0, None
        return True
