"""The page that `celeriac worker` prints first: what runs where, with which plugins. In the shape of Celery's."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from celeriac.exceptions import mask_url
from celeriac.kernel.kernel import first_url


def startup_page(app: Any, options: Mapping[str, Any]) -> str:
    """The page.

    Args:
        options: Of the worker command; `hostname`, `pool`, `concurrency`, `queues`, `loglevel` … settled.
    """
    plugins = {info.kind: info for info in app.kernel.loaded()}

    def by(kind: str) -> str:
        info = plugins.get(kind)
        return f"{info.name} ({info.dist})" if info is not None else ""

    conf = app.conf
    results = mask_url(first_url(conf.result_backend)) if conf.result_backend else "disabled"
    config = [
        ("app", f"{app.main or 'default'}", ""),
        ("transport", mask_url(first_url(conf.broker_read_url or conf.broker_url)), by("broker")),
        ("results", results, by("backend")),
        ("concurrency", f"{options['concurrency']} ({options['pool']})", by("pool")),
        ("task events", "ON" if options["task_events"] else "OFF", ""),
    ]
    width = max(len(value) for _, value, _ in config)
    system = f"Python {platform.python_version()}, {platform.system()} {platform.release()}"
    lines = ["", f"{options['hostname']}  celeriac {version('celeriac')}, {system}", "", "[config]"]
    lines += [f".> {name + ':':13}{value:{width}}  {plugin}".rstrip() for name, value, plugin in config]
    lines += ["", "[queues]", *_queues(app, options), ""]
    if options["loglevel"] <= logging.INFO:
        lines += ["[tasks]", *(f"  . {name}" for name in sorted(app.tasks) if not name.startswith("celery.")), ""]
    return "\n".join(lines)


def _queues(app: Any, options: Mapping[str, Any]) -> list[str]:
    names = options["queues"] or list(app.router.queues)
    specs = [app.router.spec(name) for name in names if name not in options["exclude_queues"]]
    return [
        f".> {spec.name:16} exchange={spec.exchange}({spec.exchange_type}) key={spec.routing_key or spec.name}"
        for spec in specs
    ]
