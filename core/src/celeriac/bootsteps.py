"""Steps of a program's own in the life of a worker, as Celery's users write them.

`app.steps["worker"].add(MyStep)`: made when a worker starts, started before it consumes and stopped after its tasks
have ended. `app.steps["consumer"]`: started once it consumes, stopped first. celeriac's own parts are no steps (they
are plain lines in `worker/worker.py`), so `requires` orders the program's steps among themselves, and names of
Celery's own steps in it are taken for done.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, ClassVar

from celeriac.utils.names import get_cls_by_name

__all__ = ["Blueprint", "ConsumerStep", "StartStopStep", "Step"]

_log = logging.getLogger("celeriac.worker")


class Step:
    """One step. `parent` is the worker (`steps["worker"]`) or its consumer (`steps["consumer"]`).

    Attributes:
        requires: Steps of the program that come before, as classes or dotted paths.
        label, name: What logs call it.
        conditional, enabled: A conditional step is left out unless `enabled` is set.
        last: It starts after all others.
    """

    name: ClassVar[str | None] = None
    label: ClassVar[str | None] = None
    requires: ClassVar[Sequence[Any]] = ()
    conditional: ClassVar[bool] = False
    last: ClassVar[bool] = False
    enabled: bool = True

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        """Called with the worker's options, those of `app.user_options["worker"]` among them."""

    def include_if(self, parent: Any) -> bool:
        """Whether it takes part in this worker."""
        return self.enabled

    def create(self, parent: Any) -> Any:
        """Called once, before anything starts; may return an object with `start` and `stop`."""

    def info(self, parent: Any) -> dict[str, Any]:
        """What `inspect stats` says of it."""
        return {}

    @property
    def alias(self) -> str:
        """Its name for logs."""
        return self.label or self.name or type(self).__qualname__

    def __repr__(self) -> str:
        return f"<step: {self.alias}>"


class StartStopStep(Step):
    """A step that does something when the worker starts and when it stops."""

    #: What `create` returned.
    obj: Any = None

    def start(self, parent: Any) -> None:
        """Start."""
        if self.obj is not None:
            self.obj.start()

    def stop(self, parent: Any) -> None:
        """Stop; called in the reverse order of starting."""
        if self.obj is not None:
            self.obj.stop()

    def terminate(self, parent: Any) -> None:
        """Stop at once, when the worker is stopped by force; `stop` unless the step knows better."""
        self.stop(parent)


class ConsumerStep(StartStopStep):
    """Consumes messages of the program's own, beside tasks: `get_consumers(channel)` returns kombu consumers.

    They are served by a thread and a connection of their own, so their callbacks do not run in the worker's loop.
    When the broker is lost, or one of them raises, that is logged, and they are made anew.
    """

    requires = ("celeriac.worker.consumer:Connection",)
    consumers: Sequence[Any] | None = None

    def get_consumers(self, channel: Any) -> Sequence[Any]:
        """kombu consumers on this channel; the program's to write."""
        raise TypeError(f"{type(self).__qualname__} has no method get_consumers(channel)")

    def start(self, parent: Any) -> None:
        """Begin to consume."""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(parent.app,), name=self.alias, daemon=True)
        self._thread.start()

    def stop(self, parent: Any) -> None:
        """Consume no more."""
        thread = getattr(self, "_thread", None)
        if thread is not None:
            self._ending.set()
            thread.join(5)

    shutdown = stop

    def _serve(self, app: Any) -> None:
        refused = import_module("kombu.exceptions").OperationalError  # what a broker that stays away ends in
        while not self._ending.is_set():
            connection = app.connection_for_read()
            try:
                connection.ensure_connection(max_retries=3)
                self.consumers = self.get_consumers(connection.channel())
                for consumer in self.consumers:
                    consumer.consume()
                while not self._ending.is_set():
                    try:
                        connection.drain_events(timeout=0.2)
                    except TimeoutError:
                        pass  # nothing came in this while
                for consumer in self.consumers:
                    consumer.cancel()
            except (refused, *connection.connection_errors, *connection.channel_errors) as exc:
                _log.warning("%r lost the broker: %s. Trying again in 1 s.", self, exc)
                self._ending.wait(1)
            except Exception:  # the program's; a thread that dies unseen would leave its queues to nobody
                _log.exception("%r raised. Its consumers are made anew in 1 s.", self)
                self._ending.wait(1)
            finally:
                connection.release()


class Blueprint:
    """Starts and stops the steps of one set, in the order of what they require."""

    def __init__(self, steps: Iterable[type[Step] | str], parent: Any, options: dict[str, Any]) -> None:
        self._parent = parent
        self.steps: list[Any] = []
        for kind in in_order(steps):
            step = kind(parent, **options)
            if (kind.conditional and not step.enabled) or not step.include_if(parent):
                continue
            made: Any = step.create(parent)
            if made is not None:
                step.obj = made  # type: ignore[attr-defined] # a Step of the program need not declare it
            self.steps.append(step)
        self._started: list[Any] = []

    def start(self) -> None:
        """Start all; if one fails, those before it are stopped."""
        for step in self.steps:
            if hasattr(step, "start"):
                try:
                    step.start(self._parent)
                except BaseException:
                    self.stop()
                    raise
            self._started.append(step)

    def stop(self, *, by_force: bool = False) -> None:
        """Stop what was started, last first; an error of one does not keep the others from it."""
        while self._started:
            step = self._started.pop()
            stop = getattr(step, "terminate" if by_force else "stop", None)
            if stop is not None:
                try:
                    stop(self._parent)
                except Exception:
                    _log.exception("%r could not be stopped", step)

    def info(self) -> dict[str, Any]:
        """What the steps say of themselves."""
        return {key: value for step in self.steps for key, value in (step.info(self._parent) or {}).items()}


def in_order(steps: Iterable[type[Step] | str]) -> list[type[Step]]:
    """Each after what it requires; `last` ones at the end; otherwise by name, so that every start is alike.

    Args:
        steps: Classes, or dotted paths to them.
    Raises:
        ImportError, AttributeError: A path leads to nothing.
        ValueError: They require each other in a circle.
    """
    given: set[type[Step]] = {get_cls_by_name(step) for step in steps}
    kinds = sorted(given, key=lambda kind: (kind.last, f"{kind.__module__}:{kind.__qualname__}"))
    names = {name: kind for kind in kinds for name in _names(kind)}
    found: list[type[Step]] = []
    visiting: set[type[Step]] = set()

    def visit(kind: type[Step]) -> None:
        if kind in found:
            return
        if kind in visiting:
            raise ValueError(f"bootsteps require each other in a circle: {kind.__qualname__} is in it")
        visiting.add(kind)
        for wanted in kind.requires:
            before = names.get(wanted) if isinstance(wanted, str) else names.get(next(iter(_names(wanted))))
            if before is not None:
                visit(before)
        found.append(kind)

    for kind in kinds:
        visit(kind)
    return found


def is_required(kind: type[Step], by: type[Step]) -> bool:
    """Whether one step requires another, as class or by a name of it."""
    names = set(_names(kind))
    return any(wanted in names if isinstance(wanted, str) else wanted is kind for wanted in by.requires)


def _names(kind: type) -> Iterable[str]:
    yield f"{kind.__module__}:{kind.__qualname__}"
    yield f"{kind.__module__}.{kind.__qualname__}"
    name = getattr(kind, "name", None)
    if name:
        yield name
