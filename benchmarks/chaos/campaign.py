"""One campaign: send, strike, wait for the recovery, strike again; at the end, count."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.chaos.faults import REGISTER, Scene
from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.places import Place
from celeriac import Celery
from celeriac.exceptions import CeleriacError, OperationalError, PublishUncertain

#: So many tasks wait at any time, so that a worker that could run something has something to run.
BACKLOG = 300
RECOVERY_S = 60.0
END_S = 180.0
FOLLOWED = 0.05
#: How often a fault is brought about until it was seen to have its effect.
TRIES = 3


@dataclass(slots=True)
class Struck:
    """One fault that was brought about."""

    name: str
    proof: str
    #: Seconds from the medium's return until every worker had started a task; None: not within a minute.
    recovery_s: float | None
    #: Seconds from the death of a process until what it ran was begun again elsewhere, for each such task.
    takeover_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    """What a campaign found."""

    broker: str
    pool: str
    accepted: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    unstored: list[str] = field(default_factory=list)
    runs: int = 0
    duplicates: int = 0
    flagged: int = 0
    #: Of those that were not flagged: sent twice, for the first sending was uncertain.
    sent_twice: int = 0
    #: What ran again unsaid: who ran it when, and what its sender was told.
    unflagged_runs: list[str] = field(default_factory=list)
    uncertain: int = 0
    #: Runs that a fault interrupted, or could have: begun and not acknowledged when it struck.
    exposed: int = 0
    struck: list[Struck] = field(default_factory=list)
    deserters: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def unflagged(self) -> int:
        return self.duplicates - self.flagged - self.sent_twice

    @property
    def is_clean(self) -> bool:
        """Nothing was lost, and whatever ran twice was told so."""
        return not (self.lost or self.unstored or self.unflagged or self.deserters or self.surprises)


class Sender(threading.Thread):
    """Sends tasks, each until the broker has taken it, as fast as they are run."""

    def __init__(self, app: Any, rng: random.Random, is_wanted: Callable[[int], bool]) -> None:
        super().__init__(name="sender", daemon=True)
        self._app, self._rng, self._is_wanted = app, rng, is_wanted
        self._ended = threading.Event()
        self.accepted: list[str] = []
        self.uncertain: set[str] = set()
        self.refused = 0
        #: Of tasks that were sent again: why.
        self.answers: dict[str, str] = {}

    def run(self) -> None:
        while not self._ended.is_set():
            if self._is_wanted(len(self.accepted)):
                self._send()
            else:
                time.sleep(0.005)

    def _send(self) -> None:
        id = str(uuid.UUID(int=self._rng.getrandbits(128)))
        options: dict[str, Any] = {}
        ids = [id]
        if self._rng.random() < FOLLOWED:
            ids.append(id + "-next")
            options["link"] = self._app.signature("chaos.follow", options={"task_id": ids[1]})
        seconds = self._rng.uniform(0.1, 0.5) if self._rng.random() < 0.02 else self._rng.uniform(0.0, 0.01)
        doubt: PublishUncertain | None = None
        while not self._ended.is_set():
            try:
                if doubt is None:
                    self._app.send_task("chaos.work", (seconds,), task_id=id, **options)
                else:
                    self._app.send_again(doubt)
            except OperationalError as exc:
                self.refused += 1
                self.answers[id] = f"{type(exc).__name__}: {exc}"
                if isinstance(exc, PublishUncertain):
                    doubt = exc
                    self.uncertain.update(ids)
                time.sleep(0.1)
                continue
            self.accepted += ids
            return
        self._discard(ids)

    def _discard(self, ids: Sequence[str]) -> None:
        self.uncertain.update(ids)  # it was on its way at the end: it may have arrived

    def stop(self) -> None:
        self._ended.set()
        self.join(60)


def run(
    broker: str,
    *,
    tasks: int,
    faults: int,
    seed: int,
    pool: str = "prefork",
    workers: int = 2,
    concurrency: int = 2,
    kinds: Sequence[str] = (),
    server: Any = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """A whole campaign on a place of its own.

    Args:
        server: See `Place`.
        kinds: Names of faults; all the broker has, by default. Each comes as often as the others, in random order.
    """
    rng = random.Random(seed)
    register = REGISTER[broker]
    names = list(kinds or register)
    order = [names[n % len(names)] for n in range(faults)]
    rng.shuffle(order)
    outcome = Outcome(broker, pool)
    begun = time.monotonic()
    with Place(broker, server=server) as place:
        ledger = Ledger(place.folder / "ledger")
        environment = {
            "CHAOS_BROKER": place.broker, "CHAOS_BACKEND": place.backend, "CHAOS_LEDGER": str(ledger.path),
        }  # fmt: skip
        fleet = Fleet(place.folder, workers, ("-P", pool, "-c", str(concurrency)), environment)
        client = Celery("chaos-client", broker=place.broker, backend=place.backend)
        scene = Scene(place, fleet, rng)
        done = 0

        def is_wanted(sent: int) -> bool:
            due = tasks if not order else int(tasks * min(1.0, (done + 1) / len(order)))
            return (sent < tasks and sent < due and sent - len(ledger.ends) < BACKLOG) or (
                done < len(order) and (sent - len(ledger.ends) < BACKLOG // 10)
            )

        sender = Sender(client, random.Random(seed + 1), is_wanted)
        try:
            fleet.fill()
            sender.start()
            _wait(ledger, lambda: len(ledger.ends) > 20, 30.0)
            for name in order:
                for _ in range(TRIES):
                    last = _strike(scene, name, register[name], ledger, outcome)
                    if last.proof or last.recovery_s is None:
                        break
                outcome.struck.append(last)
                done += 1
                took = "NOT RECOVERED" if last.recovery_s is None else f"recovered in {last.recovery_s:.2f} s"
                proof = last.proof or "NOT CONFIRMED"
                say(f"{time.strftime('%H:%M:%S')} {done:4d} {name}: {proof}; {took}; {len(ledger.ends)} done")
                for worker in fleet.deserters():
                    outcome.deserters.append(f"{worker.log_path.name}: {worker.log[-1500:]}")
                    worker.wanted = False
                fleet.fill()
                _wait(ledger, lambda: False, rng.uniform(0.1, 0.5))
            _wait(ledger, lambda: len(sender.accepted) >= tasks, END_S * 10)
            sender.stop()
            wanted = set(sender.accepted)
            _wait(ledger, lambda: wanted <= ledger.ends.keys(), END_S)
            outcome.lost = sorted(wanted - ledger.ends.keys())
            outcome.unstored = _unstored(client, sorted(wanted), say)
            fleet.stop()
            ledger.read()
            if outcome.lost or outcome.unstored:
                say(f"kept for a look: {place.folder}")
        finally:
            sender.stop()
            fleet.stop()
            client.close()
        outcome.accepted, outcome.refused = len(sender.accepted), sender.refused
        outcome.uncertain = len(sender.uncertain)
        outcome.surprises = fleet.surprises()
        _count(outcome, ledger, sender.uncertain, sender.answers)
        if not outcome.is_clean or any(one.recovery_s is None or one.recovery_s > 5 for one in outcome.struck):
            _keep_logs(fleet, outcome, say)
    outcome.seconds = time.monotonic() - begun
    return outcome


def _strike(scene: Scene, name: str, fault: Any, ledger: Ledger, outcome: Outcome) -> Struck:
    """Bring about one fault and wait until every worker has started a task since."""
    scene.killed = set()
    ledger.read()
    struck_at = time.time()
    steps = fault(scene)
    proof = ""
    try:
        while True:
            pause_s = next(steps)
            ledger.read()
            outcome.exposed += sum(len(runs) > len(ledger.ends.get(id, ())) for id, runs in ledger.starts.items())
            time.sleep(pause_s)
    except StopIteration as stop:
        proof = stop.value
    mended_at = time.time()
    interrupted = ledger.unfinished(scene.killed)

    def is_well() -> bool:
        pids = [worker.pid for worker in scene.fleet.running]
        return bool(pids) and all(_started_since(ledger, pid, scene.fleet, mended_at) for pid in pids)

    recovered = _wait(ledger, is_well, RECOVERY_S)
    recovery_s = None
    if recovered:
        recovery_s = max(_first_since(ledger, worker.pid, mended_at) for worker in scene.fleet.running) - mended_at
    struck = Struck(name, proof, recovery_s)
    if interrupted:
        _wait(ledger, lambda: all(len(ledger.starts[run.id]) > 1 for run in interrupted), 30.0)
        for run in interrupted:
            later = [again.at for again in ledger.starts[run.id] if again.at > run.at]
            if later:
                struck.takeover_s.append(max(0.0, min(later) - struck_at))
    return struck


def _started_since(ledger: Ledger, pid: int, fleet: Fleet, moment: float) -> bool:
    return ledger.last_by.get(pid, 0.0) >= moment


def _first_since(ledger: Ledger, pid: int, moment: float) -> float:
    starts = [
        start.at
        for runs in ledger.starts.values()
        for start in runs
        if pid in (start.pid, start.parent) and start.at >= moment
    ]
    return min(starts, default=moment)


def _wait(ledger: Ledger, true: Callable[[], bool], within_s: float) -> bool:
    """Read on until it is true; False when the time is over."""
    deadline = time.monotonic() + within_s
    while True:
        ledger.read()
        if true():
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)


def _unstored(client: Any, ids: list[str], say: Callable[[str], None]) -> list[str]:
    """Those whose result does not say SUCCESS, after some patience: it is stored after the task wrote its line."""
    left, deadline = ids, time.monotonic() + 60.0
    while True:
        found: list[str] = []
        for at in range(0, len(left), 500):
            piece = left[at : at + 500]
            try:
                states = client.backend.plugin.fetch(piece)
            except CeleriacError as exc:
                say(f"results: {exc}")
                found += piece
                continue
            decode = client.backend.plugin.decode
            found += [id for id in piece if id not in states or decode(states[id])["status"] != "SUCCESS"]
        left = found
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


def _count(outcome: Outcome, ledger: Ledger, uncertain: set[str], answers: Mapping[str, str]) -> None:
    for id, runs in ledger.starts.items():
        outcome.runs += len(runs)
        if len(runs) == 1:
            continue
        outcome.duplicates += len(runs) - 1
        flagged = sum(run.flagged for run in runs)
        outcome.flagged += min(flagged, len(runs) - 1)
        if flagged < len(runs) - 1 and id.removesuffix("-next") in uncertain:
            outcome.sent_twice += len(runs) - 1 - flagged
        elif flagged < len(runs) - 1:
            known = " ".join(f"{run.parent}/{run.pid}@{run.at:.3f}{'!' * run.flagged}" for run in runs)
            outcome.unflagged_runs.append(f"{id}: {known} {answers.get(id.removesuffix('-next'), '')}")


def _keep_logs(fleet: Fleet, outcome: Outcome, say: Callable[[str], None]) -> None:
    folder = tempfile.mkdtemp(prefix=f"celeriac-chaos-{outcome.broker}-logs-", dir="/tmp")
    for worker in fleet.all:
        shutil.copy(worker.log_path, folder)
    say(f"the workers' logs: {folder}")


def summary(outcome: Outcome) -> dict[str, Any]:
    """As data for JSON."""
    by_name: dict[str, list[Struck]] = defaultdict(list)
    for struck in outcome.struck:
        by_name[struck.name].append(struck)
    kinds = {}
    for name, all_of_it in sorted(by_name.items()):
        times = sorted(one.recovery_s for one in all_of_it if one.recovery_s is not None)
        over = sorted(second for one in all_of_it for second in one.takeover_s)
        kinds[name] = {
            "times": len(all_of_it),
            "confirmed": sum(bool(one.proof) for one in all_of_it),
            "recovered": len(times),
            "recovery_median_s": quantile(times, 0.5),
            "recovery_p95_s": quantile(times, 0.95),
            "recovery_max_s": quantile(times, 1.0),
            "takeovers": len(over),
            "takeover_p95_s": quantile(over, 0.95),
            "takeover_max_s": quantile(over, 1.0),
            "proofs": sorted({one.proof for one in all_of_it})[:3],
        }
    return {
        "broker": outcome.broker, "pool": outcome.pool, "accepted": outcome.accepted, "runs": outcome.runs,
        "lost": len(outcome.lost), "lost_ids": outcome.lost[:20],
        "unstored": len(outcome.unstored), "unstored_ids": outcome.unstored[:20],
        "duplicates": outcome.duplicates, "flagged": outcome.flagged, "sent_twice": outcome.sent_twice,
        "unflagged": outcome.unflagged,
        "unflagged_runs": outcome.unflagged_runs[:20], "exposed": outcome.exposed,
        "sends_that_failed": outcome.refused, "sends_uncertain": outcome.uncertain,
        "deserters": outcome.deserters, "surprises": outcome.surprises[:10],
        "faults": len(outcome.struck), "confirmed": sum(bool(one.proof) for one in outcome.struck),
        "seconds": round(outcome.seconds, 1), "clean": outcome.is_clean, "kinds": kinds,
    }  # fmt: skip


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which this share of them lies; the nearest one there is."""
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)
