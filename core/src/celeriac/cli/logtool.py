"""`celeriac logtool`: what log files say about tasks. Reads our console lines, our JSON lines, and Celery's."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

import click
from msgspec import Struct

from celeriac.cli.group import Command, option
from celeriac.log.lines import WORDS, clean

as_json = option("--json", "as_json", is_flag=True, help="Print JSON.")
of_files = click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, allow_dash=True), metavar="FILE..."
)

#: How a line begins that is an event of its own: ours on a console, and Celery's.
_OURS: Final = re.compile(r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) \[(?P<level>\w+) *\] (?P<text>.*)")
_CELERYS: Final = re.compile(
    r"\[(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}): (?P<level>[A-Z]+)(?:/[^\]]*)?\] (?P<text>.*)"
)
_COLOR: Final = re.compile("\x1b\\[[0-9;]*m")
#: What tells how a task fares → what became of it.
_ENDS: Final = (
    ("received", re.compile(r"(?:Received task: |Task )(?P<name>[^\[\s]+)\[(?P<id>[^\]]+)\](?: received| *$| )")),
    ("started", re.compile(r"Task accepted: (?P<name>[^\[\s]+)\[(?P<id>[^\]]+)\]")),
    (
        "succeeded",
        re.compile(r"Task (?P<name>[^\[\s]+)\[(?P<id>[^\]]+)\] succeeded in (?P<runtime>\d+(?:\.\d+)?(?:e-?\d+)?)s"),
    ),
    ("retried", re.compile(r"Task (?P<name>[^\[\s]+)\[(?P<id>[^\]]+)\] retry: ")),
    (
        "failed",
        re.compile(r"Task (?P<name>[^\[\s]+)\[(?P<id>[^\]]+)\] (?:raised (?:un)?expected|INTERNAL ERROR): "),
    ),
    ("ignored", re.compile(r"Task (?P<name>[^\[\s]+)\[(?P<id>[^\]]+)\] ignored")),
    ("rejected", re.compile(r"Task (?P<name>[^\[\s]+)\[(?P<id>[^\]]+)\] rejected")),
    ("revoked", re.compile(r"Discarding (?:revoked|expired) task: (?P<name>[^\[\s]+)\[(?P<id>[^\]]+)\]")),
    (
        "failed",
        re.compile(r"Hard time limit \([^)]*\) exceeded for (?P<name>[^\[\s]+)\[(?P<id>[^\]]+)\]"),
    ),
)
_EVENTS: Final = {
    "task.received": "received",
    "task.started": "started",
    "task.succeeded": "succeeded",
    "task.retried": "retried",
    "task.failed": "failed",
    "task.failed_expectedly": "failed",
    "task.failed_internally": "failed",
    "task.timed_out": "failed",
    "task.ignored": "ignored",
    "task.rejected": "rejected",
    "task.revoked": "revoked",
    "task.expired": "revoked",
}
#: After these a call is done. One that is tried again is received anew.
_DONE: Final = frozenset({"succeeded", "failed", "ignored", "rejected", "revoked", "retried"})
_GRAVE: Final = frozenset({"error", "critical", "fatal"})


class Record(Struct):
    """One event of a log.

    Attributes:
        what: `received`, `succeeded` … for a line about a task; else empty.
        trace: The lines that follow it.
    """

    time: str
    level: str
    text: str
    what: str = ""
    task: str = ""
    id: str = ""
    runtime_s: float | None = None
    trace: list[str] = []


def read_records(lines: Iterable[str]) -> Iterator[Record]:
    """The events in these lines; what stands before the first one is passed over."""
    last: Record | None = None
    for line in lines:
        line = line.rstrip("\n")
        record = _parse(line)
        if record is None:
            if last is not None and line.strip():
                last.trace.append(line)
            continue
        if last is not None:
            yield last
        last = record
    if last is not None:
        yield last


def _parse(line: str) -> Record | None:
    if line.startswith("{"):
        return _parse_json(line)
    plain = _COLOR.sub("", line)
    match = _OURS.match(plain) or _CELERYS.match(plain)
    if match is None:
        return None
    record = Record(match["time"], match["level"].lower(), match["text"].rstrip(), trace=[])
    for what, pattern in reversed(_ENDS):  # `received` is the least exact
        found = pattern.search(record.text)
        if found is not None:
            record.what, record.task, record.id = what, found["name"], found["id"]
            if "runtime" in pattern.groupindex:
                record.runtime_s = float(found["runtime"])
            break
    return record


def _parse_json(line: str) -> Record | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or "event" not in found or "timestamp" not in found:
        return None
    event = str(found["event"])
    words = WORDS.get(event)
    try:
        text = words % found if words else event
    except KeyError:
        text = event
    trace = str(found.get("exception") or "").splitlines()
    runtime = found.get("runtime_s")
    return Record(
        str(found["timestamp"]),
        str(found.get("level", "")),
        text,
        _EVENTS.get(event, ""),
        str(found.get("task_name") or ""),
        str(found.get("task_id") or ""),
        float(runtime) if isinstance(runtime, (int, float)) else None,
        trace,
    )


def _records(files: Iterable[str]) -> Iterator[Record]:
    for name in files:
        with click.open_file(name, errors="replace") as lines:
            yield from read_records(lines)


# -- the commands -----------------------------------------------------------------------------------------


@click.group()
def logtool() -> None:
    """Read worker logs: celeriac's on a console or in JSON, and Celery's. A FILE of - is standard input."""


@logtool.command("stats", cls=Command)
@of_files
@as_json
def stats(files: tuple[str, ...], as_json: bool) -> None:
    """Count what became of the calls of each task, and how long they ran."""
    table: dict[str, dict[str, Any]] = {}
    total = dict.fromkeys(("lines", "errors", "received"), 0)
    for record in _records(files):
        total["lines"] += 1
        total["errors"] += record.level in _GRAVE
        if not record.what:
            continue
        row = table.setdefault(record.task, {})
        row[record.what] = row.get(record.what, 0) + 1
        total["received"] += record.what == "received"
        if record.what == "succeeded" and record.runtime_s is not None:
            row["runtime_s"] = row.get("runtime_s", 0.0) + record.runtime_s
            row["longest_s"] = max(row.get("longest_s", 0.0), record.runtime_s)
    for row in table.values():
        if "runtime_s" in row:
            row["mean_s"] = round(row.pop("runtime_s") / row["succeeded"], 6)
    if as_json:
        click.echo(json.dumps({"total": total, "tasks": table}, indent=2, sort_keys=True))
        return
    click.echo(f"{total['lines']} events, {total['errors']} errors, {total['received']} calls received")
    for name, row in sorted(table.items()):
        click.echo(f"{clean(name)}: " + ", ".join(f"{key} {value}" for key, value in row.items()))


@logtool.command("traces", cls=Command)
@of_files
def traces(files: tuple[str, ...]) -> None:
    """Print the tracebacks."""
    for record in _records(files):
        if any("Traceback" in line for line in record.trace):
            _echo(record)


@logtool.command("errors", cls=Command)
@of_files
@as_json
def errors(files: tuple[str, ...], as_json: bool) -> None:
    """Print what was logged as an error, with what follows it."""
    for record in _records(files):
        if record.level in _GRAVE:
            _echo_json(record) if as_json else _echo(record)


@logtool.command("incomplete", cls=Command)
@of_files
@as_json
def incomplete(files: tuple[str, ...], as_json: bool) -> None:
    """Print the calls that were received and of which no end is told."""
    waiting: dict[str, Record] = {}
    for record in _records(files):
        if record.what in _DONE:
            waiting.pop(record.id, None)
        elif record.what:
            waiting.setdefault(record.id, record)
    for record in waiting.values():
        _echo_json(record) if as_json else _echo(record)


@logtool.command("debug", cls=Command)
@of_files
def debug(files: tuple[str, ...]) -> None:
    """Print what is not about tasks."""
    for record in _records(files):
        if not record.what:
            _echo(record)


def _echo(record: Record) -> None:
    click.echo(f"{record.time} {record.level.upper()} {clean(record.text)}")
    for line in record.trace:
        click.echo(f"  {clean(line)}")


def _echo_json(record: Record) -> None:
    json.dump(
        {
            "timestamp": record.time,
            "level": record.level,
            "text": record.text,
            "task_name": record.task or None,
            "task_id": record.id or None,
            "exception": "\n".join(record.trace) or None,
        },
        sys.stdout,
    )
    click.echo()
