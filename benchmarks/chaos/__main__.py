"""`python -m benchmarks.chaos`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.chaos import campaign
from benchmarks.chaos.faults import REGISTER

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign and print what it found; 1 if anything was lost, or ran twice unsaid."""
    options = _parse(arguments)
    outcome = campaign.run(
        options.broker,
        tasks=options.tasks,
        faults=options.faults,
        seed=options.seed,
        pool=options.pool,
        workers=options.workers,
        kinds=options.kinds.split(",") if options.kinds else (),
        say=lambda line: print(line, flush=True),
    )
    found = {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": machine.commit_of(ROOT),
        "machine": machine.describe(), "seed": options.seed, **campaign.summary(outcome),
    }  # fmt: skip
    print("\n".join(table(found)))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"chaos-{options.broker}-{options.pool}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{path}")
    return 0 if outcome.is_clean else 1


def table(found: dict[str, Any]) -> list[str]:
    """What a campaign found, for people."""
    lines = [
        "",
        f"{found['broker']}, {found['pool']}, {found['commit']}, seed {found['seed']}: {found['accepted']} tasks, "
        f"{found['faults']} faults of {len(found['kinds'])} kinds, {found['seconds']} s",
        f"lost {found['lost']}, results missing {found['unstored']}, duplicates {found['duplicates']} "
        f"(flagged {found['flagged']}, sent twice {found['sent_twice']}, unflagged {found['unflagged']}; "
        f"begun and unacknowledged when faults struck: {found['exposed']})",
        f"sends that failed and were tried again {found['sends_that_failed']} (uncertain {found['sends_uncertain']})",
        "",
        "| fault | times | confirmed | recovered | median s | p95 s | max s | taken over | p95 s | max s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, kind in found["kinds"].items():
        words = [
            name.replace("_", " "), kind["times"], kind["confirmed"], kind["recovered"], kind["recovery_median_s"],
            kind["recovery_p95_s"], kind["recovery_max_s"], kind["takeovers"], kind["takeover_p95_s"],
            kind["takeover_max_s"],
        ]  # fmt: skip
        lines.append("| " + " | ".join("" if word is None else str(word) for word in words) + " |")
    for name in ("deserters", "surprises", "unflagged_runs"):
        lines += [f"{name}: {text}" for text in found[name]]
    return lines


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.chaos", description="Many tasks under many faults.")
    parser.add_argument("--broker", choices=sorted(REGISTER), default="redis")
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--pool", default="prefork")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", default="", help="names of faults, separated by commas; default: all there are")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
