"""Answers `ping` of remote control for a scheduler, so that `status` and `inspect ping` show it among the workers.

A thread with a listener of its own; what it answers depends on the scheduler's turns: one that is stuck says nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from celeriac.events.receiver import Ears
from celeriac.exceptions import CeleriacError, OperationalError
from celeriac.log import get_logger
from celeriac.messaging.broadcasts import (
    Request,
    control_exchange,
    control_queue,
    make_reply,
    read_request,
    require_fanout,
)
from celeriac.spec.data import ExchangeSpec

if TYPE_CHECKING:
    from celeriac.spec.transport import Listener

LOOK_S: Final = 0.5
RETRY_S: Final = (0.5, 10.0)
TIMEOUT_S: Final = 2.0
BATCH: Final = 64
_log = get_logger("celeriac.beat")


class Bell(threading.Thread):
    """Hears commands for one node, and answers `ping`.

    Args:
        node: Its name, `beat@host`.
        is_well: Whether the scheduler has had a turn lately; if not, nobody is answered.
    Raises:
        Unsupported: The broker cannot broadcast.
    """

    def __init__(self, app: Any, node: str, is_well: Callable[[], bool]) -> None:
        super().__init__(name="celeriac-beat-remote", daemon=True)
        self._app = app
        self._node = node
        self._is_well = is_well
        self._transport = app.make_transport()
        require_fanout(self._transport, "beat's remote control (beat_enable_remote_control)")
        self._ears = Ears()
        self._end = threading.Event()

    def run(self) -> None:
        """Until `stop`; a lost broker is connected to again."""
        failures = 0
        while not self._end.is_set():
            listener: Listener | None = None
            try:
                listener = self._listen()
                failures = 0
                self._serve(listener)
            except CeleriacError as exc:
                if not failures:
                    _log.warning("beat.does_not_hear", node=self._node, error=str(exc))
                failures += 1
            except Exception as exc:  # whatever somebody has sent: who does not answer is taken for dead
                _log.exception("beat.remote_control_failed", node=self._node, error=str(exc))
                failures += 1
            finally:
                _close(listener)
            self._end.wait(min(RETRY_S[0] * 2 ** min(failures, 5), RETRY_S[1]))
        self._transport.close()

    def stop(self) -> None:
        """Answer no more."""
        self._end.set()
        if self.is_alive():
            self.join(2 * TIMEOUT_S)

    def _listen(self) -> Listener:
        conf = self._app.conf
        queue = control_queue(conf, self._node)
        heard: Listener = self._transport.listen(control_exchange(conf), queue, poller=self._ears)
        return heard

    def _serve(self, listener: Listener) -> None:
        while not self._end.is_set():
            raws = listener.receive(BATCH)
            for raw in raws:
                self._take(raw)
            if not raws:
                self._ears.sleep(listener, LOOK_S)

    def _take(self, raw: bytes) -> None:
        try:
            request = read_request(self._transport.unpack(raw), self._app.codec)
        except ValueError as exc:
            _log.debug("beat.dropped_what_is_no_command", error=str(exc))
            return
        self._app.clock.adjust(request.clock)
        if request.reply_to is not None and request.is_for(self._node) and self._is_well():
            self._answer(request)

    def _answer(self, request: Request) -> None:
        """Pings are answered; another command, if it was for this node by name: everybody else has workers in mind."""
        if request.method == "ping":
            value = {"ok": "pong"}
        elif request.destination is not None:
            value = {"error": f"a scheduler answers ping only, not {request.method!r}"}
        else:
            return
        assert request.reply_to is not None
        app = self._app
        payload = make_reply(request, self._node, value, app.conf, app.codec, app.clock.forward())
        self._transport.broadcast(ExchangeSpec(request.reply_to[0], "direct"), [payload], timeout_s=TIMEOUT_S)


def _close(listener: Listener | None) -> None:
    if listener is not None:
        try:
            listener.close()
        except OperationalError as exc:
            _log.debug("beat.listener_was_not_closed", error=str(exc))  # its connection is gone anyway
