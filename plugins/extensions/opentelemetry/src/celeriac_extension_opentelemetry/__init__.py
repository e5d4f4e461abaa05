"""Traces from producer to worker: trace context in message headers, a span for each call sent and each run."""

from __future__ import annotations

from typing import Any

from celeriac.spec import hookimpl

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_worker_starting(worker: Any) -> None:
    """Trace this worker and its processes, if `extension_options` has the name of this extension."""
    _trace(worker.app)


@hookimpl
def celeriac_process_starting(app: Any) -> None:
    """The same, in a process that was not forked from the worker."""
    _trace(app)


def _trace(app: Any) -> None:
    options = app.conf["extension_options"].get("opentelemetry")
    if options is None:
        return
    from celeriac_extension_opentelemetry.tracing import instrument

    instrument(**options)
