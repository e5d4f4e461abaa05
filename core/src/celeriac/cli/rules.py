"""What can be wrong with an app's settings and tasks, one rule each. Called by `checkup`; connects to nothing.

A rule is a function from `Facts` to findings; its name, which `--ignore` takes, is the function's with hyphens. A new
rule is a function more, and a test in `tests/unit/cli/test_rules.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from celeriac.app.rate_limits import cluster_wide, trouble_with
from celeriac.app.settings_source import declared
from celeriac.app.settings_table import NOT_YET
from celeriac.exceptions import CeleriacError, join_words
from celeriac.spec.diagnosis import Finding

#: A task that may run longer than this is a long one, which others should not wait behind.
LONG_S: Final = 60.0
#: `worker_max_memory_per_child` is in KiB; below this somebody may have meant MiB.
LEAST_MEMORY_KIB: Final = 20_000


class Facts(Struct):
    """What the rules look at.

    Attributes:
        tasks: The user's own, by name.
        backend_abilities: Of the result backend; None if there is none, or none that could be made.
    """

    app: Any
    conf: Any
    tasks: Mapping[str, Any]
    backend_abilities: frozenset[str] | None = None

    def hard_limit_s(self, task: Any) -> float | None:
        """After so long a task is killed; None: never."""
        limit = task.time_limit if task.time_limit is not None else self.conf.task_time_limit
        return float(limit) if limit else None

    def soft_limit_s(self, task: Any) -> float | None:
        """After so long it is asked to end; None: never."""
        limit = task.soft_time_limit if task.soft_time_limit is not None else self.conf.task_soft_time_limit
        return float(limit) if limit else None

    @property
    def longest_task_s(self) -> float | None:
        """No task runs longer; None if some have no hard limit."""
        limits = [self.hard_limit_s(task) for task in self.tasks.values()]
        return None if None in limits else max((limit for limit in limits if limit is not None), default=None)


Rule = Callable[[Facts], Iterator[Finding]]
RULES: Final[dict[str, Rule]] = {}


def rule(function: Rule) -> Rule:
    """Register a rule by its name."""
    RULES[function.__name__.replace("_", "-")] = function
    return function


@rule
def unknown_setting(facts: Facts) -> Iterator[Finding]:
    """A name that nobody declares; slips of known names are refused before any rule runs."""
    for name in sorted(name for name in facts.conf if name not in declared() and not name.startswith("x_")):
        if not name.isupper():
            yield Finding(
                "warning",
                "unknown setting",
                f"No setting has the name {name!r}.",
                "Take it out, or call it x_… if your own code reads it.",
            )


@rule
def setting_without_effect(facts: Facts) -> Iterator[Finding]:
    """Celery's, and not heeded by this version."""
    given = facts.conf.without_defaults()
    idle = sorted(name for name in given if name in NOT_YET and given[name] != declared()[name].default)
    if idle:
        yield Finding("note", "setting without effect", f"This version does not heed {join_words(idle)}.")


@rule
def soft_above_hard_limit(facts: Facts) -> Iterator[Finding]:
    """The soft limit then never comes."""
    for name, task in sorted(facts.tasks.items()):
        soft, hard = facts.soft_limit_s(task), facts.hard_limit_s(task)
        if soft and hard and soft >= hard:
            yield Finding(
                "error",
                "time limits",
                f"{name}: its soft time limit ({soft:g} s) is not below the hard one ({hard:g} s), so it is killed "
                f"before it can tidy up.",
                "Lower soft_time_limit (task_soft_time_limit) or raise time_limit (task_time_limit).",
            )


@rule
def visibility_timeout(facts: Facts) -> Iterator[Finding]:
    """Celery's own workers give a message to another worker after that time, whether or not it is still worked on."""
    timeout = facts.conf.broker_transport_options.get("visibility_timeout")
    if not isinstance(timeout, (int, float)):
        return
    longest = max((facts.hard_limit_s(task) or 0.0 for task in facts.tasks.values()), default=0.0)
    if longest > timeout:
        yield Finding(
            "warning",
            "visibility timeout",
            f"visibility_timeout is {timeout:g} s and tasks may run {longest:g} s: Celery's workers on this broker "
            f"would run them twice (celeriac's renew their hold).",
            "Raise broker_transport_options['visibility_timeout'] above the longest time limit.",
        )
    waits = {name: _longest_wait_s(task) for name, task in facts.tasks.items()}
    name = max(waits, key=lambda name: waits[name], default="")
    if name and waits[name] > timeout:
        yield Finding(
            "warning",
            "visibility timeout",
            f"visibility_timeout is {timeout:g} s and {name} may wait {waits[name]:g} s for its next try, which "
            f"Celery's workers hold in memory: they would run it twice.",
            "Raise it above the longest countdown.",
        )


def _longest_wait_s(task: Any) -> float:
    backoff = getattr(task, "retry_backoff", False)
    wait = getattr(task, "retry_backoff_max", 0) if backoff else getattr(task, "default_retry_delay", 0)
    return float(wait or 0) if getattr(task, "max_retries", 0) != 0 else 0.0


@rule
def prefetch_of_long_tasks(facts: Facts) -> Iterator[Finding]:
    """What a worker holds waits behind what it runs."""
    multiplier = facts.conf.worker_prefetch_multiplier
    if multiplier is None or multiplier == 1:
        return
    limits = {name: facts.soft_limit_s(task) or facts.hard_limit_s(task) or 0.0 for name, task in facts.tasks.items()}
    long = sorted(name for name, limit in limits.items() if limit > LONG_S)
    if long:
        held = "all messages it can get" if multiplier == 0 else f"{multiplier} messages per slot"
        yield Finding(
            "warning",
            "prefetch",
            f"worker_prefetch_multiplier is {multiplier}: a worker holds {held}, and they wait behind long tasks "
            f"({some(long)}) although others are idle.",
            "Leave it unset, so that the worker finds the number itself, or set 1.",
        )


@rule
def chords_without_results(facts: Facts) -> Iterator[Finding]:
    """A chord's body is called with the results of its header."""
    users = _users_of_chords(facts.tasks)
    if not users:
        return
    told = f"Chords are used (in {some(users)}), and "
    if facts.backend_abilities is None:
        yield Finding("error", "chords", f"{told}there is no result backend to join them.", "Set result_backend.")
    elif "replies" in facts.backend_abilities:
        yield Finding(
            "error",
            "chords",
            f"{told}this result backend answers the caller instead of keeping results, so nobody can join them.",
            "Set result_backend to a store that keeps them.",
        )
    if facts.conf.task_ignore_result:
        yield Finding(
            "warning",
            "chords",
            f"{told}task_ignore_result is on: what a header task returns is kept only where the call says "
            f"ignore_result=False.",
            "Set ignore_result=False on the tasks of chord headers.",
        )


def _users_of_chords(tasks: Mapping[str, Any]) -> list[str]:
    """Modules of tasks in which the word chord stands for ours, and tasks whose code names it."""
    found = set()
    for name, task in tasks.items():
        run = getattr(task.run, "__func__", task.run)
        module = getattr(run, "__module__", None) or ""
        imported = getattr(sys.modules.get(module), "chord", None)
        if getattr(imported, "__module__", "").startswith("celeriac."):
            found.add(module)
        elif "chord" in getattr(getattr(run, "__code__", None), "co_names", ()):
            found.add(name)
    return sorted(found)


@rule
def results_that_nobody_keeps(facts: Facts) -> Iterator[Finding]:
    """Every `get()` would fail."""
    if facts.conf.result_backend or facts.conf.backend_plugin or facts.conf.task_ignore_result:
        return
    keeping = sorted(name for name, task in facts.tasks.items() if not task.ignore_result)
    if keeping:
        yield Finding(
            "note",
            "results",
            f"There is no result backend: what {some(keeping)} return is dropped, and get() cannot work.",
            "Set result_backend, or task_ignore_result = True if that is meant.",
        )


@rule
def results_for_ever(facts: Facts) -> Iterator[Finding]:
    """The store grows without bound."""
    if facts.conf.result_backend and not facts.conf.result_expires:
        yield Finding("note", "results", "result_expires is off: results are kept for ever.", "Set result_expires.")


@rule
def unsafe_serializer(facts: Facts) -> Iterator[Finding]:
    """Whoever writes to the broker runs code in the worker."""
    for name in facts.conf.accept_content:
        try:
            serializer = facts.app.codec.serializer(name) if "/" not in name else None
        except CeleriacError:
            continue  # the plugins' part of the check tells
        if serializer is not None and serializer.unsafe:
            yield Finding(
                "warning",
                "serializer",
                f"accept_content has {name!r}: whoever can write to the broker can run code in your workers.",
                "Use json, or sign messages (serializer auth).",
            )


@rule
def serializer_not_accepted(facts: Facts) -> Iterator[Finding]:
    """Workers would refuse what clients of the same app send, or clients the results of their calls."""
    accepted = set(facts.conf.accept_content)
    chosen = {"task_serializer": facts.conf.task_serializer}
    chosen |= {
        f"{name}: serializer": task.serializer
        for name, task in sorted(facts.tasks.items())
        if task.serializer and task.serializer != facts.conf.task_serializer
    }
    for where, name in chosen.items():
        if name not in accepted and not _reads(facts, name, accepted):
            yield Finding(
                "error",
                "serializer",
                f"{where} is {name!r}, which accept_content ({', '.join(sorted(accepted))}) does not have: workers "
                f"would refuse the messages.",
                f"Add {name!r} to accept_content.",
            )
    for_results, name = facts.conf.result_accept_content, facts.conf.result_serializer
    readable = accepted if for_results is None else set(for_results)
    keeps = facts.conf.result_backend or facts.conf.backend_plugin
    if keeps and name not in readable and not _reads(facts, name, readable):
        where = "accept_content" if for_results is None else "result_accept_content"
        yield Finding(
            "error",
            "serializer",
            f"result_serializer is {name!r}, which {where} ({', '.join(sorted(readable))}) does not have: nobody could "
            f"read the results.",
            f"Add {name!r} to result_accept_content.",
        )


def _reads(facts: Facts, name: str, accepted: set[str]) -> bool:
    try:
        return facts.app.codec.serializer(name).content_type in accepted
    except CeleriacError:
        return False


@rule
def undeclared_queue(facts: Facts) -> Iterator[Finding]:
    """With `task_create_missing_queues` off, calls would be refused."""
    for name, task in sorted(facts.tasks.items()):
        try:
            facts.app.router.route(name, (), {}, _options_of(task), task)
        except (CeleriacError, KeyError, TypeError, ValueError) as exc:
            yield Finding("error", "routing", f"{name}: {exc.args[0] if exc.args else exc}.", "See task_routes.")


def _options_of(task: Any) -> dict[str, Any]:
    return {key: getattr(task, key) for key in ("queue", "exchange", "routing_key") if getattr(task, key, None)}


@rule
def schedule_of_unknown_task(facts: Facts) -> Iterator[Finding]:
    """Beat would send calls that no worker knows."""
    for name, entry in sorted(facts.conf.beat_schedule.items()):
        task = entry.get("task") if isinstance(entry, Mapping) else getattr(entry, "task", None)
        if task and task not in facts.app.tasks:
            yield Finding(
                "warning",
                "schedule",
                f"beat_schedule[{name!r}] calls {task!r}, and this app has no task of that name.",
                "Correct the name, or import its module (imports, autodiscover_tasks).",
            )


@rule
def early_acknowledgement(facts: Facts) -> Iterator[Finding]:
    """Work is then lost with the process that does it."""
    conf = facts.conf
    if not conf.task_acks_late and conf.value_set_for("task_reject_on_worker_lost") and conf.task_reject_on_worker_lost:
        yield Finding(
            "warning",
            "acknowledgement",
            "task_reject_on_worker_lost has no effect with task_acks_late = False: the message is gone by then.",
            "Leave task_acks_late on.",
        )
    elif not conf.task_acks_late:
        yield Finding(
            "note",
            "acknowledgement",
            "task_acks_late is off: a call is lost when its worker dies.",
            "Leave it on unless a task must never run twice.",
        )


@rule
def eager(facts: Facts) -> Iterator[Finding]:
    """Nothing is sent at all."""
    if facts.conf.task_always_eager:
        yield Finding(
            "warning",
            "eager",
            "task_always_eager is on: calls run in the caller, no message is sent, no worker is needed.",
            "Turn it off outside of tests.",
        )


@rule
def memory_limit_too_low(facts: Facts) -> Iterator[Finding]:
    """A limit in MiB where KiB are wanted replaces the process after every task."""
    limit = facts.conf.worker_max_memory_per_child
    if limit and limit < LEAST_MEMORY_KIB:
        yield Finding(
            "warning",
            "memory limit",
            f"worker_max_memory_per_child is {limit} KiB, less than a Python process needs: it is replaced after every "
            f"task.",
            f"It counts KiB: {limit} MiB would be {int(limit) * 1024}.",
        )


@rule
def rate_limits(facts: Facts) -> Iterator[Finding]:
    """A worker would refuse to start."""
    for _, task in sorted(facts.tasks.items()):
        trouble = trouble_with(task)
        if trouble:
            yield Finding("error", "rate limits", f"{trouble}.")
    limited = cluster_wide(facts.tasks.values())
    if not limited or facts.conf.worker_disable_rate_limits:
        return
    try:
        has_state = facts.app.shared_state is not None
    except CeleriacError:  # the plugins' part of the check tells
        return
    if not has_state:
        yield Finding(
            "error",
            "rate limits",
            f"The rate limits of {some(limited)} hold for all workers together, and neither the broker nor the result "
            f"backend keeps what all workers share: workers would not start.",
            "Set result_backend to one that does (redis, sqlite, database), or rate_limit_scope to 'worker'.",
        )


@rule
def no_tasks(facts: Facts) -> Iterator[Finding]:
    """A worker would know nothing."""
    if not facts.tasks:
        yield Finding(
            "warning",
            "tasks",
            "The app has no tasks.",
            "Name their modules: Celery(include=[...]), the setting imports, or app.autodiscover_tasks().",
        )


def some(names: list[str]) -> str:
    """The first three of these, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
