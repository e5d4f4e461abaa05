"""Kill the leading beat again and again, as a process, and count what each due slot was sent as.

    python -m benchmarks.beat_kills [--kills 1000] [--broker URL] [--beats 3]

Each beat dies by SIGKILL from within, at a random step of sending (before or after any of its questions to store and
broker), as soon as it leads; another takes over, a new one is started. The lease is a tenth of the usual one, so that a
thousand kills fit. Prints one table: slots that were due, messages, slots sent twice, slots never sent.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

from celeriac import Celery
from celeriac.beat import PersistentScheduler
from celeriac.beat.due import occurrence_id
from celeriac.spec import QueueSpec
from celeriac.testing.kit import Bench

QUEUE, EVERY_S = "beat-kills", 0.5


class Mortal(PersistentScheduler):
    """Dies at a random step once it leads."""

    lease_s, margin_s, follow_s, look_s = 1.5, 0.3, 0.05, 0.05

    def setup_schedule(self) -> None:
        super().setup_schedule()
        rng = random.Random(os.getpid())
        self._lives = rng.randrange(1, 24)
        state, transport = self.ledger.state, self.app.transport
        for owner, names in ((state, ("read", "write")), (transport, ("send", "send_once"))):
            for name in names:
                if hasattr(owner, name):
                    setattr(owner, name, self._mortal(getattr(owner, name)))

    def _mortal(self, verb: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._step()
            answer = verb(*args, **kwargs)
            self._step()
            return answer

        return call

    def _step(self) -> None:
        if self._lease is None:
            return
        self._lives -= 1
        if self._lives <= 0 and os.environ.get("BEAT_IMMORTAL") != "1":
            os.kill(os.getpid(), signal.SIGKILL)


def make_app(url: str) -> Celery:
    """The app of the campaign: one entry, all of whose missed slots are made up for."""
    entry = {"task": "kills.tick", "schedule": EVERY_S, "options": {"queue": QUEUE}, "catch_up": "all:100000"}
    return Celery("kills", broker=url, set_as_current=False, beat_schedule={"tick": entry})


def run_beat(url: str) -> None:
    """The body of one process."""
    scheduler = Mortal(make_app(url))
    scheduler.max_interval = 0.05
    while True:
        wait_s = scheduler.tick()
        if wait_s > 0:
            time.sleep(min(wait_s, 0.05))


def start(url: str, **env: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "benchmarks.beat_kills", "--child", "--broker", url]
    return subprocess.Popen(words, env={**os.environ, **env}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def campaign(url: str, kills: int, count: int) -> dict[str, int]:
    """Run it; slots due, messages, doubles, losses."""
    beats, killed = [start(url) for _ in range(count)], 0
    try:
        while killed < kills:
            for place, beat in enumerate(beats):
                if beat.poll() is not None:
                    killed += 1
                    beats[place] = start(url)
            time.sleep(0.02)
    finally:
        for beat in beats:
            beat.kill()
            beat.wait()
    last = start(url, BEAT_IMMORTAL="1")  # sends what is left
    app = make_app(url)
    time.sleep(15)
    last.kill()
    last.wait()
    found: Counter[str] = Counter()
    consumer = app.transport.consumer([QueueSpec(QUEUE)], owner="count@here", poller=Bench(), window=100_000)
    quiet = time.monotonic() + 3
    while time.monotonic() < quiet:
        for delivery in consumer.receive(10_000):
            found[str(app.transport.unpack(delivery.raw).headers["id"])] += 1
            quiet = time.monotonic() + 1
    consumer.close()
    # The ids of all slots from the first on: what they should be is known without having seen them.
    observer = PersistentScheduler(app)
    marks = observer.ledger.read_marks()
    mark = marks["tick"][0]
    wanted, slot = 0, mark.last_run_at
    while occurrence_id("kills", "tick", mark.schedule, slot.isoformat()) in found or wanted < mark.count:
        wanted += 1
        slot -= timedelta(seconds=EVERY_S)
        if wanted > mark.count + len(found) + 10:
            break
    due = [mark.last_run_at - timedelta(seconds=EVERY_S) * number for number in range(wanted)]
    ids = {occurrence_id("kills", "tick", mark.schedule, moment.isoformat()) for moment in due}
    return {
        "kills": killed,
        "due": len(ids),
        "messages": sum(found.values()),
        "twice": sum(1 for number in found.values() if number > 1),
        "never": len(ids - set(found)),
        "unknown": len(set(found) - ids),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--beats", type=int, default=3)
    parser.add_argument("--broker", default="")
    parser.add_argument("--child", action="store_true")
    given = parser.parse_args()
    if given.child:
        run_beat(given.broker)
    with tempfile.TemporaryDirectory() as folder:
        url = given.broker or f"sqlite:///{Path(folder) / 'kills.db'}"
        began = time.monotonic()
        found = campaign(url, given.kills, given.beats)
        where = f"{platform.machine()}, Python {platform.python_version()}"
        print(f"{url.partition(':')[0]}, {given.beats} beats, {time.monotonic() - began:.0f} s, {where}")
        print("  ".join(f"{name} {number}" for name, number in found.items()))


if __name__ == "__main__":
    main()
