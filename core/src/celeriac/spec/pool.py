"""The pool contract: runs jobs in slots (processes, threads, the caller itself).

A pool runs a function `Job -> JobReport`; it never sees a task, a broker or a result store. Clause
numbers (P1 …) are those of `docs/plugins/delivery-contract.md`.

Abilities: `soft_limit` and `hard_limit` (it enforces them), `terminate` (can end a running job), `resize`,
`processes` (user code runs in processes of its own, so it cannot starve or kill the worker), `coroutines` (jobs with
`Job.coroutine` share a loop, and for these at least time limits and `cancel` hold), `stuck` (it cannot end a job that
runs beyond its hard limit, and says which do: `SaysStuck`), `spawn` (its processes can be fresh interpreters that share
nothing with the worker: `PoolOptions.recipe`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Protocol

from msgspec import Struct

from celeriac.spec.data import Job, JobReport
from celeriac.spec.transport import Poller


class SlotProgram(Protocol):
    """What runs in the slots; core makes it. Forked children inherit it, others make it by a `Recipe`.

    The pool calls `begin` and `end`, in `Pool.start` and `Pool.stop` where the slots are in its own process.
    """

    def begin(self) -> None:
        """Once in each process that has slots, before its first job (in a child: after the fork)."""

    def run(self, job: Job, emit: Callable[[JobReport], None]) -> JobReport:
        """Run one job and return its final report. Reports passed to `emit` go ahead of it, at once (`accepted`
        of a job that is expected to be brief may wait some milliseconds for company).

        Never raises an `Exception`; `SystemExit` and the like are turned into reports too. A pool may raise in it,
        where the job runs, `SoftTimeLimitExceeded`, which is the job's to catch, and `EndedByPool`, which comes out
        again: the pool then reports the job (`cancelled` or `timed_out`).
        """

    def end(self) -> None:
        """Once before such a process ends in an orderly way."""


class CoroutineProgram(SlotProgram, Protocol):
    """What a pool with the ability `coroutines` is given; core's program is one."""

    async def arun(self, job: Job, emit: Callable[[JobReport], None]) -> JobReport:
        """As `run`, for a job with `coroutine`, in the pool's event loop. Keeps the job's soft limit.

        Cancelled from outside it lets `CancelledError` out once the task has ended, and the pool reports the job
        (`cancelled` or `timed_out`).
        """


class Recipe(Struct, frozen=True):
    """How a process that shares nothing with the worker makes the worker's `SlotProgram`.

    Attributes:
        maker: `"module:function"`, which can be imported with the worker's `sys.path`.
        words: What that function is called with. There may be passwords in them: no place for a command line.
    """

    maker: str
    words: bytes

    def make(self) -> SlotProgram:
        """Make the program, in the process that is to run it, with the worker's `sys.path` and `sys.argv`.

        Raises:
            Exception: Whatever the import of the user's modules raises; the pool passes its text on (`PoolBroken`).
        """
        module, _, name = self.maker.partition(":")
        program: SlotProgram = getattr(import_module(module), name)(self.words)
        return program


class PoolOptions(Struct, frozen=True):
    """How the worker wants its pool.

    Attributes:
        slots: How many jobs run at once.
        max_tasks_per_child: Replace a child process after so many jobs; None: never.
        max_memory_per_child_kib: Replace one whose resident set is above this after a job, measured as
            what it grew by since it was fresh plus its fresh size (P5); None: never.
        start_timeout_s: How long a fresh child may take to say that it is ready.
        node: The worker's node name, for process titles and logs.
        recipe: If it is there, a pool with the ability `spawn` makes its processes as fresh interpreters, which inherit
            no lock, thread or descriptor but those of the pool, and make their program by what this returns. `start`
            calls it, once, and lets out what it raises (`ImproperlyConfigured`).
    """

    slots: int
    poller: Poller
    max_tasks_per_child: int | None = None
    max_memory_per_child_kib: int | None = None
    start_timeout_s: float = 10.0
    node: str = ""
    recipe: Callable[[], Recipe] | None = None


class Pool(Protocol):
    """Used by one thread, the worker's. No verb blocks, `stop` excepted."""

    abilities: frozenset[str]

    @property
    def slots(self) -> int:
        """How many jobs it can run at once now."""

    def start(self) -> None:
        """Bring the slots up; returns when the first can take a job.

        Raises:
            PoolBroken: No slot came up; the text says why.
            ImproperlyConfigured: By `PoolOptions.recipe`.
        """

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take these jobs. Each goes to a slot as soon as one is free for it; one final report comes for each."""

    def collect(self) -> list[JobReport]:
        """Reports that have arrived. Also looks after limits and dead slots, so it is called at least at `deadline`."""

    def deadline(self) -> float | None:
        """The `time.monotonic` at which `collect` must be called even without news; None: no need."""

    def withdraw(self) -> None:
        """Take back every job that no slot has started; each gets a `returned` report from the next `collect`."""

    def cancel(self, token: int, *, signal: int | None = None) -> bool:
        """Cancel one job: a queued one never starts, a running one gets `signal` (default TERM; 0: none, it goes on)
        if the pool can `terminate`. A `cancelled` report follows, with the `pid` of what was ended, 0 if it never
        started; the job's own, if it outlives the signal. With SIGUSR1 a running one is at its soft limit, if the pool
        enforces these and has processes. False if the token is not here or nothing can be done (P6)."""

    def resize(self, slots: int) -> None:
        """Grow or shrink; busy slots finish their job first. Only with the ability `resize`."""

    def stop(self, *, grace_s: float) -> list[JobReport]:
        """End all slots: those still busy after `grace_s` are killed. Returns the last reports (P1). Idempotent."""

    def pids(self) -> list[int]:
        """Process ids of the slots' processes ([own pid] for a pool in the worker's process)."""


class SaysStuck(Protocol):
    """What a pool with the ability `stuck` has besides."""

    def stuck(self) -> dict[int, float]:
        """Which jobs run beyond their hard limit and cannot be ended (P3): token → that limit, in seconds.

        Called about once a second, from any thread: also while `collect` runs.
        """
