"""The kinds of faults. Each is a generator: it strikes, yields how long to leave things so, mends, returns its proof.

The proof is what the fault was seen to do, in words; an empty one means that it met nobody. A fault of workers puts
into `scene.killed` the processes that it killed.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.places import Place
from celeriac.testing.faults import DOWN, UP, FaultProxy
from celeriac.testing.services import ServiceFailed, ask
from celeriac_support_sqlite.wake import folder_of

Fault = Callable[["Scene"], Generator[float, None, str]]

REGISTER: dict[str, dict[str, Fault]] = {"redis": {}, "amqp": {}, "sqlite": {}}
#: Faults of connections alone: what the loop of reconnections repeats.
CONNECTION: dict[str, list[str]] = {"redis": [], "amqp": []}
GARBAGE = (b"", b"{", b"\x00" * 50, b'{"headers": 5}', b'["not", "a", "message"]')


@dataclass
class Scene:
    """What a fault may strike.

    Attributes:
        feed: Sends a task, for a fault that meets nobody on a quiet connection.
    """

    place: Place
    fleet: Fleet
    rng: random.Random
    killed: set[int] = field(default_factory=set)
    feed: Callable[[], Any] = str

    @property
    def wire(self) -> FaultProxy:
        assert self.place.wire is not None
        return self.place.wire

    def errors(self, code: str) -> int:
        """How often Redis has answered with this error."""
        for line in self.place.redis("INFO", "errorstats").decode().splitlines():
            if line.startswith(f"errorstat_{code}:"):
                return int(line.partition("count=")[2])
        return 0

    def wait_for(self, true: Callable[[], Any], within_s: float = 10.0) -> bool:
        """Whether it comes true in time."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if true():
                return True
            time.sleep(0.02)
        return False


def fault(*brokers: str, connection: bool = False) -> Callable[[Fault], Fault]:
    """Enter a kind of fault for these brokers."""

    def enter(make: Fault) -> Fault:
        for broker in brokers:
            REGISTER[broker][make.__name__] = make
            if connection:
                CONNECTION[broker].append(make.__name__)
        return make

    return enter


SERVERS = ("redis", "amqp")
ALL = ("redis", "amqp", "sqlite")

# -- the network --------------------------------------------------------------------------------------------


@fault(*SERVERS, connection=True)
def cut(scene: Scene) -> Generator[float, None, str]:
    """Every connection is reset."""
    count = scene.wire.cut()
    yield 0.0
    return f"{count} connections reset" if count else ""


@fault(*SERVERS, connection=True)
def reset_mid_answer(scene: Scene) -> Generator[float, None, str]:
    """Connections are reset in the middle of what the server says."""
    before, size = scene.wire.resets, scene.rng.randrange(1, 3000)
    while True:
        scene.wire.reset_after(size)
        scene.feed()
        if scene.wait_for(lambda: scene.wire.resets > before, 1.0) or size == 1:
            break
        size = max(1, size // 8)  # the server does not say that much
    yield 0.0
    scene.wire.heal()
    count = scene.wire.resets - before
    return f"{count} connections reset" if count else ""


@fault(*SERVERS, connection=True)
def hold(scene: Scene) -> Generator[float, None, str]:
    """The network is away for a while, and what was said arrives late."""
    scene.wire.hold()
    return (yield from _leave(scene, scene.rng.uniform(0.3, 2.0), "held"))


@fault(*SERVERS, connection=True)
def half_open(scene: Scene) -> Generator[float, None, str]:
    """The server's machine is gone without a word, and comes back knowing nothing of its connections."""
    return (yield from _swallow(scene, scene.rng.uniform(1.0, 3.0)))


@fault(*SERVERS, connection=True)
def answers_lost(scene: Scene) -> Generator[float, None, str]:
    """What clients say arrives and is done; the answers get lost."""
    return (yield from _swallow(scene, scene.rng.uniform(0.2, 1.5), DOWN))


@fault(*SERVERS, connection=True)
def requests_lost(scene: Scene) -> Generator[float, None, str]:
    """What clients say gets lost."""
    return (yield from _swallow(scene, scene.rng.uniform(0.2, 1.5), UP))


def _swallow(scene: Scene, seconds: float, *way: Any) -> Generator[float, None, str]:
    before = scene.wire.swallowed_bytes
    scene.wire.swallow(*way)
    yield seconds
    scene.wait_for(lambda: scene.wire.swallowed_bytes > before, 8.0)
    scene.wire.heal()
    count = scene.wire.swallowed_bytes - before
    return f"{count} bytes swallowed" if count else ""


def _leave(scene: Scene, seconds: float, what: str) -> Generator[float, None, str]:
    """Leave the wire as it is for so long, and mend it."""
    yield seconds
    there = scene.wire.connections
    scene.wire.heal()
    return f"{there} connections {what}" if there else ""


@fault(*SERVERS, connection=True)
def port_closed(scene: Scene) -> Generator[float, None, str]:
    """Connections are reset, and nobody listens for a while."""
    scene.wire.refuse()
    count, before = scene.wire.cut(), scene.wire.accepted
    yield scene.rng.uniform(0.5, 3.0)
    quiet = scene.wire.accepted == before
    scene.wire.heal()
    return f"{count} connections reset, then none accepted" if count and quiet else ""


@fault(*SERVERS)
def slow(scene: Scene) -> Generator[float, None, str]:
    """Everything takes 0.3 s longer each way."""
    scene.wire.delay(0.3)
    return (yield from _leave(scene, 2.0, "slowed"))


@fault(*SERVERS)
def narrow(scene: Scene) -> Generator[float, None, str]:
    """10 KB a second."""
    scene.wire.throttle(10_000)
    return (yield from _leave(scene, 2.0, "throttled"))


# -- the server ---------------------------------------------------------------------------------------------


@fault(*SERVERS)
def server_killed(scene: Scene) -> Generator[float, None, str]:
    """The server is killed and started again."""
    return (yield from _replace_server(scene, scene.place.server.kill))


@fault(*SERVERS)
def server_restarted(scene: Scene) -> Generator[float, None, str]:
    """The server is stopped in good order and started again."""
    return (yield from _replace_server(scene, scene.place.server.stop))


def _replace_server(scene: Scene, end: Callable[[], Any]) -> Generator[float, None, str]:
    server, pid = scene.place.server, scene.place.server.pid
    end()
    yield scene.rng.uniform(0.0, 2.0)
    server.start()
    return f"process {server.pid} instead of {pid}"


@fault(*SERVERS)
def server_frozen(scene: Scene) -> Generator[float, None, str]:
    """The server hangs for a while."""
    scene.place.server.freeze()
    yield scene.rng.uniform(0.5, 3.0)
    state = _state(scene.place.server.pid)
    scene.place.server.thaw()
    return f"process state {state}" if state == "T" else ""


@fault("redis", connection=True)
def clients_killed(scene: Scene) -> Generator[float, None, str]:
    """CLIENT KILL for everybody."""
    count = scene.place.redis("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    yield 0.0
    return f"{count} killed" if count else ""


@fault("redis")
def read_only(scene: Scene) -> Generator[float, None, str]:
    """The server becomes a replica of one that is away, and takes no writes."""
    return (yield from _refuse(scene, "READONLY", "REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"))


@fault("redis")
def out_of_memory(scene: Scene) -> Generator[float, None, str]:
    """There is no memory left for writes."""
    return (yield from _refuse(scene, "OOM", "CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"))


def _refuse(scene: Scene, error: str, strike: str, mend: str) -> Generator[float, None, str]:
    """Have Redis answer with this error for a while."""
    before = scene.errors(error)
    scene.place.redis(*strike.split())
    yield scene.rng.uniform(1.0, 3.0)
    count = scene.errors(error) - before
    scene.place.redis(*mend.split())
    return f"{count} × {error}" if count else ""


@fault("redis")
def busy(scene: Scene) -> Generator[float, None, str]:
    """Somebody's script runs on and on."""
    before = scene.errors("BUSY")
    scene.place.redis("CONFIG", "SET", "busy-reply-threshold", "100")
    with ThreadPoolExecutor(1) as threads:
        script = threads.submit(scene.place.redis, "EVAL", "while true do redis.call('PING') end", "0")
        yield 1.5
        ask(scene.place.server.port, b"SCRIPT KILL\r\n")  # a client of ours would first ask for its number
        assert script.exception() is not None
    count = scene.errors("BUSY") - before
    return f"{count} × BUSY" if count else ""


@fault("redis")
def scripts_flushed(scene: Scene) -> Generator[float, None, str]:
    """The server forgets all scripts."""
    before = scene.errors("NOSCRIPT")
    scene.place.redis("SCRIPT", "FLUSH")
    scene.wait_for(lambda: scene.errors("NOSCRIPT") > before, 5.0)
    yield 0.0
    count = scene.errors("NOSCRIPT") - before
    return f"{count} × NOSCRIPT" if count else ""


@fault("redis")
def loading(scene: Scene) -> Generator[float, None, str]:
    """The server is killed and takes a while to load its data."""
    server = scene.place.server
    keys = scene.place.redis("DBSIZE")
    server.kill()
    commands = sum(path.read_bytes().count(b"\r\n*") for path in server.folder.glob("appendonlydir/*.incr.aof"))
    loads = max(1, keys + commands)
    # Microseconds to sleep at each of them; a negative number sleeps once in so many.
    delay = 1_500_000 // loads if loads < 10_000 else -(loads // 10_000)
    calm, server.options = server.options, ("--key-load-delay", str(delay))
    try:
        server.start()
    except ServiceFailed:
        server.kill()
        server.options = calm
        server.start()
    finally:
        server.options = calm
    yield 0.0
    scene.wait_for(lambda: _loaded(scene.place), 60.0)
    count = scene.errors("LOADING")
    scene.place.redis("CONFIG", "SET", "key-load-delay", "0")
    scene.place.redis("BGREWRITEAOF")
    return f"{count} × LOADING" if count else ""


@fault("redis")
def writes_paused(scene: Scene) -> Generator[float, None, str]:
    """CLIENT PAUSE, as in a failover."""
    scene.place.redis("CLIENT", "PAUSE", "2000", "WRITE")
    yield 1.5
    blocked = _info(scene.place, "clients").get("blocked_clients", "0")
    scene.place.redis("CLIENT", "UNPAUSE")
    return f"{blocked} clients blocked" if blocked != "0" else ""


@fault("amqp", connection=True)
def connections_closed(scene: Scene) -> Generator[float, None, str]:
    """An operator closes all connections."""
    there, accepted = scene.wire.connections, scene.wire.accepted
    said = scene.place.rabbitmqctl("close_all_connections", "-p", scene.place.vhost, "chaos")
    yield 0.0
    seen = scene.wait_for(lambda: scene.wire.accepted > accepted)
    return f"{there} connections there; {said.strip().splitlines()[-1]}; clients connected anew" if seen else ""


@fault("amqp")
def app_stopped(scene: Scene) -> Generator[float, None, str]:
    """RabbitMQ stops within its node, and starts again."""
    scene.place.rabbitmqctl("stop_app")
    yield scene.rng.uniform(0.0, 1.0)
    left = scene.wire.connections
    scene.place.rabbitmqctl("start_app")
    return f"stopped; {left} connections left"


@fault("amqp")
def memory_alarm(scene: Scene) -> Generator[float, None, str]:
    """Publishers are blocked."""
    scene.place.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "1")
    yield 2.0
    alarmed = "memory" in scene.place.rabbitmqctl("-q", "status").lower().partition("alarms")[2][:200]
    scene.place.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "2GB")
    return "alarm raised" if alarmed else ""


# -- the file -----------------------------------------------------------------------------------------------


def _hold_lock(scene: Scene, seconds: float) -> Generator[float, None, str]:
    conn = _open(scene.place)
    try:
        conn.execute("BEGIN EXCLUSIVE")
        yield seconds
        conn.execute("COMMIT")
    finally:
        conn.close()
    return f"locked for {seconds:.1f} s"


@fault("sqlite")
def locked(scene: Scene) -> Generator[float, None, str]:
    """Another process locks the file for a moment."""
    return (yield from _hold_lock(scene, scene.rng.uniform(0.2, 2.0)))


@fault("sqlite")
def locked_for_long(scene: Scene) -> Generator[float, None, str]:
    """Another process locks the file for seconds."""
    return (yield from _hold_lock(scene, scene.rng.uniform(5.0, 8.0)))


@fault("sqlite")
def read_for_long(scene: Scene) -> Generator[float, None, str]:
    """A reader keeps an old state of the file alive, so that its journal cannot be emptied."""
    conn = _open(scene.place)
    try:
        conn.execute("BEGIN")
        conn.execute("SELECT count(*) FROM celeriac_owners").fetchone()
        yield 3.0
        conn.execute("COMMIT")
    finally:
        conn.close()
    return "held a snapshot for 3 s"


@fault("sqlite")
def checkpointed(scene: Scene) -> Generator[float, None, str]:
    """The journal is written back and cut to nothing."""
    conn = _open(scene.place)
    try:
        busy, _, _ = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        conn.close()
    yield 0.0
    return "checkpoint made" if not busy else "checkpoint tried, readers kept it"


@fault("sqlite")
def vacuumed(scene: Scene) -> Generator[float, None, str]:
    """The file is written anew, under a lock."""
    conn = _open(scene.place)
    try:
        conn.execute("VACUUM")
    finally:
        conn.close()
    yield 0.0
    return "vacuumed"


@fault("sqlite")
def disk_full(scene: Scene) -> Generator[float, None, str]:
    """There is no room on the disk for a while."""
    if not scene.place.can_mount:
        yield 0.0
        return ""
    assert scene.place.file is not None
    filler = scene.place.file.with_name("filler")
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        except OSError:
            pass  # it is full now
    free = os.statvfs(filler.parent).f_bavail
    yield scene.rng.uniform(1.0, 3.0)
    filler.unlink()
    return f"{free} blocks free" if free < 10 else ""


@fault("sqlite")
def wakes_removed(scene: Scene) -> Generator[float, None, str]:
    """Somebody tidies up: the folder beside the file, through which workers wake each other, is emptied."""
    count = 0
    for path in Path(folder_of(str(scene.place.file))).iterdir():
        path.unlink(missing_ok=True)
        count += 1
    yield 0.0
    return f"{count} files removed" if count else ""


def _open(place: Place) -> sqlite3.Connection:
    return sqlite3.connect(str(place.file), timeout=30, isolation_level=None)


# -- the workers --------------------------------------------------------------------------------------------


@fault(*ALL)
def child_killed(scene: Scene) -> Generator[float, None, str]:
    """A process of a pool is killed."""
    children = scene.fleet.pick(scene.rng).children()
    yield 0.0
    if not children:
        return ""
    pid = scene.rng.choice(children)
    return _kill(scene, [pid])


@fault(*ALL)
def worker_killed(scene: Scene) -> Generator[float, None, str]:
    """A worker is killed; its children are on their own."""
    worker = scene.fleet.pick(scene.rng)
    worker.wanted = False
    children = worker.children()
    proof = _kill(scene, [worker.pid])
    scene.killed.update(children)
    worker.process.wait()
    yield 0.0
    gone = scene.wait_for(lambda: not any(_state(pid) for pid in children), 5.0)
    scene.fleet.fill()
    return proof + ("; its children ended" if gone else "; ITS CHILDREN LIVE ON")


@fault(*ALL)
def worker_powered_off(scene: Scene) -> Generator[float, None, str]:
    """A worker and its children are killed at once."""
    worker = scene.fleet.pick(scene.rng)
    worker.wanted = False
    pids = [worker.pid, *worker.children()]
    worker.send_group(signal.SIGKILL)
    scene.killed.update(pids)
    worker.process.wait()
    yield 0.0
    scene.fleet.fill()
    return f"{len(pids)} processes killed"


@fault(*ALL)
def all_powered_off(scene: Scene) -> Generator[float, None, str]:
    """All workers and their children are killed at once."""
    count = 0
    for worker in scene.fleet.running:
        worker.wanted = False
        pids = [worker.pid, *worker.children()]
        worker.send_group(signal.SIGKILL)
        scene.killed.update(pids)
        count += len(pids)
        worker.process.wait()
    yield 0.0
    scene.fleet.fill()
    return f"{count} processes killed"


@fault(*ALL)
def worker_frozen(scene: Scene) -> Generator[float, None, str]:
    """A worker hangs for a while, and its children with it."""
    worker = scene.fleet.pick(scene.rng)
    worker.send_group(signal.SIGSTOP)
    yield scene.rng.uniform(0.5, 3.0)
    state = _state(worker.pid)
    worker.send_group(signal.SIGCONT)
    return f"process state {state}" if state == "T" else ""


@fault(*ALL)
def worker_frozen_beyond_its_lease(scene: Scene) -> Generator[float, None, str]:
    """A worker hangs for longer than its lease; others take its messages; it wakes up."""
    worker = scene.fleet.pick(scene.rng)
    worker.send_group(signal.SIGSTOP)
    yield 22.0
    state = _state(worker.pid)
    worker.send_group(signal.SIGCONT)
    return f"process state {state}" if state == "T" else ""


@fault(*ALL)
def worker_stopped(scene: Scene) -> Generator[float, None, str]:
    """A worker is told to stop, and another takes its place."""
    worker = scene.fleet.pick(scene.rng)
    worker.wanted = False
    worker.send(signal.SIGTERM)
    code = worker.process.wait(30)
    yield 0.0
    scene.fleet.fill()
    return f"ended with {code}" if code == 0 else ""


@fault(*ALL)
def worker_stopped_coldly(scene: Scene) -> Generator[float, None, str]:
    """A worker is told to give up its tasks."""
    worker = scene.fleet.pick(scene.rng)
    worker.wanted = False
    scene.killed.update(worker.children())
    worker.send(signal.SIGQUIT)
    code = worker.process.wait(30)
    yield 0.0
    scene.fleet.fill()
    return f"ended with {code}"


@fault(*ALL)
def descriptors_exhausted(scene: Scene) -> Generator[float, None, str]:
    """A worker may open no further file or connection for a while."""
    worker = scene.fleet.pick(scene.rng)
    used = max(int(path.name) for path in Path(f"/proc/{worker.pid}/fd").iterdir()) + 1
    _, most = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    before = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (used, most))
    if scene.place.wire is not None:
        scene.wire.cut()  # so that it wants to
    yield 2.0
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, before)
    return f"{used} descriptors at most"


@fault(*ALL)
def garbage(scene: Scene) -> Generator[float, None, str]:
    """Bytes that are no message stand in the queue."""
    put = {"redis": _garbage_redis, "amqp": _garbage_amqp, "sqlite": _garbage_sqlite}[scene.place.kind]
    put(scene.place)
    yield 0.0
    return f"{len(GARBAGE)} put into the queue"


def _garbage_redis(place: Place) -> None:
    place.redis("LPUSH", "celery", *GARBAGE)


def _garbage_amqp(place: Place) -> None:
    for data in GARBAGE:
        body = {
            # Transient messages that a restart of RabbitMQ 3.10 drops make it forget what it has handed out before.
            "properties": {"delivery_mode": 2},
            "routing_key": "celery",
            "payload": data.decode("latin-1"),
            "payload_encoding": "string",
        }
        place.server.api("POST", f"exchanges/{place.vhost}/amq.default/publish", body)


def _garbage_sqlite(place: Place) -> None:
    conn = _open(place)
    try:
        conn.execute("BEGIN IMMEDIATE")
        for data in GARBAGE:
            id = conn.execute("INSERT INTO celeriac_messages (raw) VALUES (?)", [data]).lastrowid
            conn.execute("INSERT INTO celeriac_ready VALUES ('celery', 0, ?, 1, 0)", [id])
        conn.execute("COMMIT")
    finally:
        conn.close()


# -- small things -------------------------------------------------------------------------------------------


def _kill(scene: Scene, pids: list[int]) -> str:
    scene.killed.update(pids)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return f"killed {', '.join(map(str, pids))}"


def _state(pid: int) -> str:
    """The state of a process, as the kernel names it; empty if there is none (or it only waits to be buried)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
    return "" if state == "Z" else state


def _info(place: Place, section: str) -> dict[str, str]:
    lines = place.redis("INFO", section).decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _loaded(place: Place) -> bool:
    try:
        return _info(place, "persistence").get("loading") == "0"
    except Exception:
        return False  # not even listening yet
