"""Judges the worker by its progress: messages are ready, slots are free, and nothing comes? Then the link is made anew.

A worker that is connected and deaf looks alive to everyone: its socket is open, its heartbeats go out. So nothing here
asks the consumer how it feels; it looks at the queues, as a person would. One thread, which wakes once a second, looks
at a few numbers, and asks the broker for the depth of the queues only when nothing has come for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from celeriac.exceptions import OperationalError
from celeriac.worker.health import STALLED_S

if TYPE_CHECKING:
    from celeriac.spec.transport import Transport
    from celeriac.worker.consumer import Loop
    from celeriac.worker.health import Health, ReadyFile
    from celeriac.worker.link import Link
    from celeriac.worker.stuck import StuckSlots

LOOK_EVERY_S: Final = 1.0
#: So many new links in a row that bring nothing either: what is wrong is in this process, and a new one may do better.
MAX_REBUILDS: Final = 3

_log = logging.getLogger("celeriac.worker")


class Watchdog(threading.Thread):
    """See the module.

    Args:
        patience_s: How long nothing may come although messages are ready and slots are free; 0 for ever.
        give_up: Ends the worker, with the code for that.
        ready_file: Kept up to date meanwhile.
        stuck: Looked after too.
        where: Where the loop's thread is, for people; empty if that is not known.
    """

    def __init__(
        self,
        loop: Loop,
        link: Link,
        transport: Transport,
        health: Health,
        *,
        patience_s: float,
        give_up: Callable[[], None],
        ready_file: ReadyFile | None = None,
        stuck: StuckSlots | None = None,
        where: Callable[[], str] = lambda: "",
    ) -> None:
        super().__init__(name="celeriac-watchdog", daemon=True)
        self._loop = loop
        self._link = link
        self._transport = transport
        self._health = health
        self._patience_s = patience_s if "depth" in transport.abilities else 0.0
        self._give_up = give_up
        self._ready_file = ready_file
        self._stuck = stuck
        self._where = where
        self._end = threading.Event()
        self._received = -1
        self._epoch = 0
        self._calm_at = time.monotonic()
        self._suspects: dict[str, int] = {}
        self._judged_from = 0
        self._told_stall = False
        self.rebuilds = 0

    def run(self) -> None:
        """Until `stop`."""
        every_s = min(LOOK_EVERY_S, self._patience_s / 4) if self._patience_s else LOOK_EVERY_S
        while True:
            trouble = self._health.trouble()
            if self._end.is_set():
                return
            if self._ready_file is not None:
                self._ready_file.show(not trouble)
            self._look_at_loop()
            if self._stuck is not None:
                self._stuck.look()
            if self._patience_s:
                self._look_at_progress()
            self._end.wait(every_s)

    def stop(self) -> None:
        """Watch no more; the worker is about to end, so it is not ready any longer."""
        self._end.set()
        if self.ident is not None and self is not threading.current_thread():
            self.join(2 * LOOK_EVERY_S)
        if self._ready_file is not None:
            self._ready_file.show(False)

    def _look_at_loop(self) -> None:
        stalled_s = self._health.stalled_s()
        if stalled_s > STALLED_S and not self._told_stall:
            where = self._where()
            _log.error(
                "The worker's loop has not turned for %.0f s; this worker consumes nothing.%s",
                stalled_s, f" It is held up by {where}." if where else "",
            )  # fmt: skip
        self._told_stall = stalled_s > STALLED_S

    def _look_at_progress(self) -> None:
        now, link = time.monotonic(), self._link
        received = link.received
        if received != self._received:
            self._received, self.rebuilds = received, 0
            self._calm(now)
        elif link.consumer is None or link.epoch != self._epoch or not self._loop.room or link.is_blocked:
            self._epoch = link.epoch
            self._calm(now)
        elif self._suspects and self._loop.turns < self._judged_from:
            pass  # a loop that has not looked, for a task that runs in it or for want of a processor, is not deaf
        elif now - self._calm_at >= self._patience_s:
            self._look_at_queues(now)

    def _look_at_queues(self, now: float) -> None:
        """Ask twice, a whole turn of the loop apart: what arrived just now, and is here in a millisecond, is no sign of
        deafness."""
        try:
            ready = {queue.name: self._transport.depth(queue.name) for queue in list(self._link.queues)}
        except OperationalError as exc:
            _log.debug("watchdog: %s", exc)  # the link meets the same trouble, and sees to it
            self._calm(now)
            return
        except Exception:  # a fault of the plugin's: the ready file, too, is this thread's to keep
            _log.exception("watchdog: cannot look at the queues")
            self._calm(now)
            return
        waiting = {name: count for name, count in ready.items() if count}
        if not waiting:
            self._calm(now)
        elif not self._suspects:
            self._suspects = waiting
            self._judged_from = self._loop.turns + 2  # the next turn has begun and ended by then
        elif self._link.received == self._received:
            self._act(waiting)
            self._calm(time.monotonic())

    def _act(self, waiting: dict[str, int]) -> None:
        queues = ", ".join(f"{count} in {name}" for name, count in waiting.items())
        what = f"messages are ready ({queues}), {self._loop.room} may be held, and none came for {self._patience_s:g} s"
        if self.rebuilds >= MAX_REBUILDS:
            _log.error("Deaf: %s, over %d new links. Ending, so that a new process takes over.", what, self.rebuilds)
            self._give_up()
            return
        self.rebuilds += 1
        _log.error("Deaf: %s. Making the link to the broker anew.", what)
        self._loop.rebuild(what)

    def _calm(self, now: float) -> None:
        self._calm_at = now
        self._suspects = {}
