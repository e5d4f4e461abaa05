"""Who takes part, in which configuration, with how many tasks.

Every configuration is one its own documentation suggests: the default one and the fastest one we know. `note` says
what it is, in the words the table prints. Counts are chosen so that a drain takes one to a few seconds on two
ordinary cores; `--quick` takes a part of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BROKERS = ("redis", "rabbitmq", "sqlite")
WORKLOADS = ("enqueue", "bulk", "drain", "results", "latency", "paced")

OURS = "celeriac"
"""Runs in the project's own environment; every other peer gets a venv."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tasks a workload takes."""

    enqueue: int = 1500
    drain: int = 4000
    results: int = 1000
    latency: int = 300
    paced: int = 600

    @property
    def bulk(self) -> int:
        """Part of what is drained, for the peers that can send it in bulk."""
        return max(1000, self.drain // 2)

    def scaled(self, part: float) -> Counts:
        """The same, smaller; never so small that a median means nothing."""
        return Counts(
            enqueue=max(500, int(self.enqueue * part)),
            drain=max(600, int(self.drain * part)),
            results=max(200, int(self.results * part)),
            latency=max(150, int(self.latency * part)),
            paced=max(300, int(self.paced * part)),
        )


@dataclass(frozen=True, slots=True)
class Setup:
    """One peer in one configuration.

    `workers` has one command per process to start; its first word is a program of the peer's venv. `counts` is by
    broker, for the brokers this configuration runs on; `without` names the workloads it cannot do on a broker; `bulk`
    says that it has a way to send many calls together; `quick`, that the quick run has it.
    """

    peer: str
    name: str
    app: str
    workers: tuple[str, ...]
    counts: Mapping[str, Counts]
    note: str
    env: Mapping[str, str] = field(default_factory=dict)
    without: Mapping[str, frozenset[str]] = field(default_factory=dict)
    bulk: bool = False
    quick: bool = True

    @property
    def label(self) -> str:
        """`celery:prefork`."""
        return f"{self.peer}:{self.name}"

    def can(self, broker: str, workload: str) -> bool:
        """Whether this configuration takes part in a workload on a broker."""
        if workload == "bulk" and not self.bulk:
            return False
        return broker in self.counts and workload not in self.without.get(broker, frozenset())


REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "celery": ("celery[redis]==5.7.0", "hiredis"),
    "dramatiq": ("dramatiq[redis,rabbitmq]==2.2.1", "hiredis"),
    "huey": ("huey==3.5.4", "redis", "hiredis"),
    "taskiq": ("taskiq[uv,orjson]==0.13.0", "taskiq-redis==1.2.4", "taskiq-aio-pika==0.6.1", "hiredis"),
    "raw": ("hiredis", "amqp"),
    "tools": ("py-spy",),
}
"""What goes into each peer's venv. `raw` measures the limits of the machine, `tools` is for `hotspots.py`."""

_NO_REPLIES = frozenset({"results", "latency"})  # no result store that lives on RabbitMQ

_CELERY_ALONE = "--without-gossip --without-mingle --without-heartbeat"

SETUPS: tuple[Setup, ...] = (
    Setup(
        peer=OURS,
        name="prefork",
        app="celeriac_app",
        workers=("celeriac -A celeriac_app worker -P prefork -c 2 --loglevel=warning",),
        counts={
            "redis": Counts(enqueue=5000, drain=40000, results=8000, latency=500),
            "rabbitmq": Counts(enqueue=3000, drain=16000, results=3000, latency=500),
            "sqlite": Counts(enqueue=3000, drain=24000, results=4000, latency=500),
        },
        bulk=True,
        note="defaults of `worker -P prefork -c 2`: at least once, acknowledged after the result is stored",
    ),
    Setup(
        peer="celery",
        name="prefork",
        app="celery_app",
        workers=("celery -A celery_app worker -P prefork -c 2 --loglevel=warning",),
        counts={
            "redis": Counts(enqueue=1200, drain=1500, results=400, latency=200),
            "rabbitmq": Counts(enqueue=1500, drain=2500, results=600, latency=200),
        },
        bulk=True,
        note="defaults of `worker -c 2`: prefork, prefetch × 4, acknowledges before it runs",
    ),
    Setup(
        peer="celery",
        name="solo",
        app="celery_app",
        workers=tuple(
            f"celery -A celery_app worker -P solo -n {node}@%h --prefetch-multiplier=128 --loglevel=warning "
            f"{_CELERY_ALONE}"
            for node in ("one", "two")
        ),
        counts={
            "redis": Counts(enqueue=1200, drain=2000, results=400, latency=200),
            "rabbitmq": Counts(enqueue=1500, drain=5000, results=600, latency=200),
        },
        bulk=True,
        note="tuned: 2 processes of `worker -P solo`, prefetch × 128, no gossip, mingle, heartbeat",
    ),
    Setup(
        peer="celery",
        name="threads",
        app="celery_app",
        workers=tuple(
            f"celery -A celery_app worker -P threads -c 8 -n {node}@%h --prefetch-multiplier=32 --loglevel=warning "
            f"{_CELERY_ALONE}"
            for node in ("one", "two")
        ),
        counts={
            "redis": Counts(enqueue=1200, drain=2000, results=400, latency=200),
            "rabbitmq": Counts(enqueue=1500, drain=4000, results=600, latency=200),
        },
        bulk=True,
        note="tuned: 2 processes of `worker -P threads -c 8`, prefetch × 32, no gossip, mingle, heartbeat",
        quick=False,
    ),
    Setup(
        peer="dramatiq",
        name="p2t8",
        app="dramatiq_app",
        workers=("dramatiq dramatiq_app -p 2 -t 8",),
        counts={
            "redis": Counts(enqueue=2500, drain=5000, results=2000),
            "rabbitmq": Counts(enqueue=3000, drain=5000),
        },
        note="`-p 2 -t 8` (default threads), default middleware",
        without={"rabbitmq": _NO_REPLIES},
    ),
    Setup(
        peer="dramatiq",
        name="lean",
        app="dramatiq_app",
        workers=("dramatiq dramatiq_app -p 2 -t 1",),
        counts={
            "redis": Counts(enqueue=2500, drain=10000, results=2000),
            "rabbitmq": Counts(enqueue=3000, drain=10000),
        },
        note="`-p 2 -t 1`, no middleware (no retries, no time limits), prefetch 1,000",
        env={"dramatiq_queue_prefetch": "1000"},
        without={"rabbitmq": _NO_REPLIES},
    ),
    Setup(
        peer="huey",
        name="process",
        app="huey_app",
        workers=("huey_consumer huey_app.huey -k process -w 2 -d 0.005 -m 0.05 -q",),
        counts={
            "redis": Counts(enqueue=2000, drain=4000, results=1000),
            "sqlite": Counts(enqueue=2000, drain=4000, results=800),
        },
        note="`-k process -w 2`; Redis: blocking pop, pushed results; SQLite: polls every 5-50 ms; at most once",
    ),
    Setup(
        peer="huey",
        name="thread",
        app="huey_app",
        workers=("huey_consumer huey_app.huey -k thread -w 4 -d 0.005 -m 0.05 -q",),
        counts={
            "redis": Counts(enqueue=2000, drain=4000, results=1000),
            "sqlite": Counts(enqueue=2000, drain=3000, results=800),
        },
        note="`-k thread -w 4`: one process; otherwise as huey:process",
    ),
    Setup(
        peer="taskiq",
        name="list",
        app="taskiq_app",
        workers=("taskiq worker taskiq_app:broker -w 2 --no-parse --log-level WARNING",),
        counts={
            "redis": Counts(enqueue=2000, drain=5000, results=800),
        },
        note="`-w 2 --no-parse`, ListQueueBroker (blocking pop: at most once), orjson, uvloop; client polls every 1 ms",
    ),
    Setup(
        peer="taskiq",
        name="stream",
        app="taskiq_app",
        workers=("taskiq worker taskiq_app:broker -w 2 --no-parse --log-level WARNING",),
        counts={
            "redis": Counts(enqueue=2000, drain=4000, results=800),
        },
        note="the same with RedisStreamBroker (100 a read, acknowledged: at least once)",
    ),
    Setup(
        peer="taskiq",
        name="aiopika",
        app="taskiq_app",
        workers=("taskiq worker taskiq_app:broker -w 2 --no-parse --log-level WARNING",),
        counts={"rabbitmq": Counts(enqueue=1500, drain=4000)},
        note="`-w 2 --no-parse`, AioPikaBroker, classic queue, qos 100, confirms (its default), orjson, uvloop",
        without={"rabbitmq": _NO_REPLIES},
    ),
)


def choose(peers: list[str] | None, *, quick: bool) -> list[Setup]:
    """The setups a run takes: `peers` are names or labels (`celery`, `celery:solo`); ours is always there.

    Raises:
        LookupError: A name that no setup has.
    """
    if not peers:
        return [setup for setup in SETUPS if setup.quick or not quick]
    chosen = []
    known = {setup.peer for setup in SETUPS} | {setup.label for setup in SETUPS}
    for name in peers:
        if name not in known:
            raise LookupError(f"no peer is named {name!r}; there are: {', '.join(sorted(known))}")
    for setup in SETUPS:
        named = setup.label in peers
        whole = setup.peer in peers and (setup.quick or not quick)
        if setup.peer == OURS or named or whole:
            chosen.append(setup)
    return chosen
