"""What a worker learns of the other workers on its broker: by asking once (mingle), and by listening on (gossip).

Both are Celery's, and off unless they are wanted (`worker_mingle`, `worker_gossip`): where there is shared state, a
worker knows what is revoked without asking, and a fleet in which everybody hears everybody is a noisy one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from celeriac.app.revocations import Revocation, id_key
from celeriac.events import State
from celeriac.exceptions import OperationalError
from celeriac.worker.revoked import Revoked

#: How long siblings may take to answer.
MINGLE_S: Final = 1.0
#: How often to look for workers that have fallen silent.
LOOK_S: Final = 2.0
LONGEST_PAUSE_S: Final = 10.0

_log = logging.getLogger("celeriac.worker")


def mingle_with_all(app: Any, node: str, revoked: Revoked) -> list[str]:
    """Exchange revoked ids and clocks with all workers that answer, Celery's among them; their names."""
    arguments = {"from_node": node, "revoked": revoked.ids()}
    try:
        replies = app.control.broadcast("hello", arguments, reply=True, timeout=MINGLE_S)
    except OperationalError as exc:
        _log.warning("Cannot mingle: %s", exc)
        return []
    answers = {name: answer for reply in replies for name, answer in reply.items() if isinstance(answer, dict)}
    ids = {str(task_id) for answer in answers.values() for task_id in answer.get("revoked") or ()}
    revoked.hear({id_key(task_id): Revocation() for task_id in ids})
    for answer in answers.values():
        if type(answer.get("clock")) is int:
            app.clock.adjust(answer["clock"])
    _log.info("Mingled with %d workers: %d revoked ids, clock %d.", len(answers), len(ids), app.clock.value)
    return sorted(answers)


class Callbacks:
    """What is called with a worker (`celeriac.events.state.Worker`), in the thread of `Gossip`.

    Attributes:
        node_join: It is there.
        node_leave: It said that it goes.
        node_lost: It fell silent.
    """

    def __init__(self) -> None:
        self.node_join: set[Callable[[Any], Any]] = set()
        self.node_leave: set[Callable[[Any], Any]] = set()
        self.node_lost: set[Callable[[Any], Any]] = set()


class Gossip(threading.Thread):
    """Hears what workers say of themselves.

    Args:
        node: This worker, which does not count.
    Attributes:
        on: What is called.
        state: The other workers: `state.alive_workers()`.
    """

    def __init__(self, app: Any, node: str) -> None:
        super().__init__(name="celeriac-gossip", daemon=True)
        self._node = node
        self._end = threading.Event()
        self.on = Callbacks()
        self.state = State(on_node_join=self._joined, on_node_leave=self._left, max_tasks_in_memory=1)
        self._receiver = app.events.Receiver(handlers={"*": self._note}, routing_key="worker.#")

    def run(self) -> None:
        """Until `stop`."""
        pause_s = 0.0
        while not self._end.wait(pause_s):
            try:
                self._receiver.drain(LOOK_S)
                self._look_for_lost()
                pause_s = 0.0
            except OperationalError as exc:
                if self._end.is_set():
                    break
                _log.log(logging.DEBUG if pause_s else logging.WARNING, "Other workers are not heard now: %s", exc)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s or 0.5)
            except Exception:  # nothing that is sent may end this thread
                _log.exception("unexpected error while listening to other workers")
                pause_s = 1.0
        self._receiver.close()

    def stop(self) -> None:
        """Hear no more; what it waits for just now is not waited for."""
        self._end.set()

    def _note(self, event: dict[str, Any]) -> None:
        if event["type"].startswith("worker-") and event.get("hostname") != self._node:
            self.state.event(event)

    def _look_for_lost(self) -> None:
        for worker in [worker for worker in self.state.workers.values() if not worker.alive]:
            self.state.workers.pop(str(worker.hostname), None)
            _log.info("%s is heard no more.", worker.hostname)
            self._call(self.on.node_lost, worker)

    def _joined(self, worker: Any) -> None:
        _log.info("%s is there.", worker.hostname)
        self._call(self.on.node_join, worker)

    def _left(self, worker: Any) -> None:
        _log.info("%s has left.", worker.hostname)
        self._call(self.on.node_leave, worker)

    def _call(self, functions: set[Callable[[Any], Any]], worker: Any) -> None:
        for function in list(functions):
            try:
                function(worker)
            except Exception:  # the user's; the others are to hear of it too
                _log.exception("%r failed when told of %s", function, worker.hostname)
