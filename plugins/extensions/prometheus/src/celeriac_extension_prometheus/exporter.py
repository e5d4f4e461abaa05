"""Counts the runs of one worker, looks at its queues when it is asked, and answers over HTTP.

All numbers are counted in the worker's own process, which hears of every run whatever the pool: `prometheus_client`'s
multi-process mode is not needed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from celeriac.exceptions import CeleriacError
from celeriac.spec import Run
from celeriac_extension_prometheus.waits import ready_at

DEFAULT_PORT: Final = 9808
RUN_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600)
OPTIONS: Final = frozenset({"port", "host", "buckets"})
RAN: Final = frozenset({"succeeded", "failed", "retried"})
FAILED: Final = frozenset({"failed", "timed_out", "lost"})

_log = logging.getLogger("celeriac.extensions.prometheus")
_servers: dict[int, Any] = {}  # by id of the worker


def export(worker: Any, options: Mapping[str, Any]) -> None:
    """Count this worker's runs and answer on a port. A port that cannot be had, or an option that nobody knows, is
    logged as an error: no worker is without work for the want of its metrics."""
    try:
        unknown = sorted(set(options) - OPTIONS)
        if unknown:
            raise ValueError(f"unknown options: {', '.join(unknown)}; known: {', '.join(sorted(OPTIONS))}")
        port, host = int(options.get("port", DEFAULT_PORT)), str(options.get("host", "127.0.0.1"))
        registry = CollectorRegistry()
        counts = Counts(worker, registry, tuple(options.get("buckets", RUN_BUCKETS_S)))
        registry.register(Look(worker))
        server, _ = start_http_server(port, host, registry)
    except (OSError, ValueError, TypeError) as exc:
        _log.error(
            "No metrics of the worker %s: extension_options['prometheus'] = %r: %s. "
            "Each worker of a machine needs a port of its own.",
            worker.hostname,
            dict(options),
            exc,
        )
        return
    _servers[id(worker)] = server
    worker.listen(counts)
    _log.info("Metrics of the worker %s: http://%s:%d/metrics", worker.hostname, host, server.server_port)


def end(worker: Any) -> None:
    """Stop answering."""
    server = _servers.pop(id(worker), None)
    if server is not None:
        server.shutdown()
        server.server_close()


class Counts:
    """What is counted as it happens: the worker's `RunListener`."""

    def __init__(self, worker: Any, registry: CollectorRegistry, buckets: Sequence[float]) -> None:
        self._unpack = worker.transport.unpack
        task, task_queue = ("task",), ("task", "queue")
        self._runs = Counter(
            "celeriac_runs", "Runs that ended, by how they did.", (*task_queue, "outcome"), registry=registry
        )
        self._failures = Counter(
            "celeriac_failures", "Runs that failed, timed out or died.", task_queue, registry=registry
        )
        self._retries = Counter("celeriac_retries", "Runs that asked for another.", task_queue, registry=registry)
        self._run_s = Histogram("celeriac_run_seconds", "How long runs took.", task, registry=registry, buckets=buckets)
        self._wait_s = Histogram(
            "celeriac_wait_seconds",
            "From the sending (or the eta) of a call to its run.",
            ("queue",),
            registry=registry,
            buckets=buckets,
        )
        self._lag_s = Gauge(
            "celeriac_lag_seconds", "How long the call that ran last had waited.", ("queue",), registry=registry
        )

    def ended(self, runs: Sequence[Run]) -> None:
        """See `RunListener`."""
        now = time.time()
        for run in runs:
            self._runs.labels(run.task, run.queue, run.outcome).inc()
            if run.outcome in FAILED:
                self._failures.labels(run.task, run.queue).inc()
            elif run.outcome == "retried":
                self._retries.labels(run.task, run.queue).inc()
            if run.outcome in RAN:
                self._run_s.labels(run.task).observe(run.runtime_s)
                ready = ready_at(self._unpack(run.raw).headers)
                if ready is not None:
                    waited_s = max(0.0, now - run.runtime_s - ready)
                    self._wait_s.labels(run.queue).observe(waited_s)
                    self._lag_s.labels(run.queue).set(waited_s)


class Look:
    """What is looked at when Prometheus asks."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def describe(self) -> list[Metric]:
        """Nothing beforehand: to look needs the broker."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The state of the worker and of its queues now."""
        worker = self._worker
        up = GaugeMetricFamily("celeriac_worker_up", "1 for each worker.", labels=("worker", "pool"))
        up.add_metric((worker.hostname, worker.pool_name), 1)
        yield up
        yield GaugeMetricFamily("celeriac_slots", "How many runs there may be at once.", worker.concurrency)
        yield GaugeMetricFamily("celeriac_in_flight", "Calls that the pool has.", worker.in_flight())
        yield CounterMetricFamily("celeriac_given_back", "Calls that went back to their queue.", worker.given_back())
        yield self._depths()

    def _depths(self) -> Metric:
        depths = GaugeMetricFamily("celeriac_queue_depth", "Messages that are ready in a queue.", labels=("queue",))
        transport = self._worker.app.transport
        if "depth" not in transport.abilities:
            return depths
        for queue in self._worker.queue_names:
            try:
                depths.add_metric((queue,), transport.depth(queue))
            except CeleriacError as exc:  # a number that is not known is left out
                _log.warning("The depth of the queue %s is not known: %s", queue, exc)
        return depths
