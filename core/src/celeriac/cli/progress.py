"""A bar in the terminal for a group of results: what `celeriac result` and `GroupResult.show_progress` show."""

from __future__ import annotations

import sys
from typing import Any

import click


def show(results: Any, timeout: float | None = None, stream: Any = None) -> None:
    """Show how many of these have ended, until all have.

    Raises:
        TimeoutError: Not all ended within `timeout` seconds.
    """
    stream = sys.stderr if stream is None else stream
    total, last = len(results.leaves()), 0

    def shown(step: Any) -> str:
        return f"{step.failed} failed" if step is not None and step.failed else ""

    with click.progressbar(length=total, label="results", item_show_func=shown, show_pos=True, file=stream) as bar:
        for step in results.progress(timeout):
            bar.update(step.done - last, step)
            last = step.done
