"""How long until a worker consumes again when the node that leads its quorum queue is killed, in a cluster of three.

    python -m benchmarks.quorum --times 3

RabbitMQ nodes of our own on this machine, one worker that knows the addresses of all three, tasks without a pause. Each
time the queue's leader is killed as a power cut does, a probe is sent as soon as another node leads, and the node comes
back. Measured is the time from the kill until the probe has run; at the end every task must have run to its end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import machine
from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.ledger import Ledger
from celeriac import Celery
from celeriac.exceptions import OperationalError
from celeriac.testing.services import RabbitMQService

ROOT = Path(__file__).resolve().parent.parent
NODES = 3
PATIENCE_S = 120.0


class Node(RabbitMQService):
    """One node of a cluster.

    Args:
        first: The node to join, which has the port mapper and the secret; None for the first itself.
    """

    def __init__(self, first: Node | None = None) -> None:
        super().__init__()
        self._first = first

    @property
    def node(self) -> str:
        """Its name in the cluster."""
        return self._node

    def prepare(self) -> None:
        super().prepare()
        if self._first is None:
            return
        cookie = self.folder / ".erlang.cookie"
        cookie.chmod(0o600)
        cookie.write_text((self._first.folder / ".erlang.cookie").read_text())
        cookie.chmod(0o400)
        with (self.folder / "rabbitmq.conf").open("a") as conf:
            conf.write("cluster_formation.peer_discovery_backend = classic_config\n")
            for number, name in enumerate((self._first.node, self.node), 1):
                conf.write(f"cluster_formation.classic_config.nodes.{number} = {name}\n")

    def environment(self) -> Mapping[str, str]:
        first = self._first or self
        return {**super().environment(), "ERL_EPMD_PORT": str(first._epmd_port)}

    def _start_epmd(self) -> None:
        if self._first is None:
            super()._start_epmd()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the times; 1 if the worker was late once, or something was lost."""
    parser = argparse.ArgumentParser(prog="benchmarks.quorum", description="When a quorum queue's leader is killed.")
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        first = stack.enter_context(Node())
        nodes = [first, *(stack.enter_context(Node(first)) for _ in range(NODES - 1))]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celeriac-quorum-")))
        took, lost = strike(nodes, folder, options.times)
    seconds = ", ".join(f"{second:.1f}" for second in took)
    print(f"quorum, {machine.commit_of(ROOT)}: leader killed {len(took)} times; consuming again after {seconds} s")
    print(f"lost: {len(lost)}")
    return 1 if lost or max(took) >= PATIENCE_S else 0


def strike(nodes: list[Node], folder: Path, times: int) -> tuple[list[float], list[str]]:
    """Kill the leader so often; the seconds until a probe ran, and the tasks that never ended."""
    broker, ledger, took = ";".join(node.url for node in nodes), Ledger(folder / "ledger"), []
    backend = f"sqlite:///{folder}/results.db"
    environment = {"CHAOS_BROKER": broker, "CHAOS_BACKEND": backend, "CHAOS_LEDGER": str(ledger.path)}
    fleet = Fleet(folder, 1, ("-c", "2", "task.default_queue_type=quorum"), environment)
    client = Celery("client", broker=broker, backend=backend)
    client.conf.task_default_queue_type = "quorum"
    sent: list[str] = []
    try:
        fleet.fill()
        for _ in range(times):
            sent += [send(client, 0.2) for _ in range(30)]
            leader = leader_of(nodes)
            wait(ledger, partial(_has_begun, ledger, len(sent) - 25))
            leader.kill()
            struck_at = time.time()
            probe = send(client, 0.0)
            sent.append(probe)
            wait(ledger, partial(ledger.starts.__contains__, probe))
            took.append(ledger.starts[probe][0].at - struck_at if probe in ledger.starts else PATIENCE_S)
            leader.start()
        wait(ledger, lambda: set(sent) <= set(ledger.ends))
    finally:
        fleet.stop()
        client.close()
    return took, [id for id in sent if id not in ledger.ends]


def send(client: Celery, seconds: float) -> str:
    """Send a task, under one id until the broker has it."""
    id, deadline = str(uuid.uuid4()), time.monotonic() + PATIENCE_S
    while True:
        try:
            client.send_task("chaos.work", (seconds,), task_id=id, retry=False)
            return id
        except OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def leader_of(nodes: list[Node]) -> Node:
    """The node that leads the queue, once all of them are members that run."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        queue = nodes[0].api("GET", "queues/%2F/celery")
        if len(queue.get("online", ())) == NODES:
            return next(node for node in nodes if node.node == queue["leader"])
        if time.monotonic() > deadline:
            raise RuntimeError(f"the queue has not {NODES} members that run: {queue}")
        time.sleep(0.2)


def _has_begun(ledger: Ledger, count: int) -> bool:
    return len(ledger.starts) > count


def wait(ledger: Ledger, reached: Callable[[], bool]) -> None:
    """Until the ledger says so, or patience ends."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.01)
        ledger.read()


if __name__ == "__main__":
    sys.exit(main())
