"""A world in which the worker's own loop runs on a virtual clock, beside models of broker, result store and pool.

One seed decides everything: who does what when, which process is killed or stands still between any two steps, which
connection breaks before or after its effect, when the result store is away. The models are as atomic as the real
things, one verb one step; everything else (`Loop`, `Link`, `Settler`, `Spool`, `Admission`, `Endings`, `wind_down`) is
the code that ships. What must hold is checked at every step (`Broken`), and at the end of a life.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from io import StringIO
from types import SimpleNamespace
from typing import Any

from celeriac import Celery
from celeriac.app.revocations import Revocation, id_key, pack
from celeriac.exceptions import BackendLost, TransportLost
from celeriac.log import TaskLog
from celeriac.spec.data import Delivery, Head, Job, JobReport, Payload, QueueSpec, Route, Settlement, StoredResult
from celeriac.spec.state import Entry as StateEntry
from celeriac.spec.state import Snapshot
from celeriac.worker.clock import Clock
from celeriac.worker.consumer import Loop
from celeriac.worker.link import Link, Renewer
from celeriac.worker.revoked import Revoked
from celeriac.worker.shutdown import wind_down
from celeriac.worker.spool import Spool
from celeriac.worker.window import Window

EPOCH = 1_700_000_000.0
LEASE_S = 15.0
SLOTS = 2
MAX_CRASHES = 3  #: the setting's default
SPOOL = 5
MARGIN = 6  #: what was on its way already when the spool became full
MESSAGES = 18
HORIZON_S = 25.0  #: no new trouble after this
PATIENCE_S = 900.0  #: by then everything must have ended
READY = ("SUCCESS", "FAILURE", "REVOKED")

app = Celery("simulated", broker="memory://simulated", backend="memory://simulated", set_as_current=False)
app.task(name="work")(lambda: None)
app.task(name="early", acks_late=False)(lambda: None)
app.finalize()
#: Of workers that run nothing again that has succeeded, as far as they remember it.
remembering = Celery("remembering", broker="memory://simulated", set_as_current=False)
remembering.conf.update(result_backend=None, worker_deduplicate_successful_tasks=True)
remembering.task(name="work")(lambda: None)
remembering.task(name="early", acks_late=False)(lambda: None)
remembering.finalize()


class Broken(BaseException):
    """Something that must hold does not. No `Exception`: the worker's own code catches those."""


class Died(BaseException):
    """A process was killed at this very point."""


class Message:
    """A message in the broker's model, with what its task is going to do."""

    def __init__(self, id: str, task: str, seconds: float, follows: str | None, silent: bool) -> None:
        self.id = id
        self.task = task
        self.seconds = seconds
        self.follows = follows
        self.silent = silent
        self.eta: str | None = None
        self.state = "ready"
        self.owner: str | None = None
        self.attempt = 1
        self.newest = ""  # of its runs: id/attempt
        self.redelivered = False
        self.due = 0.0
        self.starts = 0
        self.losses = 0
        self.spared = 0
        self.revoked_at: float | None = None


class World:
    """Everything that is not a worker, and the order in which things happen."""

    def __init__(self, seed: int, *, faults: bool = True, remembers: bool = False) -> None:
        self.app = remembering if remembers else app
        self.rng = rng = random.Random(seed)
        self.now = 0.0
        self.joint = rng.random() < 0.3
        self.forgiving = rng.random() < 0.5  #: as Redis: an owner that comes back is one again, with what it still has
        self.trouble_left = rng.randint(1, 5) if faults else 0
        self.chance = rng.choice([0.002, 0.01, 0.04])
        self.messages: dict[str, Message] = {}
        self.ready: deque[str] = deque()
        self.results: dict[str, str] = {}
        self.owners: dict[str, float] = {}
        self.nodes: list[Node] = []
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.store_away_until = 0.0
        self.revocations: dict[str, StateEntry] = {}
        self.happened: list[str] = []
        self.faults = 0

    # -- time -----------------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), what))

    def note(self, text: str) -> None:
        self.happened.append(f"{self.now:8.3f} {text}")

    def live(self) -> None:
        """From the first message to the time when nothing is left to do."""
        for n in range(MESSAGES):
            self.at(self.rng.uniform(0, HORIZON_S * 0.6), lambda n=n: self.send_new(n))  # type: ignore[misc]
        for _ in range(2):
            self.at(self.rng.uniform(0, 1), self.start_node)
        if self.trouble_left and not self.joint and self.rng.random() < 0.6:
            self.at(self.rng.uniform(1, HORIZON_S * 0.6), self.take_store_away)
        if self.rng.random() < 0.7:
            self.at(self.rng.uniform(2, HORIZON_S), self.stop_a_node)
        self.pass_time(HORIZON_S)
        self.trouble_left = 0
        while self.now < PATIENCE_S and not self.is_over():
            self.pass_time(self.now + 5.0)
        self.check_end()

    def pass_time(self, until: float) -> None:
        """Let everything happen that is due before `until`, in order."""
        while True:
            self.sweep()
            node = min((n for n in self.nodes if not n.busy), key=lambda n: n.wake_at, default=None)
            times = [until]
            if node is not None:
                times.append(node.wake_at)
            if self.events:
                times.append(self.events[0][0])
            for each in self.nodes:
                times.append(each.next_at())
            self.now = max(self.now, min(times))
            if self.now >= until:
                return
            for each in list(self.nodes):
                each.be(self.now)
            if self.events and self.events[0][0] <= self.now:
                heapq.heappop(self.events)[2]()
            elif node is not None and node.wake_at <= self.now and not node.busy and not node.dead:
                node.turn()

    def is_over(self) -> bool:
        return len(self.messages) >= MESSAGES and all(m.state in ("done", "dead") for m in self.messages.values())

    # -- trouble --------------------------------------------------------------------------------------------

    def point(self, node: Node, *, cut: type[Exception] | None = None) -> None:
        """A place between two steps of a process: here it may die, stand still, or (`cut`) lose its connection."""
        if node.dead:
            raise Died
        if self.trouble_left <= 0 or self.rng.random() > self.chance:
            return
        kind = self.rng.choice(["die", "freeze", "freeze", "cut", "cut", "child"])
        if kind == "cut" and cut is None:
            return
        self.trouble_left -= 1
        self.faults += 1
        node.harmed = True
        self.note(f"{node.name}: {kind}")
        if kind == "die":
            node.die()
            raise Died
        if kind == "freeze":
            node.stand_still(self.rng.choice([2.0, 8.0, 17.0, 35.0]))
        elif kind == "child":
            node.pool.lose_a_child()
        elif cut is not None:
            raise cut("the simulated connection broke")

    def take_store_away(self) -> None:
        self.faults += 1
        self.store_away_until = self.now + self.rng.choice([1.0, 5.0, 40.0, 60.0])
        self.note(f"result store away until {self.store_away_until:.1f}")
        if self.rng.random() < 0.8:
            self.at(self.now + self.rng.uniform(0.5, 5.0), self.freeze_a_node)

    def freeze_a_node(self) -> None:
        for node in self.nodes:
            if not node.busy:
                node.harmed = True
                self.note(f"{node.name}: freeze")
                node.guarded(lambda node=node: node.stand_still(self.rng.choice([8.0, 17.0, 25.0])))  # type: ignore[misc]
                return

    def start_node(self) -> None:
        node = Node(self, len(self.happened))
        self.note(f"{node.name}: starts")
        self.nodes.append(node)
        node.guarded(node.begin)

    def stop_a_node(self) -> None:
        idle = [node for node in self.nodes if not node.busy]
        if idle:
            self.note(f"{idle[0].name}: is told to stop")
            idle[0].stop()

    # -- broker ---------------------------------------------------------------------------------------------

    def send_new(self, n: int) -> None:
        rng = self.rng
        id = f"m{n}"
        task = "early" if rng.random() < 0.1 else "work"
        seconds = rng.choice([0.0005, 0.0005, 0.05, 1.0, 6.0])
        follows = f"{id}-next" if rng.random() < 0.3 and task == "work" else None
        message = Message(id, task, seconds, follows, silent=rng.random() < 0.15)
        if rng.random() < 0.15:
            message.eta = datetime.fromtimestamp(EPOCH + self.now + rng.uniform(0.5, 6.0), timezone.utc).isoformat()
        self.accept(message)
        if rng.random() < 0.2:
            self.at(self.now + rng.uniform(0, 8), lambda: self.revoke(message))

    def accept(self, message: Message) -> None:
        self.messages[message.id] = message
        self.ready.append(message.id)

    def revoke(self, message: Message) -> None:
        message.revoked_at = self.now
        self.note(f"{message.id}: revoked")
        self.revocations[id_key(message.id)] = StateEntry(pack(Revocation()), len(self.revocations) + 1, None)

    def give_back(self, message: Message, *, lost: bool, spared: bool = False, due: float = 0.0) -> None:
        message.state, message.owner, message.due = "ready", None, due
        if lost:
            message.spared += spared
            message.attempt += 1
            message.losses += 1
            message.redelivered = True
        self.ready.appendleft(message.id)

    def sweep(self) -> None:
        """What any live worker does for dead ones."""
        if not self.nodes:
            return
        for owner in [owner for owner, ends in self.owners.items() if ends <= self.now]:
            del self.owners[owner]
            for message in self.messages.values():
                if message.owner == owner:
                    self.note(f"{message.id}: taken from {owner}")
                    self.give_back(message, lost=True)

    def publish(self, node: Node, payload: Payload) -> None:
        id, run = payload.headers["id"], payload.headers["run"]
        node.check_fresh(run, f"publishes {id}")
        if id not in self.messages:
            self.accept(Message(id, "work", 0.0005, None, silent=False))

    def done(self, message: Message) -> None:
        """Acknowledged: by now all that follows must be safe (I2, R12)."""
        message.state, message.owner = "done", None
        if message.task == "early" or message.revoked_at is not None:
            return  # the first may be lost with its worker; the other may be ended between its result and what follows
        if not message.silent and self.results.get(message.id) not in READY:
            raise Broken(f"I2: {message.id} is acknowledged, its stored state is {self.results.get(message.id)}")
        if message.follows and self.results.get(message.id) == "SUCCESS" and message.follows not in self.messages:
            raise Broken(f"R12: {message.id} is acknowledged, {message.follows} was never sent")

    def set_aside(self, message: Message, reason: str) -> None:
        message.state, message.owner = "dead", None
        crashes = message.losses - message.spared + reason.startswith("crash: its slot died")
        if reason.startswith("crash") and crashes < MAX_CRASHES:
            raise Broken(f"B14: {message.id} is set aside after {crashes} crashes: {reason}")

    def store(self, node: Node, batch: Sequence[StoredResult]) -> None:
        for result in batch:
            if result.data:
                node.check_fresh(result.data.decode(), f"stores {result.task_id}")
            if self.results.get(result.task_id) != "SUCCESS":
                self.results[result.task_id] = result.state

    # -- what must hold -------------------------------------------------------------------------------------

    def started(self, node: Node, job: Job) -> None:
        message = self.messages[job.raw.decode()]
        message.starts += 1
        node.check_fresh(f"{message.id}/{job.attempt}", "starts")
        message.newest = f"{message.id}/{job.attempt}"
        if message.starts > 1 + message.losses:
            raise Broken(f"I4: {message.id} starts for the {message.starts}th time after {message.losses} losses")
        if message.revoked_at is not None and self.now > max(message.revoked_at, node.awake_since) + 5.0:
            raise Broken(f"I7: {message.id}, revoked at {message.revoked_at:.3f}, starts")

    def check_end(self) -> None:
        for message in self.messages.values():
            if message.state not in ("done", "dead"):
                raise Broken(f"I1: {message.id} is {message.state} at the end")
            if not self.faults and (message.redelivered or message.starts > 1):
                raise Broken(f"B12, B13: {message.id} was redelivered although nothing went wrong")


class Node:
    """One worker process: the real loop, between models."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"w{number}"
        self.dead = self.busy = self.frozen = self.harmed = False
        self.awake_since = self.wake_at = world.now
        self.renew_at = self.look_at = world.now
        self.asked = 0
        self.lost_before: set[str] = set()  # runs, as the process can know; of some the message had come again since
        self.renewer: Renewer | None = None
        clock = Clock(
            monotonic=lambda: world.now + 1000.0,
            unix=lambda: EPOCH + world.now,
            uniform=world.rng.uniform,
            sleep=self.sleep_on,
            aside=self.aside,
        )
        self.pool = SimPool(self)
        transport: Any = SimTransport(self)
        backend: Any = SimBackend(self)
        poller: Any = SimpleNamespace(watch=None, sleep=self.sleep, wake=self.wake)
        self.link = Link(
            transport,
            app.router,
            backend,
            owner=self.name,
            queues=[QueueSpec("q")],
            poller=poller,
            make_spool=lambda: Spool(SPOOL),
            make_renewer=self.make_renewer,
            clock=clock,
        )
        self.loop = Loop(
            world.app,
            self.link,
            transport,
            self.pool,  # type: ignore[arg-type]
            poller,
            node=self.name,
            window=Window(SLOTS, world.rng.choice([None, 1, 2])),
            log=TaskLog("console", 100, StringIO(), False),
            hard_s=None,
            soft_s=None,
            revoked=Revoked(clock=clock),
            clock=clock,
        )
        self.clock = clock

    # -- life -----------------------------------------------------------------------------------------------

    def guarded(self, act: Callable[[], None]) -> None:
        """Run this process's own code; its death ends it."""
        before, self.busy = self.busy, True
        try:
            act()
        except Died:
            pass
        finally:
            self.busy = before

    def begin(self) -> None:
        self.look()
        try:
            self.loop.open()
        except TransportLost:
            self.die()

    def turn(self) -> None:
        self.lost_before = self.lost_runs()
        self.guarded(self.loop.turn)
        held = self.link.held()
        if held > SPOOL + MARGIN:
            raise Broken(f"R5: {held} results are held, {SPOOL} were allowed")

    def stop(self) -> None:
        self.asked = 1
        self.guarded(self.wind_down)
        if not self.dead:
            self.leave()

    def wind_down(self) -> None:
        rng = self.world.rng
        grace_s, soft_s = rng.choice([None, 0.0, 3.0]), rng.choice([0.0, 2.0])
        ended = wind_down(
            self.loop,
            self.pool,
            self.turn_while_stopping,
            lambda: self.asked,
            grace_s=grace_s,
            soft_s=soft_s,
            clock=self.clock,
        )
        self.world.note(f"{self.name}: stopped, {ended}")
        self.world.faults += ended.forced

    def turn_while_stopping(self) -> None:
        self.lost_before = self.lost_runs()
        self.loop.turn()
        self.world.pass_time(self.wake_at)
        if self.dead:
            raise Died

    def die(self) -> None:
        self.dead = True
        self.leave()

    def leave(self) -> None:
        world = self.world
        world.nodes = [node for node in world.nodes if node is not self]
        self.dead = True
        world.at(world.now + world.rng.uniform(0.1, 3.0), world.start_node)

    def stand_still(self, seconds: float) -> None:
        """The process is stopped; its children are not."""
        self.frozen = True
        self.world.pass_time(self.world.now + seconds)
        self.frozen = False
        self.awake_since = self.world.now
        self.renew_at = max(self.renew_at, self.world.now + self.world.rng.uniform(0, 2))  # threads wake in any order
        if self.dead:
            raise Died

    # -- what runs beside the loop --------------------------------------------------------------------------

    def next_at(self) -> float:
        """When something of it is due that is not a turn."""
        at = self.pool.next_at()
        if not self.frozen:
            at = min(at, self.renew_at if self.renewer else at, self.look_at)
        return at

    def be(self, now: float) -> None:
        """Children, the renewer's thread and the thread that looks for revocations have their time."""
        self.pool.advance(now)
        if self.frozen or self.dead:
            return
        if self.renewer is not None and now >= self.renew_at:
            self.guarded(self.renew)  # should it stand still here, it does so with all its threads
        if now >= self.look_at:
            self.look()

    def renew(self) -> None:
        assert self.renewer is not None
        self.renew_at = self.world.now + 5.0
        try:
            self.renewer.prove()
        except TransportLost:
            self.renew_at = self.world.now + 1.0

    def look(self) -> None:
        self.look_at = self.world.now + 3.0
        entries = dict(self.world.revocations)
        self.loop.learn_revoked(Snapshot(len(entries), EPOCH + self.world.now, entries))

    def make_renewer(self, consumer: Any, report_lost: Any, clock: Clock) -> Renewer:
        renewer = Renewer(consumer, report_lost, clock)
        renewer.start = lambda: None  # type: ignore[method-assign]  # `be` does what its thread does
        self.renewer, self.renew_at = renewer, self.world.now + 5.0
        return renewer

    def aside(self, work: Callable[[], None]) -> None:
        # A step that was on its way cannot know more, not even that what came again is lost once more.
        known = {run for run in self.lost_before if not self.has_again(run)}

        def run() -> None:
            if self.frozen:
                self.world.at(self.world.now + 1.0, run)
            elif not self.dead:
                self.lost_before, now_known = known, self.lost_before
                try:
                    self.guarded(work)
                finally:
                    self.lost_before = now_known
                self.wake()

        self.world.at(self.world.now + self.world.rng.uniform(0.001, 1.0), run)

    def sleep(self, seconds: float | None) -> None:
        self.wake_at = self.world.now + max(0.001, min(seconds if seconds is not None else 1.0, self.pool.in_s()))

    def wake(self) -> None:
        self.wake_at = min(self.wake_at, self.world.now)

    def sleep_on(self, seconds: float) -> None:
        self.world.pass_time(self.world.now + seconds)
        if self.dead:
            raise Died

    # -- what must hold -------------------------------------------------------------------------------------

    def lost_runs(self) -> set[str]:
        """Runs whose lease is lost by now: the process has had its chance to find out before it acts."""
        consumer: Any = self.link.consumer
        if consumer is None:
            return self.lost_before
        lost = {f"{id}/{attempt}" for id, attempt in consumer.held.values() if not consumer.has(id, attempt)}
        return self.lost_before | lost

    def check_fresh(self, run: str, what: str) -> None:
        if run in self.lost_before and not run.startswith("early") and not self.has_again(run):
            raise Broken(f"B8, I3: {self.name} {what} for {run}, which it had lost before")

    def has_again(self, run: str) -> bool:
        """Whether the message came again to this node, while its last run was this one: that may go on then."""
        message, consumer = self.world.messages.get(run.rpartition("/")[0]), self.link.consumer
        return (
            message is not None
            and isinstance(consumer, SimConsumer)
            and (message.newest, message.owner) == (run, consumer.owner)
        )


class SimTransport:
    """The broker as one worker sees it."""

    abilities = frozenset({"delay", "lease", "attempts", "spares", "dead_letter"})

    def __init__(self, node: Node) -> None:
        self.node = node
        self.joint = "simulated" if node.world.joint else None

    def consumer(self, queues: Any, *, owner: str, poller: Any, window: int) -> SimConsumer:
        self.node.world.point(self.node, cut=TransportLost)
        return SimConsumer(self.node, owner)

    def declare(self, queues: Any) -> None:
        self.node.world.point(self.node, cut=TransportLost)

    def unpack(self, raw: bytes) -> Payload:
        return Payload(b"", "", "", {"id": raw.decode(), "task": "work"}, {}, Route("q"))


class SimConsumer:
    """One connection of one worker: each verb one step, which may be cut before or after it."""

    poll_interval_s = 0.5

    def __init__(self, node: Node, owner: str) -> None:
        self.node, self.world, self.owner = node, node.world, owner
        self.held: dict[int, tuple[str, int]] = {}
        self.closed = False
        self.world.owners[owner] = self.world.now + LEASE_S

    def _enter(self) -> None:
        self.world.point(self.node, cut=TransportLost)
        if self.closed:
            raise TransportLost("closed")
        if self.owner not in self.world.owners:
            if not self.world.forgiving:
                raise TransportLost("others took us for dead")
            self.world.owners[self.owner] = self.world.now + LEASE_S

    def receive(self, limit: int) -> list[Delivery]:
        self._enter()
        found: list[Delivery] = []
        for id in list(self.world.ready):
            message = self.world.messages[id]
            if len(found) >= limit:
                break
            if message.due > self.world.now:
                continue
            self.world.ready.remove(id)
            message.state, message.owner = "leased", self.owner
            tag = next(self.world.order)
            self.held[tag] = id, message.attempt
            head = Head(id, message.task, eta=message.eta)
            again = message.redelivered, message.spared
            found.append(Delivery(tag, id.encode(), head, "q", message.attempt, *again))
        if found:
            self.world.point(self.node, cut=TransportLost)
        return found

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        self._enter()
        world = self.world
        if joined:
            world.store(self.node, joined)
        for payload in publish:
            world.publish(self.node, payload)
        for settlement in batch:
            id, attempt = self.held.pop(settlement.tag, ("", 0))
            if not self.has(id, attempt):
                continue  # stale: changes nothing
            message = world.messages[id]
            if settlement.verb == "ack":
                world.done(message)
            elif settlement.verb == "dead":
                world.set_aside(message, settlement.reason)
            else:
                due = settlement.due - EPOCH if settlement.due is not None else 0.0
                world.give_back(message, lost=settlement.started, spared=settlement.spared, due=due)
        world.point(self.node, cut=TransportLost)

    def flush(self, timeout_s: float) -> None:
        self._enter()

    def renew(self) -> list[int]:
        self._enter()
        self.world.owners[self.owner] = self.world.now + LEASE_S
        return [tag for tag, (id, attempt) in self.held.items() if not self.has(id, attempt)]

    def has(self, id: str, attempt: int) -> bool:
        """Whether this very delivery of the message is still held under this owner."""
        message = self.world.messages.get(id)
        return message is not None and message.owner == self.owner and message.attempt == attempt

    def resize(self, window: int) -> None:
        """Nothing is sent ahead here."""

    def stop(self) -> None:
        self._enter()

    def close(self) -> None:
        """Gives back what is unsettled, as lost, for nobody can say here what had been started."""
        if self.closed:
            return
        self.closed = True
        if self.node.dead:
            return
        self.world.owners.pop(self.owner, None)
        for message in self.world.messages.values():
            if message.owner == self.owner:
                if not (message.starts or self.node.harmed or self.world.now < self.world.store_away_until):
                    raise Broken(f"B13: {message.id}, which never started, goes back as if it had")
                self.world.give_back(message, lost=True)


class SimBackend:
    """The result store as one worker sees it."""

    abilities = frozenset({"joint"})

    def __init__(self, node: Node) -> None:
        self.node = node
        self.joint = "simulated" if node.world.joint else None

    def store(self, batch: Sequence[StoredResult]) -> None:
        world = self.node.world
        world.point(self.node, cut=BackendLost)
        if world.now < world.store_away_until:
            raise BackendLost("the simulated store is away")
        world.store(self.node, batch)
        world.point(self.node, cut=BackendLost)

    def commands(self, batch: Sequence[StoredResult]) -> list[StoredResult]:
        return list(batch)


class SimPool:
    """Slots that run on their own while the worker's process does other things, or nothing."""

    abilities = frozenset({"processes", "terminate"})

    def __init__(self, node: Node) -> None:
        self.node = node
        self.backlog: deque[Job] = deque()
        self.running: dict[int, tuple[Job, float]] = {}
        self.reports: list[JobReport] = []

    def in_s(self) -> float:
        """Seconds until a slot has news that would wake the worker."""
        now = self.node.world.now
        return 0.0 if self.reports else max(0.0, self.next_at() - now)

    def next_at(self) -> float:
        return min((ends for _, ends in self.running.values()), default=float("inf"))

    def advance(self, now: float) -> None:
        for token, (job, ends) in list(self.running.items()):
            if ends <= now:
                del self.running[token]
                self.reports.append(self._report(job))
                self.node.wake()
        self._fill()

    def _fill(self) -> None:
        while self.backlog and len(self.running) < SLOTS:
            job = self.backlog.popleft()
            world = self.node.world
            world.started(self.node, job)
            if job.announce:
                self.reports.append(JobReport(job.token, "accepted", pid=1))
            self.running[job.token] = job, world.now + world.messages[job.raw.decode()].seconds
            self.node.wake()

    def _report(self, job: Job) -> JobReport:
        message = self.node.world.messages[job.raw.decode()]
        run = f"{message.id}/{job.attempt}" if message.task != "early" else "early"
        stored = [] if message.silent else [StoredResult(message.id, "SUCCESS", run.encode())]
        publish = []
        if message.follows:
            publish = [Payload(b"", "", "", {"id": message.follows, "task": "work", "run": run}, {}, Route("q"))]
        return JobReport(job.token, "succeeded", message.seconds, stored, publish)

    def lose_a_child(self) -> None:
        """One that runs something is killed."""
        for token in list(self.running)[:1]:
            del self.running[token]
            self.reports.append(JobReport(token, "lost", detail="signal 9"))

    # -- the contract ---------------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job]) -> None:
        self.backlog.extend(jobs)
        self._fill()

    def collect(self) -> list[JobReport]:
        self.advance(self.node.world.now)
        reports, self.reports = self.reports, []
        return reports

    def deadline(self) -> float | None:
        return None

    def withdraw(self) -> None:
        self.reports += [JobReport(job.token, "returned") for job in self.backlog]
        self.backlog.clear()

    def cancel(self, token: int, *, signal: int | None = None) -> bool:
        for job in self.backlog:
            if job.token == token:
                self.backlog.remove(job)
                self.reports.append(JobReport(token, "cancelled"))
                return True
        return False

    def stop(self, *, grace_s: float) -> list[JobReport]:
        self.withdraw()
        if grace_s and self.running:
            self.node.sleep_on(grace_s)
        reports = self.collect()
        reports += [JobReport(token, "lost", detail="signal 15") for token in self.running]
        self.running.clear()
        return reports
