"""The page that `celeriac worker` prints first: what runs where, with which plugins. In the shape of Celery's."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from celeriac.exceptions import mask_url
from celeriac.kernel.kernel import first_url
from celeriac.worker.control import OWN_TASKS

if TYPE_CHECKING:
    from celeriac.kernel.discovery import PluginInfo
    from celeriac.worker.worker import Worker


def startup_page(worker: Worker, plugins: Mapping[str, PluginInfo], *, with_tasks: bool) -> str:
    """The page of a worker that has begun to consume.

    Args:
        plugins: By kind.
    """
    app, conf = worker.app, worker.app.conf
    by = {kind: f"{info.name} ({info.dist})" for kind, info in plugins.items()}
    results = mask_url(first_url(conf.result_backend)) if conf.result_backend else "disabled"
    config = [
        ("app", f"{app.main or 'default'}", ""),
        ("transport", mask_url(first_url(conf.broker_read_url)), by.get("broker", "")),
        ("", worker.broker_info, ""),
        ("results", results, by.get("backend", "")),
        ("concurrency", f"{worker.pool.slots} ({worker.pool_name})", by.get("pool", "")),
        ("task events", "ON" if worker.tells_events else "OFF (-E turns them on)", ""),
    ]
    width = max(len(value) for _, value, plugin in config if plugin)
    system = f"Python {platform.python_version()}, {platform.system()} {platform.release()}"
    lines = ["", f"{worker.hostname}  celeriac {version('celeriac')}, {system}", "", "[config]"]
    for name, value, plugin in config:
        label = f".> {name}:" if name else ""
        lines.append(f"{label:16}{value:{width}}  {plugin}".rstrip())
    lines += ["", "[queues]"]
    for spec in map(app.router.spec, worker.queue_names):
        key = spec.routing_key or spec.name
        lines.append(f".> {spec.name:16} exchange={spec.exchange}({spec.exchange_type}) key={key}")
    lines.append("")
    if with_tasks:
        names = sorted(name for name in app.tasks if not name.startswith(OWN_TASKS))
        lines += ["[tasks]", *(f"  . {name}" for name in names), ""]
    return "\n".join(lines)
