"""Metrics of a worker for Prometheus, on a port of its own: queues, waits, runs, retries, failures."""

from __future__ import annotations

from typing import Any

from celeriac.spec import hookimpl

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_worker_starting(worker: Any) -> None:
    """Have the worker's own sends say when they were sent."""
    from celeriac_extension_prometheus.waits import stamp_sends

    if "prometheus" in worker.app.conf["extension_options"]:
        stamp_sends()


@hookimpl
def celeriac_worker_ready(worker: Any) -> None:
    """Count from now on, and answer on the port."""
    options = worker.app.conf["extension_options"].get("prometheus")
    if options is None:
        return
    from celeriac_extension_prometheus.exporter import export

    export(worker, options)


@hookimpl
def celeriac_worker_stopped(worker: Any) -> None:
    """Let go of the port."""
    if "prometheus" not in worker.app.conf["extension_options"]:
        return
    from celeriac_extension_prometheus.exporter import end

    end(worker)
