"""Write the stubs of plugins/compat/celery, for type checkers: they know nothing of Python's import hooks.

`celery/app/task.pyi` says that its names are those of `celeriac.app.task`; one for each module that celeriac has at a
path of Celery's. Run it when a test says that they are not up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CELERIAC = ROOT / "core" / "src" / "celeriac"
CELERY = ROOT / "plugins" / "compat" / "celery" / "src" / "celery"

#: Modules of Celery 5.7 that programs import from; celeriac does not have all of them.
MODULES = """
    _state app app.amqp app.annotations app.autoretry app.backends app.base app.builtins app.control
    app.defaults app.events app.log app.registry app.routes app.task app.trace app.utils beat bootsteps canvas
    concurrency contrib contrib.abortable contrib.django contrib.django.task contrib.migrate contrib.pytest
    contrib.rdb contrib.sphinx contrib.testing contrib.testing.app contrib.testing.manager contrib.testing.mocks
    contrib.testing.tasks contrib.testing.worker events events.cursesmon events.dispatcher events.dumper
    events.event events.receiver events.snapshot events.state exceptions loaders loaders.app loaders.base
    loaders.default local platforms result schedules security security.certificate security.key
    security.serialization security.utils signals states utils utils.abstract utils.annotations
    utils.collections utils.debug utils.deprecated utils.dispatch utils.dispatch.signal utils.functional
    utils.graph utils.imports utils.iso8601 utils.log utils.nodenames utils.objects utils.quorum_queues
    utils.saferepr utils.serialization utils.static utils.sysinfo utils.term utils.text utils.threads utils.time
    utils.timer2 worker worker.autoscale worker.components worker.consumer worker.control worker.heartbeat
    worker.loops worker.pidbox worker.request worker.state worker.strategy worker.worker
"""


def stubs() -> Iterator[tuple[Path, str]]:
    """Where each stub lies, below `CELERY`, and its text."""
    for name in MODULES.split():
        path = Path(*name.split("."))
        text = f"from celeriac.{name} import *\n"
        if (CELERIAC / path / "__init__.py").exists():
            yield path / "__init__.pyi", text
        elif (CELERIAC / path).with_suffix(".py").exists():
            yield path.with_suffix(".pyi"), text


def main() -> int:
    """Write what is missing or different, and remove what is too many; returns the exit status."""
    wanted = dict(stubs())
    for old in CELERY.glob("**/*.pyi"):
        if old.relative_to(CELERY) not in wanted:
            old.unlink()
    for path, text in wanted.items():
        (CELERY / path).parent.mkdir(parents=True, exist_ok=True)
        (CELERY / path).write_text(text, encoding="utf-8")
    print(f"{len(wanted)} stubs in {CELERY.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
