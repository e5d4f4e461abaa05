"""Turns what the cells found into one Markdown table and one JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.catalog import BROKERS, OURS

LIMIT = "raw limit"


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of the table: its name in the JSON, its heading, how it is written."""

    figure: str
    heading: str
    digits: int


COLUMNS = (
    Column("enqueue_per_s", "enqueue /s", 0),
    Column("bulk_per_s", "bulk /s", 0),
    Column("drain_per_s", "drain /s", 0),
    Column("drain_worker_us", "worker CPU µs", 0),
    Column("drain_server_us", "server CPU µs", 0),
    Column("results_per_s", "results /s", 0),
    Column("roundtrip_p50_ms", "round trip p50 ms", 2),
    Column("roundtrip_p99_ms", "p99 ms", 1),
    Column("paced_p50_ms", "at 200/s p50 ms", 2),
    Column("paced_p99_ms", "p99 ms ", 1),
    Column("boot_s", "boot s", 2),
)


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio to reach, against one rival or the fastest peer; `lower` when less is better."""

    broker: str
    figure: str
    what: str
    factor: float
    against: str = ""
    lower: bool = False


GOALS = (
    Goal("redis", "drain_per_s", "drain", 4),
    Goal("redis", "drain_per_s", "drain", 25, against="celery:prefork"),
    Goal("redis", "results_per_s", "results", 4),
    Goal("redis", "enqueue_per_s", "enqueue", 3, against="celery"),
    Goal("redis", "roundtrip_p50_ms", "round trip p50", 0.5, lower=True),
    Goal("rabbitmq", "drain_per_s", "drain", 1.2, against="dramatiq:lean"),
    Goal("sqlite", "drain_per_s", "drain", 5, against="huey"),
)


@dataclass(slots=True)
class Found:
    """All repetitions of one configuration on one broker: the figures by name, and what went wrong."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, figures: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """Take in one repetition."""
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)
        self.counts.update(counts)

    def median(self, figure: str) -> float | None:
        """The middle of the repetitions, None where there are none."""
        values = self.figures.get(figure)
        return median(values) if values else None


Results = dict[tuple[str, str], Found]
"""(broker, label) → what was found."""


def render(results: Results, head: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """The whole page."""
    lines = [
        "# celeriac and its peers",
        "",
        f"{head['cores']} cores ({head['model']}), {head['system']}, Python {head['python']}; commit {head['commit']}; "
        f"{head['when']}; load average {head['load_before']:.1f} before, {head['load_after']:.1f} after; "
        f"{head['repetitions']} repetition(s), interleaved{', quick' if head['quick'] else ''}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(head["versions"].items())) + ".",
        "Medians, with (min–max) of the repetitions. CPU is user and system time of the whole process tree, per task.",
        "",
        *_table(results),
        "",
        "Tasks: " + "; ".join(_counts(results)) + ".",
        "",
        *(f"- `{label}`: {note}" for label, note in notes.items()),
        "",
        *_verdicts(results),
        *_failures(results),
    ]
    return "\n".join(lines).rstrip() + "\n"


def write(folder: Path, stem: str, page: str, results: Results, head: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write page and data; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "head": head,
        "cells": [
            {"broker": broker, "setup": label, "figures": found.figures, "n": found.counts, "failures": found.failures}
            for (broker, label), found in results.items()
        ],
    }
    markdown, machine = folder / f"{stem}.md", folder / f"{stem}.json"
    markdown.write_text(page)
    machine.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    return markdown, machine


def verdict(results: Results, goal: Goal) -> tuple[str, bool] | None:
    """The sentence for a goal and whether it is reached; None when the run has not both sides of it."""
    ours = [value for (broker, label), value in _medians(results, goal) if broker == goal.broker and _is(label, OURS)]
    theirs = {
        label: value
        for (broker, label), value in _medians(results, goal)
        if broker == goal.broker and label != LIMIT and not _is(label, OURS) and _is(label, goal.against)
    }
    if not ours or not theirs:
        return None
    rival = (min if goal.lower else max)(theirs, key=lambda label: theirs[label])
    ratio = (min if goal.lower else max)(ours) / theirs[rival]
    reached = ratio <= goal.factor if goal.lower else ratio >= goal.factor
    wanted = f"{'at most' if goal.lower else 'at least'} {goal.factor:g} ×"
    return f"{goal.broker}: {goal.what} {ratio:.2f} × {rival} ({wanted})", reached


def _medians(results: Results, goal: Goal) -> Iterable[tuple[tuple[str, str], float]]:
    for key, found in results.items():
        value = found.median(goal.figure)
        if value is not None:
            yield key, value


def _is(label: str, wanted: str) -> bool:
    return not wanted or label == wanted or label.partition(":")[0] == wanted


def _table(results: Results) -> list[str]:
    columns = [column for column in COLUMNS if any(column.figure in found.figures for found in results.values())]
    lines = [
        "| broker | who | " + " | ".join(column.heading.strip() for column in columns) + " |",
        "|---|---|" + "---:|" * len(columns),
    ]
    for broker in (*BROKERS, "none"):
        for (where, label), found in results.items():
            if where != broker:
                continue
            who = f"**{label}**" if _is(label, OURS) else label
            lines.append(f"| {broker} | {who} | " + " | ".join(_cell(found, column) for column in columns) + " |")
    return lines


def _cell(found: Found, column: Column) -> str:
    values = found.figures.get(column.figure)
    if not values:
        return "failed" if found.failures and not found.figures else "–"
    middle = _number(median(values), column.digits)
    if len(values) == 1:
        return middle
    return f"{middle} ({_number(min(values), column.digits)}–{_number(max(values), column.digits)})"


def _number(value: float, digits: int) -> str:
    if not digits and abs(value) < 100:
        digits = 1
    return f"{value:,.{digits}f}"


def _counts(results: Results) -> Sequence[str]:
    return [
        f"{broker} {label} " + " ".join(f"{workload} {n:,}" for workload, n in found.counts.items())
        for (broker, label), found in results.items()
        if found.counts
    ]


def _verdicts(results: Results) -> list[str]:
    said = [outcome for outcome in (verdict(results, goal) for goal in GOALS) if outcome]
    if not said:
        return []
    return ["## Goals", "", *(f"- {'reached' if ok else '**missed**'}: {sentence}" for sentence, ok in said), ""]


def _failures(results: Results) -> list[str]:
    lines = []
    for (broker, label), found in results.items():
        for failure in found.failures:
            lines += [f"- {broker} {label}: {failure.splitlines()[0]}"]
        twice = found.figures.get("drain_twice", [])
        if any(twice):
            lines += [f"- {broker} {label}: tasks executed more than once: {[int(count) for count in twice]}"]
    return ["## What went wrong", "", *lines, ""] if lines else []
