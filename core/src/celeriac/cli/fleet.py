"""Every live worker beside this app: does it know the tasks, does it store results where they are looked for?

The worker of the tutorial's last chapter, an old one that eats the queue and stores nothing, is found here by its name.
Works for Celery's workers as well as for ours: both answer the same questions. Called by `celeriac doctor`; `top` asks
for the same facts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec import Struct

from celeriac.beat.service import DEFAULT_NODE
from celeriac.cli.checkup import Section
from celeriac.cli.rules import Facts, some
from celeriac.exceptions import CeleriacError, join_words, mask_url
from celeriac.kernel.kernel import first_url
from celeriac.spec.diagnosis import Finding

_SOFTWARE: Final = re.compile(r"software -> (.*)")
_PLUGINS: Final = re.compile(r"plugins -> (.*)")
PORTS: Final = {"redis": 6379, "rediss": 6379, "amqp": 5672, "pyamqp": 5672, "rpc": 0}
#: How schedulers are called, unless they are called otherwise.
SCHEDULERS: Final = DEFAULT_NODE.partition("@")[0] + "@"
NO_RESULTS: Final = ("", "disabled", "disabled://", "None")


class Node(Struct):
    """One worker, as it answered.

    Attributes:
        software: `celeriac 0.1.0`, `Celery 5.7.0`, or empty if it did not say.
        results: Where it stores results, passwords masked; empty if nowhere, None if it did not say.
        tasks: Their names; None if it did not say.
    """

    name: str
    software: str = ""
    plugins: list[str] = []
    pool: str = ""
    slots: int = 0
    queues: list[str] = []
    tasks: frozenset[str] | None = None
    results: str | None = None
    total: dict[str, int] = {}


def ask_workers(app: Any, timeout_s: float) -> dict[str, Node]:
    """Name → node, for all that answer a ping within `timeout_s` seconds.

    Raises:
        Unsupported: The broker cannot broadcast.
        OperationalError: It cannot be reached.
    """
    names = ping_workers(app, timeout_s)
    nodes = {name: Node(name) for name in names}
    if not names:
        return nodes
    inspect = app.control.inspect(destination=names, timeout=timeout_s, limit=len(names))
    refused = Counter[str]()
    for question, note in QUESTIONS.items():
        for name, answer in (getattr(inspect, question)() or {}).items():
            if is_error(answer):
                refused[name] += 1
            elif name in nodes:
                note(nodes[name], answer)
    return {name: node for name, node in nodes.items() if refused[name] < len(QUESTIONS)}


def ping_workers(app: Any, timeout_s: float) -> list[str]:
    """The names of all that answer a ping within `timeout_s` seconds, but for schedulers of Celery's name: those answer
    nothing else."""
    names = sorted(name for reply in app.control.ping(timeout=timeout_s) for name in reply)
    return [name for name in names if not name.startswith(SCHEDULERS)]


def is_error(answer: Any) -> bool:
    """Whether a node could not answer; a scheduler, whatever its name, cannot answer any question."""
    return isinstance(answer, Mapping) and "error" in answer


def _note_queues(node: Node, answer: Any) -> None:
    node.queues = sorted(str(queue.get("name", "")) for queue in answer if isinstance(queue, Mapping))


def _note_tasks(node: Node, answer: Any) -> None:
    node.tasks = frozenset(str(line).partition(" ")[0] for line in answer)


def _note_stats(node: Node, answer: Any) -> None:
    pool = answer.get("pool") or {}
    node.pool = str(pool.get("implementation", "")).rpartition(":")[2]
    slots = pool.get("max-concurrency")
    node.slots = slots if isinstance(slots, int) else 0
    node.total = {str(name): int(count) for name, count in (answer.get("total") or {}).items()}


def _note_conf(node: Node, answer: Any) -> None:
    if not isinstance(answer, Mapping):
        return
    found = answer.get("result_backend", answer.get("CELERY_RESULT_BACKEND"))
    node.results = "" if str(found or "") in NO_RESULTS else mask_url(str(found))


def _note_report(node: Node, answer: Any) -> None:
    text = str(answer.get("ok", "")) if isinstance(answer, Mapping) else str(answer)
    line = _SOFTWARE.search(text)
    words = dict(word.partition(":")[::2] for word in line[1].split() if ":" in word) if line else {}
    if "celeriac" in words:
        node.software = f"celeriac {words['celeriac']}"
    elif "celery" in words:
        node.software = f"Celery {words['celery']}"
    plugins = _PLUGINS.search(text)
    node.plugins = plugins[1].split() if plugins else []


#: What workers are asked → who notes the answer.
QUESTIONS: Final[Mapping[str, Callable[[Node, Any], None]]] = {
    "active_queues": _note_queues,
    "registered": _note_tasks,
    "stats": _note_stats,
    "conf": _note_conf,
    "report": _note_report,
}

# -- judging ----------------------------------------------------------------------------------------------


def look_at_workers(app: Any, facts: Facts, timeout_s: float) -> Section:
    """All workers that answer, and what is wrong with them."""
    section = Section("workers", [], [])
    try:
        nodes = ask_workers(app, timeout_s)
    except CeleriacError as exc:
        section.findings.append(("workers", Finding("warning", "workers", f"Workers cannot be asked: {exc}")))
        return section
    section.facts = [_describe(node) for node in nodes.values()] or ["none"]
    section.findings = list(judge(nodes, facts, timeout_s))
    return section


def judge(nodes: Mapping[str, Node], facts: Facts, timeout_s: float) -> Iterator[tuple[str, Finding]]:
    """What is wrong with these workers, for an app with these facts."""
    if not nodes:
        text = f"No worker answered within {timeout_s:g} s."
        yield "no-worker", Finding("warning", "workers", text, "Start one: celeriac -A proj worker")
        return
    needed = tasks_by_queue(facts)
    for node in nodes.values():
        shared = [queue for queue in node.queues if queue in needed or queue in facts.app.router.queues]
        if shared:
            yield from _judge_results(node, shared, facts)
            yield from _judge_tasks(node, shared, needed)
        yield from _judge_version(node)
    served = {queue for node in nodes.values() for queue in node.queues}
    for queue in sorted(set(needed) - served):
        yield (
            "queue-without-worker",
            Finding(
                "warning",
                "queues",
                f"No worker consumes the queue {queue}, to which calls of {some(needed[queue])} go.",
                f"Start one with -Q {queue}, or correct task_routes.",
            ),
        )


def _judge_results(node: Node, shared: list[str], facts: Facts) -> Iterator[tuple[str, Finding]]:
    if facts.backend_abilities is None or node.results is None:
        return
    mine = mask_url(first_url(facts.conf.result_backend))
    who = f"{node.name} ({node.software or 'of unknown version'})"
    if not node.results:
        yield (
            "worker-without-results",
            Finding(
                "error",
                "results",
                f"{who} consumes {join_words(shared)} and stores no result; this app looks for them at {mine}. get() "
                f"of a call that it takes waits for ever.",
                "Stop that worker, or set its result_backend.",
            ),
        )
    elif place_of(node.results) != place_of(mine):
        yield (
            "worker-with-other-results",
            Finding(
                "warning",
                "results",
                f"{who} consumes {join_words(shared)} and stores results at {node.results}; this app looks for them at "
                f"{mine}.",
                "Give both the same result_backend, unless the two are names of one server.",
            ),
        )


def _judge_tasks(node: Node, shared: list[str], needed: Mapping[str, list[str]]) -> Iterator[tuple[str, Finding]]:
    if node.tasks is None:
        return
    lacking = sorted({task for queue in shared for task in needed.get(queue, ()) if task not in node.tasks})
    if lacking:
        yield (
            "worker-without-tasks",
            Finding(
                "warning",
                "tasks",
                f"{node.name} consumes {join_words(shared)} and does not know {some(lacking)}: it puts their calls "
                f"off, and a worker of Celery drops them.",
                "Restart it with the program of today, or give these tasks a queue of their own.",
            ),
        )


def _judge_version(node: Node) -> Iterator[tuple[str, Finding]]:
    mine = f"celeriac {version('celeriac')}"
    if node.software and node.software != mine:
        yield "other-version", Finding("note", "version", f"{node.name} is {node.software}; this is {mine}.")


def tasks_by_queue(facts: Facts) -> dict[str, list[str]]:
    """Queue → the app's tasks whose calls go there."""
    found: dict[str, list[str]] = {}
    for name, task in sorted(facts.tasks.items()):
        try:
            route, _ = facts.app.router.route(name, (), {}, {}, task)
        except (CeleriacError, KeyError, TypeError, ValueError):
            continue  # a rule of its own tells
        if route.queue:
            found.setdefault(route.queue, []).append(name)
    return found


def place_of(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path: what makes two URLs one place, whoever logs in."""
    parts = urlsplit(url if ":" in url else f"{url}://")
    scheme = parts.scheme
    host = (parts.hostname or "localhost").lower()
    try:
        port = parts.port or PORTS.get(scheme, 0)
    except ValueError:
        port = 0
    path = parts.path.strip("/") or ("0" if scheme in ("redis", "rediss") else "")
    return scheme, "localhost" if host in ("127.0.0.1", "::1") else host, port, path


def _describe(node: Node) -> str:
    tasks = "?" if node.tasks is None else str(len(node.tasks))
    results = "?" if node.results is None else node.results or "none"
    slots = f" {node.pool} {node.slots}," if node.pool else ""
    return (
        f"{node.name}: {node.software or '?'},{slots} queues {','.join(node.queues)}, {tasks} tasks, results {results}"
    )
